"""WorkerSeat: what a worker is told about its place among the others."""

from __future__ import annotations

from dataclasses import dataclass, field

from preforkmx.observe.log import LogWriter


@dataclass(frozen=True, slots=True)
class WorkerSeat:
    """One worker's place. A server for it is built after the fork, in the worker.

    :param slot: the slot's number, from 0: the index of its socket in every reuseport group.
    :param count: how many slots there are; a limit of one process is the whole divided by it.
    :param generation: which configuration this worker runs with; a reload makes the next one.
    :param log: the process's log writer, for the access log.
    """

    slot: int
    count: int
    generation: int
    log: LogWriter = field(default_factory=LogWriter, compare=False, repr=False)
