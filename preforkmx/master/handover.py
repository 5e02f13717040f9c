"""Handover: all that a master leaves to the program that takes its place.

A re-execution (:mod:`preforkmx.master.reexec`) keeps the process and its descriptors, and
nothing else. What was known of them goes over in this document. Times are those of the
monotonic clock, which the new program shares; a descriptor is named by its number.

Who changes the meaning of a field, of a message of the channel or of a cell of the heartbeats
raises :data:`FORMAT`: such an upgrade is refused, and takes a restart. A field that is new and
has a default needs no new format.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from preforkmx.master.document import BadDocument, parse
from preforkmx.master.errors import StartRefused
from preforkmx.session.listener import Listener  # noqa: TC001 - parse() reads the annotations
from preforkmx.workers.privileges import Identity  # noqa: TC001

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMAT = 1
"""The document's format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildState:
    """A process that is not reaped yet; see :class:`preforkmx.master.child.Child`.

    :param channel: the descriptor of the master's end.
    :param unsent: messages that the channel did not take yet, as JSON.
    :param cell: the index of its heartbeat's cell.
    """

    name: str
    pid: int
    channel: int
    unsent: tuple[str, ...]
    cell: int | None
    generation: int
    state: Literal["booting", "ready", "draining"]
    problems: tuple[str, ...]
    aborted: bool
    hung: bool
    wants_replacement: bool
    asks: int | None
    started: float
    ready_at: float | None
    kill_at: float | None
    boot_by: float
    boot_seconds: float
    beat: int
    beat_changed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotState:
    """A place and the process ids of who is there; see :class:`preforkmx.master.slot.Slot`."""

    index: int | None
    holder: int | None
    successor: int | None
    stand_in: int | None
    retired: tuple[int, ...]
    crashes: int
    refill_at: float | None
    leaving: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PortState:
    """A listener that is open; see :mod:`preforkmx.master.ports`.

    :param sockets: the descriptor of each slot's socket; the same one where they share it.
    :param dropped: what was counted by sockets that are closed.
    :param device: of a unix socket's file.
    :param inode: of a unix socket's file.
    """

    kind: Literal["tcp", "unix", "passed"]
    asked: str
    listener: Listener
    sockets: tuple[int, ...]
    dropped: int = 0
    held: bool = False
    device: int = 0
    inode: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminState:
    """The admin process's port."""

    wanted: str
    address: str
    socket: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreState:
    """The store process's socket and database."""

    path: str
    database: str
    socket: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionState:
    """A client of the control socket. Octets stand as the characters of Latin-1.

    :param busy: it waits for an answer.
    :param active: when it last moved.
    """

    socket: int
    input: str
    output: str
    busy: bool
    last: bool
    held: bool
    active: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlState:
    """The control socket and its clients."""

    path: str
    socket: int
    connections: tuple[ConnectionState, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """One of the totals."""

    name: str
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldingsState:
    """What :class:`preforkmx.master.holdings.Holdings` holds.

    :param listeners: of the generation that serves.
    :param slots: for how many slots there are sockets.
    :param lifeline: reading and writing end.
    :param children: all of them, also those that are in no slot.
    """

    lock: int
    control: ControlState
    listeners: tuple[Listener, ...]
    slots: int
    ports: tuple[PortState, ...]
    admin: AdminState | None
    store: StoreState | None
    lifeline: tuple[int, ...]
    memory: int
    children: tuple[ChildState, ...]
    totals: tuple[Count, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolState:
    """Who is where; see :class:`preforkmx.master.pool.Pool`."""

    generation: int
    crashes: int
    slots: tuple[SlotState, ...]
    former: tuple[SlotState, ...]
    store: SlotState | None
    admin: SlotState


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """All that a master leaves.

    :param version: of the program that wrote it.
    :param pid: of the master.
    :param started: when the master started: RFC 3339, UTC.
    :param reloads: the number of the last reload that was tried.
    :param signals: those that came and were not looked at.
    :param mask: the signals that were blocked before all of them were.
    """

    format: int
    version: str
    pid: int
    started: str
    reloads: int
    identity: Identity | None
    holdings: HoldingsState
    pool: PoolState
    signals: tuple[int, ...]
    mask: tuple[int, ...]

    def descriptors(self) -> Iterator[int]:
        """Return every descriptor that goes over, each once."""
        holdings = self.holdings
        numbers = [holdings.lock, holdings.memory, *holdings.lifeline, holdings.control.socket]
        numbers += [connection.socket for connection in holdings.control.connections]
        numbers += [number for port in holdings.ports for number in port.sockets]
        numbers += [place.socket for place in (holdings.admin, holdings.store) if place is not None]
        numbers += [child.channel for child in holdings.children]
        return iter(sorted(set(numbers)))


def read_handover(octets: bytes) -> Handover:
    """Return a handover as :func:`preforkmx.master.document.render` has written it.

    :raises StartRefused: this version of the program cannot take over from the one that wrote
        it.
    """
    try:
        # Another format has other keys: its number is read alone, from as little as there is.
        number = _format(octets)
        if number != FORMAT:
            raise BadDocument(f"its state has format {number}, and this program reads {FORMAT}")
        return parse(Handover, octets)
    except BadDocument as error:
        raise StartRefused(f"the running master cannot be taken over from: {error}") from None


def _format(octets: bytes) -> object:
    try:
        document = json.loads(octets)
    except (ValueError, RecursionError):
        raise BadDocument("its state is not JSON") from None
    return document.get("format") if isinstance(document, dict) else None
