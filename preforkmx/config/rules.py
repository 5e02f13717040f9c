"""The rules about several keys at once.

A rule yields a problem for each way in which the tables that are in order contradict each
other; a table in which something else is wrong is None in the draft, and is not asked.
"""

from __future__ import annotations

import grp
import pwd
import resource
from ipaddress import ip_address
from typing import TYPE_CHECKING

from preforkmx.config.certificate import certificate_problems
from preforkmx.config.delivery_tables import Maildir, NextHop, Smtp
from preforkmx.config.middleware_tables import (
    RBL,
    AuthenticationResults,
    Greylist,
    RateLimit,
    Recipients,
    RequireAuth,
    Users,
)
from preforkmx.config.problem import Problem
from preforkmx.middleware.rbl import MAX_LISTS
from preforkmx.session.listener import split_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from preforkmx.config.read import Draft
    from preforkmx.config.schema import ListenerTable

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
    """An application has its own handler, its own limits and its own extensions."""
    if draft.circumstances.app:
        for name in sorted(draft.given & {"delivery", "extensions", "limits"}):
            yield Problem((name,), "belongs to the application that --app names", "leave it out")


def distinct_addresses(draft: Draft) -> Iterator[Problem]:
    """Every address is listened on once; port 0 is another port each time."""
    seen: dict[tuple[object, ...], str] = {}
    if draft.admin is not None:
        control = draft.admin.control
        for beside in ("", ".store", ".lock", ".db", ".state"):
            path = control.with_name(control.name + beside)
            seen[f"unix:{path}",] = f"[admin] control has {path.name} already"
        if draft.admin.address:
            host, port = split_address(draft.admin.address)
            if port != 0:
                seen[ip_address(host), port] = "[admin] address is that already"
    for index, listener in draft.listener.items():
        place = _place(listener)
        taken = seen.get(place)
        if taken is not None:
            where = ("listener", index, "address")
            yield Problem(where, "is listened on twice", taken, listener.address)
        elif place[-1] != 0:
            seen[place] = f"listener[{index}] has it already"


def loopback(draft: Draft) -> Iterator[Problem]:
    """Without a configuration file nobody but this machine is served."""
    if not draft.circumstances.loopback_only:
        return
    admin = "" if draft.admin is None else draft.admin.address
    if admin and not ip_address(split_address(admin)[0]).is_loopback:
        yield Problem(
            ("admin", "address"),
            "must be loopback without a configuration file",
            "start from `preforkmx config example`",
            admin,
        )
    for index, listener in draft.listener.items():
        if _is_unix(listener):
            continue
        if not ip_address(split_address(listener.address)[0]).is_loopback:
            yield Problem(
                ("listener", index, "address"),
                "must be loopback without a configuration file",
                "start from `preforkmx config example`",
                listener.address,
            )


def lmtp_ports(draft: Draft) -> Iterator[Problem]:
    """LMTP is never spoken on the port of SMTP (RFC 2033 section 5)."""
    for index, listener in draft.listener.items():
        if listener.protocol == "lmtp" and _place(listener)[-1] == 25:
            yield Problem(
                ("listener", index, "protocol"),
                "must not be on port 25 (RFC 2033 section 5)",
                "24 is the usual one, or a unix socket",
                listener.protocol,
            )


def proxies(draft: Draft) -> Iterator[Problem]:
    """Who is believed is said where it means something, and nowhere else."""
    for index, listener in draft.listener.items():
        path = ("listener", index)
        proxy_from = [str(network) for network in listener.proxy_from]
        if listener.proxy_protocol and not proxy_from and not _is_unix(listener):
            yield Problem(
                (*path, "proxy_protocol"),
                "needs proxy_from",
                'whose headers are believed: ["10.0.0.0/8"]',
                value=True,
            )
        if proxy_from and not listener.proxy_protocol:
            hint = "add proxy_protocol = true, or leave it out"
            yield Problem((*path, "proxy_from"), "needs proxy_protocol", hint, proxy_from)
        elif proxy_from and _is_unix(listener):
            yield Problem(
                (*path, "proxy_from"),
                "matches nobody: a client of a unix socket has no address",
                "leave it out: whoever may connect is believed",
                proxy_from,
            )
        if listener.xclient_from and _is_unix(listener) and not listener.proxy_protocol:
            yield Problem(
                (*path, "xclient_from"),
                "matches nobody: a client of a unix socket has no address",
                "leave it out, or listen on loopback",
                [str(network) for network in listener.xclient_from],
            )


def promises(draft: Draft) -> Iterator[Problem]:
    """What is promised to a sender for its message's way is kept.

    A site's own delivery says what it can keep when it is imported.
    """
    if draft.extensions is None or not isinstance(draft.delivery, Maildir):
        return
    if draft.circumstances.app:
        return
    if draft.extensions.dsn:
        yield Problem(
            ("extensions", "dsn"),
            "cannot be kept by maildir: it sends no notifications",
            "leave it out",
            value=True,
        )
    if draft.extensions.requiretls:
        yield Problem(
            ("extensions", "requiretls"),
            "cannot be kept by maildir: it marks no message for those that read or forward it",
            "leave it out",
            value=True,
        )


def next_hops(draft: Draft) -> Iterator[Problem]:
    """What a delivery to other servers is told fits together."""
    table = draft.delivery
    if not isinstance(table, NextHop) or draft.circumstances.app:
        return
    path = ("delivery",)
    if bool(table.user) != (table.password_file is not None):
        missing, given = ("password_file", "user") if table.user else ("user", "password_file")
        yield Problem((*path, given), f"needs {missing}", value=str(getattr(table, given)))
    if table.key is not None and table.certificate is None:
        yield Problem((*path, "key"), "needs certificate", value=str(table.key))
    if table.tls == "off":
        for name in ("ca_file", "tls_name", "certificate"):
            value = getattr(table, name)
            if value is not None:
                yield Problem((*path, name), "changes nothing", 'tls = "off"', str(value))
        if draft.extensions is not None and draft.extensions.requiretls:
            hint = 'the delivery needs tls = "verify"'
            yield Problem(("extensions", "requiretls"), "cannot be kept", hint, value=True)


def open_relay(draft: Draft) -> Iterator[Problem]:
    """Nobody from anywhere can send mail to anywhere."""
    if not isinstance(draft.delivery, Smtp) or draft.domains != ("*",):
        return
    if draft.circumstances.app or any(
        isinstance(table, RequireAuth) for table in draft.middleware.values()
    ):
        return
    public = [each for each in draft.listener.values() if not _is_local(each)]
    if public:
        yield Problem(
            ("domains",),
            "would make this an open relay",
            f"name the domains, add require_auth, or listen on loopback, not {public[0].address}",
            ["*"],
        )


def bare_newlines(draft: Draft) -> Iterator[Problem]:
    """Networks that may send bare newlines are an exception from a refusal."""
    limits = draft.limits
    if limits is not None and limits.normalize_from and limits.bare_newline == "normalize":
        yield Problem(
            ("limits", "normalize_from"),
            "changes nothing",
            'bare_newline = "normalize" is for everybody',
            [str(network) for network in limits.normalize_from],
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


def tls_for_users(draft: Draft) -> Iterator[Problem]:
    """Users authenticate under TLS only, so without it there is no use for them.

    An application may have a context of its own.
    """
    if draft.circumstances.app:
        return
    plain = draft.listener and all(each.tls == "off" for each in draft.listener.values())
    if "tls" in draft.given and not plain:
        return
    for index, table in draft.middleware.items():
        if isinstance(table, Users):
            hint = "AUTH is offered under TLS: "
            hint += "a listener needs it" if plain else "add [tls] with certificate and key"
            yield Problem(("middleware", index, "use"), "lets nobody in", hint, table.use)


def certificate(draft: Draft) -> Iterator[Problem]:
    """Certificate and key can be read and belong together."""
    if draft.tls is not None and draft.circumstances.look_at_files:
        yield from certificate_problems(draft.tls)


def accounts(draft: Draft) -> Iterator[Problem]:
    """User and group are there, and a group is the group of a user."""
    if draft.workers is None or not draft.circumstances.look_at_files:
        return
    user, group = draft.workers.user, draft.workers.group
    if user and not _known(pwd.getpwnam, user):
        hint = f"useradd --system {user}"
        yield Problem(("workers", "user"), "does not exist on this machine", hint, user)
    if group and not user:
        yield Problem(("workers", "group"), "needs user", "whose group it is to be", group)
    elif group and not _known(grp.getgrnam, group):
        hint = f"groupadd --system {group}"
        yield Problem(("workers", "group"), "does not exist on this machine", hint, group)


def _known(look_up: Callable[[str], object], name: str) -> bool:
    try:
        look_up(name)
    except KeyError:
        return False
    return True


def open_files(draft: Draft) -> Iterator[Problem]:
    """A worker can hold as many sessions as it may have."""
    if draft.workers is None or draft.circumstances.open_files == resource.RLIM_INFINITY:
        return
    others = OTHER_FILES
    if isinstance(draft.delivery, NextHop):
        others += draft.delivery.connections
    if draft.workers.max_sessions + others > draft.circumstances.open_files:
        most = draft.circumstances.open_files - others
        yield Problem(
            ("workers", "max_sessions"),
            f"does not fit the limit of {draft.circumstances.open_files} open files",
            f"at most {most}, or raise the limit (ulimit -Hn, LimitNOFILE=)",
            draft.workers.max_sessions,
        )


LIMITS = tuple(key for key in RateLimit.model_fields if key not in {"use", "burst", "allow"})
"""The keys of a table of limits that are one."""


def rate_limits(draft: Draft) -> Iterator[Problem]:
    """A table of limits names one, and a burst is the burst of something."""
    for index, table in draft.middleware.items():
        if not isinstance(table, RateLimit):
            continue
        path = ("middleware", index)
        if table.burst is not None and table.connections is None:
            hint = 'it is the burst of connections = "…"'
            yield Problem((*path, "burst"), "limits nothing", hint, table.burst)
        elif not any(getattr(table, limit) for limit in LIMITS):
            yield Problem(path, "limits nothing", f"name one of {', '.join(LIMITS)}")


def greylist_times(draft: Draft) -> Iterator[Problem]:
    """A second try has a time in which it is taken."""
    for index, table in draft.middleware.items():
        if isinstance(table, Greylist) and table.delay >= table.window:
            yield Problem(("middleware", index, "window"), "must be longer than delay")


_CALL_FORWARD = (
    "call_forward_protocol",
    "call_forward_deadline",
    "call_forward_connections",
    "known_for",
    "unknown_for",
)
"""The keys of a table of recipients that say how the servers behind this one are asked."""


def recipient_sources(draft: Draft) -> Iterator[Problem]:
    """Somebody knows the recipients, and every key of their table is about something."""
    for index, table in draft.middleware.items():
        if not isinstance(table, Recipients):
            continue
        path = ("middleware", index)
        if table.file is None and table.redis_set is None and table.call_forward is None:
            yield Problem(path, "knows nobody", "name one of file, redis_set, call_forward")
        given = table.model_fields_set
        pointless = {key: "call_forward" for key in _CALL_FORWARD if table.call_forward is None}
        if table.unknown is None:
            pointless["allow"] = "unknown"
        if not table.separator:
            pointless["extension"] = "a separator"
        for key, without in pointless.items():
            if key in given:
                yield Problem((*path, key), f"means nothing without {without}", "leave it out")


def one_field_of_results(draft: Draft) -> Iterator[Problem]:
    """Results stand in one field: a second table would take out what the first one wrote."""
    tables = [i for i, each in draft.middleware.items() if isinstance(each, AuthenticationResults)]
    for index in tables[1:]:
        hint = f"middleware[{tables[0]}] writes them"
        yield Problem(("middleware", index, "use"), "stands here twice", hint)


def block_lists(draft: Draft) -> Iterator[Problem]:
    """An RBL asks lists, each of which changes something, and that can reach its threshold."""
    for index, table in draft.middleware.items():
        if not isinstance(table, RBL):
            continue
        path = ("middleware", index)
        if not 1 <= len(table.list) <= MAX_LISTS:
            yield Problem(path, f"needs 1 to {MAX_LISTS} lists", "[[middleware.list]] with a zone")
        for number, each in enumerate(table.list):
            where = (*path, "list", number, "weight")
            if each.weight == 0:
                yield Problem(where, "changes nothing", value=0)
            elif each.weight < 0 and each.kind == "domain":
                hint = "a client chooses its names"
                yield Problem(where, "must not vouch for names", hint, each.weight)
        most = sum(max(each.weight, 0) for each in table.list)
        if 0 < most < table.threshold:
            hint = f"all lists together weigh {most}"
            yield Problem((*path, "threshold"), "is never reached", hint, table.threshold)


RULES: tuple[Callable[[Draft], Iterable[Problem]], ...] = (
    required,
    given_by_the_app,
    distinct_addresses,
    loopback,
    lmtp_ports,
    proxies,
    promises,
    next_hops,
    open_relay,
    bare_newlines,
    tls_for_listeners,
    tls_for_users,
    certificate,
    accounts,
    open_files,
    rate_limits,
    greylist_times,
    recipient_sources,
    one_field_of_results,
    block_lists,
)
"""Every rule; their order does not matter."""


def _is_unix(listener: ListenerTable) -> bool:
    return listener.address.startswith("unix:")


def _is_local(listener: ListenerTable) -> bool:
    return _is_unix(listener) or ip_address(split_address(listener.address)[0]).is_loopback


def _place(listener: ListenerTable) -> tuple[object, ...]:
    """Return what two spellings of one address have in common."""
    if _is_unix(listener):
        return (listener.address,)
    host, port = split_address(listener.address)
    return ip_address(host), port
