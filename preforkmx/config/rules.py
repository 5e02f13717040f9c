"""The rules about several keys at once.

A rule yields a problem for each way in which the tables that are in order contradict each
other; a table in which something else is wrong is None in the draft, and is not asked.
"""

from __future__ import annotations

import resource
from ipaddress import ip_address
from typing import TYPE_CHECKING

from preforkmx.config.certificate import certificate_problems
from preforkmx.config.problem import Problem
from preforkmx.config.schema import Greylist, RateLimit
from preforkmx.session.listener import split_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from preforkmx.config.read import Draft

OTHER_FILES = 256
"""File descriptors that a worker needs beside one for each session: listeners, channels, the
store, the log, the library's own, and one for each file that a delivery thread writes."""


def required(draft: Draft) -> Iterator[Problem]:
    """Without an application the file names the host, the domains and the delivery."""
    if "listener" not in draft.given:
        yield Problem(("listener",), "is required", "[[listener]] with an address")
    if draft.circumstances.app:
        return
    if "hostname" not in draft.given:
        yield Problem(("hostname",), "is required", 'such as "mx.example.com"')
    if "domains" not in draft.given:
        hint = 'whose recipients are taken: ["example.com"]'
        yield Problem(("domains",), "is required", hint)
    if "delivery" not in draft.given:
        yield Problem(("delivery",), "is required", '[delivery] with use = "maildir" and a path')


def given_by_the_app(draft: Draft) -> Iterator[Problem]:
    """An application has its own handler and its own limits."""
    if draft.circumstances.app:
        for name in sorted(draft.given & {"delivery", "limits"}):
            yield Problem((name,), "belongs to the application that --app names", "leave it out")


def distinct_addresses(draft: Draft) -> Iterator[Problem]:
    """Every address is listened on once; port 0 is another port each time."""
    seen: dict[tuple[object, int], int] = {}
    for index, listener in draft.listener.items():
        host, port = split_address(listener.address)
        first = seen.setdefault((ip_address(host), port), index)
        if port and first != index:
            yield Problem(
                ("listener", index, "address"),
                "is listened on twice",
                f"listener[{first}] has it already",
                listener.address,
            )


def loopback(draft: Draft) -> Iterator[Problem]:
    """Without a configuration file nobody but this machine is served."""
    if not draft.circumstances.loopback_only:
        return
    for index, listener in draft.listener.items():
        if not ip_address(split_address(listener.address)[0]).is_loopback:
            yield Problem(
                ("listener", index, "address"),
                "must be loopback without a configuration file",
                "start from `preforkmx config example`",
                listener.address,
            )


def tls_for_listeners(draft: Draft) -> Iterator[Problem]:
    """Implicit TLS needs a certificate; STARTTLS is offered where there is one.

    An application may have a context of its own, which nobody knows before it is imported.
    """
    if "tls" in draft.given or draft.circumstances.app:
        return
    for index, listener in draft.listener.items():
        if listener.tls == "implicit":
            yield Problem(
                ("listener", index, "tls"),
                "needs a certificate",
                "add [tls] with certificate and key",
                listener.tls,
            )


def certificate(draft: Draft) -> Iterator[Problem]:
    """Certificate and key can be read and belong together."""
    if draft.tls is not None and draft.circumstances.look_at_files:
        yield from certificate_problems(draft.tls)


def open_files(draft: Draft) -> Iterator[Problem]:
    """A worker can hold as many sessions as it may have."""
    if draft.workers is None or draft.circumstances.open_files == resource.RLIM_INFINITY:
        return
    if draft.workers.max_sessions + OTHER_FILES > draft.circumstances.open_files:
        most = draft.circumstances.open_files - OTHER_FILES
        yield Problem(
            ("workers", "max_sessions"),
            f"does not fit the limit of {draft.circumstances.open_files} open files",
            f"at most {most}, or raise the limit (ulimit -Hn, LimitNOFILE=)",
            draft.workers.max_sessions,
        )


def rate_limits(draft: Draft) -> Iterator[Problem]:
    """A table of limits names one, and a burst is the burst of something."""
    for index, table in draft.middleware.items():
        if not isinstance(table, RateLimit):
            continue
        path = ("middleware", index)
        if table.burst is not None and table.connections is None:
            hint = 'it is the burst of connections = "…"'
            yield Problem((*path, "burst"), "limits nothing", hint, table.burst)
        elif table.connections is None and table.concurrent is None:
            yield Problem(path, "limits nothing", "name connections or concurrent")


def greylist_times(draft: Draft) -> Iterator[Problem]:
    """A second try has a time in which it is taken."""
    for index, table in draft.middleware.items():
        if isinstance(table, Greylist) and table.delay >= table.window:
            yield Problem(("middleware", index, "window"), "must be longer than delay")


RULES: tuple[Callable[[Draft], Iterable[Problem]], ...] = (
    required,
    given_by_the_app,
    distinct_addresses,
    loopback,
    tls_for_listeners,
    certificate,
    open_files,
    rate_limits,
    greylist_times,
)
"""Every rule; their order does not matter."""
