"""Plan: all that one generation of processes runs with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from preforkmx.server import Server
    from preforkmx.session.listener import Listener
    from preforkmx.workers.loops import LoopName
    from preforkmx.workers.seat import WorkerSeat


@dataclass(frozen=True, slots=True)
class StorePlan:
    """The embedded store process.

    :param socket: the unix socket that the workers' clients connect to; the master makes it.
    :param database: the file that greylist history is written behind to.
    :param url: what ``status`` shows.
    """

    socket: Path
    database: Path
    url: str = "embedded:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that one generation of processes runs with, made from the configuration.

    :param hostname: for the process title and ``status``.
    :param listeners: what is listened on, in the order of the configuration.
    :param count: worker slots.
    :param loop: ``"auto"``, ``"uvloop"`` or ``"asyncio"``.
    :param build_server: called in each worker after the fork, before its loop runs; it imports
        the site's code, and raises BootError or ConfigError with the reasons when it cannot.
    :param check: called in a forked process before the start and before a reload; it raises
        ConfigError or BootError.
    :param store: the embedded store process; None when the state is each process's own.
    :param drain_seconds: what sessions get to end in a drain.
    :param hang_seconds: a loop that is silent for so long is killed.
    :param max_sessions: open sessions of one worker; each takes a descriptor.
    """

    hostname: str
    listeners: tuple[Listener, ...]
    count: int
    loop: LoopName
    build_server: Callable[[WorkerSeat], Server]
    check: Callable[[], None]
    store: StorePlan | None
    drain_seconds: float
    hang_seconds: float
    max_sessions: int
    log_format: str
    log_level: str


def restart_problems(old: Plan, new: Plan) -> list[str]:
    """Return what in `new` a reload cannot bring: the sockets and slots belong to the master."""
    problems = []
    if _held(new) != _held(old):
        problems.append(
            "a change of the listeners takes a restart, save one of proxy_from or xclient_from"
        )
    if new.count != old.count:
        problems.append(
            f"a change of workers.count takes a restart: {old.count} workers run, "
            f"{new.count} are asked for"
        )
    if new.store != old.store:
        problems.append("a change of state.url takes a restart")
    return problems


def _held(plan: Plan) -> list[tuple[object, ...]]:
    """Return what the sockets are, and what is spoken on them.

    While a reload brings in new workers, they and the old ones accept from the same sockets: a
    client must not depend on whom it reaches. Whom to trust is each worker's own.
    """
    return [
        (each.address, each.backlog, each.protocol, each.tls, each.proxy_protocol)
        for each in plan.listeners
    ]
