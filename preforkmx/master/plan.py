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
    from preforkmx.workers.privileges import Identity
    from preforkmx.workers.seat import WorkerSeat


MOST_SLOTS = 1024
"""Worker slots there are at most, as ``workers.count`` may say and TTIN may make."""


@dataclass(frozen=True, slots=True)
class StorePlan:
    """The embedded store process.

    :param socket: the unix socket that the workers' clients connect to; the master makes it.
    :param database: the file that greylist history is written behind to.
    """

    socket: Path
    database: Path


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
    :param store: the embedded store process; None when the state is each process's own. Where
        the state is in Redis, it is what is asked while that is away.
    :param state_url: where the shared state is, without a password: for ``status``.
    :param drain_seconds: what sessions get to end in a drain.
    :param hang_seconds: a loop that is silent for so long is killed.
    :param max_sessions: open sessions of one worker; each takes a descriptor.
    :param lame_duck_seconds: how long a final drain refuses health checks, and still serves
        clients, before it takes no more connections.
    :param recycle_after_messages: a worker that has taken about so many is replaced; 0: never.
    :param identity: who every process but the master becomes; None: nobody else.
    :param admin_address: HOST:PORT that the admin process serves; ``""``: there is none.
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
    lame_duck_seconds: float = 0.0
    recycle_after_messages: int = 0
    identity: Identity | None = None
    admin_address: str = ""
    state_url: str = "local:"


def restart_problems(old: Plan, new: Plan) -> list[str]:
    """Return what in `new` a reload cannot bring: one store process serves all generations."""
    problems = []
    if new.store != old.store:
        problems.append(
            "a change of state.url that ends, begins or moves the store process takes a restart"
        )
    if new.identity != old.identity:
        # The store's socket and database are the old user's.
        problems.append("a change of workers.user or workers.group takes a restart")
    return problems
