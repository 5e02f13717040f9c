"""Heartbeats: shared memory in which every process says that its event loop still turns.

The memory is a memfd that the master maps before it forks; a child inherits the mapping. It
is cut into cells of 64 octets, one a process (a reload has two processes in a slot), each of
aligned 64-bit words:

====  ============  =========================================
word  name          meaning
====  ============  =========================================
0     beat          grows by one with each beat; 0: none yet
1     sessions      open sessions
2     in_data       sessions between 354 and the final reply
3     loop_lag_ms   how late the last beat was, milliseconds
4     messages      messages answered with 250, this process
5     store_away    1: the configured store does not answer it
====  ============  =========================================

An aligned word is written in one piece, so a reader sees the old or the new number and no
lock is needed. The beat is a timer of the event loop: a thread's would stay fresh while the
loop is blocked.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_WORDS = 8
_CELL_OCTETS = _WORDS * 8

BEAT_SECONDS = 0.25
"""The time between two beats of a loop that is not late."""


class Vitals(NamedTuple):
    """What a worker says of itself with each beat."""

    sessions: int = 0
    in_data: int = 0
    messages: int = 0
    store_away: int = 0


class Reading(NamedTuple):
    """What a cell holds."""

    beat: int
    sessions: int
    in_data: int
    loop_lag_ms: int
    messages: int
    store_away: int


class Cell:
    """One process's part of the memory: that process writes, the master reads."""

    __slots__ = ("_start", "_words", "index")

    def __init__(self, words: memoryview[int], index: int) -> None:
        self._words = words
        self._start = index * _WORDS
        self.index = index

    def reset(self) -> None:
        """Set every word to 0, for the next process (the master does, before it forks)."""
        for offset in range(_WORDS):
            self._words[self._start + offset] = 0

    def write(self, vitals: Vitals, loop_lag_ms: int) -> None:
        """Write the numbers, then the next beat."""
        words, start = self._words, self._start
        words[start + 1] = vitals.sessions
        words[start + 2] = vitals.in_data
        words[start + 3] = loop_lag_ms
        words[start + 4] = vitals.messages
        words[start + 5] = vitals.store_away
        words[start] += 1

    def read(self) -> Reading:
        """Return the numbers as they are now."""
        start = self._start
        return Reading(*self._words[start : start + 6])


class HeartbeatMemory:
    """The shared memory and its cells.

    :param cells: how many processes may be alive at once.
    :param fd: the memory of an earlier program in this process, which has its own number of
        cells.
    """

    def __init__(self, cells: int, fd: int | None = None) -> None:
        self.fd = os.memfd_create("preforkmx-heartbeat", os.MFD_CLOEXEC) if fd is None else fd
        try:
            if fd is None:
                os.ftruncate(self.fd, cells * _CELL_OCTETS)
            else:
                cells = os.fstat(fd).st_size // _CELL_OCTETS
            self._map = mmap.mmap(self.fd, cells * _CELL_OCTETS)
        except BaseException:
            os.close(self.fd)
            raise
        self._octets = memoryview(self._map)
        self._words: memoryview[int] = self._octets.cast("Q")
        self.cells = tuple(Cell(self._words, index) for index in range(cells))

    def leave(self) -> None:
        """Close the descriptor and keep the mapping: in a child, which writes its cell."""
        os.close(self.fd)

    def close(self) -> None:
        """Unmap the memory; no cell may be used after this."""
        self._words.release()
        self._octets.release()
        self._map.close()
        os.close(self.fd)


class Heart:
    """The timer that beats, in the loop that it watches.

    :param cell: where to.
    :param vitals: called at each beat; it must be cheap.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, cell: Cell, vitals: Callable[[], Vitals]
    ) -> None:
        self._loop = loop
        self._cell = cell
        self._vitals = vitals
        self._due = 0.0

    def start(self) -> None:
        """Beat at once, then every :data:`BEAT_SECONDS` until the loop ends."""
        self._due = self._loop.time()
        self._beat()

    def _beat(self) -> None:
        now = self._loop.time()
        self._cell.write(self._vitals(), max(0, round((now - self._due) * 1000)))
        self._due = now + BEAT_SECONDS
        self._loop.call_at(self._due, self._beat)
