"""WorkerSeat: what a worker is told about its place among the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from preforkmx.observe.log import LogWriter

if TYPE_CHECKING:
    from collections.abc import Callable


class StoreReading(NamedTuple):
    """How a worker gets on with the shared state."""

    away: bool = False
    """It asks a nearer store, or counts by itself, since the configured one does not answer."""
    outages: int = 0
    """How often that began."""
    fallbacks: int = 0
    """Decisions that were not the configured store's."""


@dataclass(slots=True)
class WorkerSeat:
    """One worker's place. A server for it is built after the fork, in the worker.

    :param slot: the slot's number, from 0: the index of its socket in every reuseport group.
    :param count: how many slots there are; a limit of one process is the whole divided by it.
        The worker changes it when the master says so.
    :param generation: which configuration this worker runs with; a reload makes the next one.
    :param log: the process's log writer, for the access log.
    :param store: whoever builds the server puts here what looks at its store.
    """

    slot: int
    count: int
    generation: int
    log: LogWriter = field(default_factory=LogWriter, compare=False, repr=False)
    store: Callable[[], StoreReading] = field(default=StoreReading, compare=False, repr=False)
