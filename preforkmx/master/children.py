"""Children: every process that the master has forked and not yet reaped."""

from __future__ import annotations

import logging
import os
import signal
from functools import partial
from typing import TYPE_CHECKING

from preforkmx.master.child import Child
from preforkmx.workers.channel import Channel
from preforkmx.workers.process import fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from preforkmx.master.handover import ChildState
    from preforkmx.master.reactor import Reactor
    from preforkmx.master.totals import Totals
    from preforkmx.workers.heartbeat import Cell, HeartbeatMemory

LOOK_SECONDS = 0.25
"""How often heartbeats are looked at, at the least."""
SILENT_SECONDS = 3.0
"""A loop that is silent for so long is not waited for. A sleep in a hook is shorter, and who
queues meanwhile is greeted in less than 4 s: 0.25 s may pass until a beat is seen."""
MASTER_PAUSE_SECONDS = 2.0
"""A master that did not look for so long was stopped, and its workers maybe with it: their
silence is no fault of theirs, and is measured anew. Shorter than SILENT_SECONDS, or a pause
between the two would be taken for a silence of all."""

_LAST_READS = 64

_logger = logging.getLogger("preforkmx.master")


class Children:
    """Forks, hears, watches and reaps.

    :param memory: a cell for every process that may be alive at once.
    :param totals: where workers' counters are added up.
    :param clock: seconds that only grow.
    :param silent_seconds: a child that is ready, and whose loop is silent for so long, is hung.
    """

    def __init__(
        self,
        reactor: Reactor,
        memory: HeartbeatMemory,
        totals: Totals,
        clock: Callable[[], float],
        *,
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        self._reactor = reactor
        self._totals = totals
        self._clock = clock
        self._silent_seconds = silent_seconds
        self._children: list[Child] = []
        self._cells = list(memory.cells)
        self._looked = clock()

    def __iter__(self) -> Iterator[Child]:
        return iter(self._children[:])

    def __len__(self) -> int:
        return len(self._children)

    def start(
        self,
        name: str,
        run: Callable[[Channel, Cell], int],
        *,
        generation: int,
        boot_seconds: float,
    ) -> Child:
        """Fork a child that calls `run` with its end of the channel and its cell.

        `run` closes what is the master's first, and returns the exit status.

        :raises OSError: there is no process, descriptor or cell to be had.
        """
        if not self._cells:
            raise OSError("as many processes as there may be are alive")
        cell = self._cells.pop()
        cell.reset()
        try:
            ours, theirs = Channel.pair()
        except OSError:
            self._cells.append(cell)
            raise

        def become() -> int:
            ours.close()
            return run(theirs, cell)

        try:
            pid = fork(become)
            try:
                child = Child(
                    name,
                    pid,
                    ours,
                    cell,
                    generation=generation,
                    boot_seconds=boot_seconds,
                    now=self._clock(),
                )
            except OSError:
                # No descriptor for its pidfd: what cannot be supervised must not run.
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise
        except OSError:
            ours.close()
            self._cells.append(cell)
            raise
        finally:
            theirs.close()
        self._watch(child)
        _logger.debug("%s started: process %d", name, pid)
        return child

    def _watch(self, child: Child) -> None:
        self._children.append(child)
        self._reactor.watch(child.channel, partial(self._hear, child))
        self._reactor.watch(child.pidfd, partial(self._reap, child))

    def hand_over(self) -> tuple[ChildState, ...]:
        """Return what another program in this process needs to have them all."""
        return tuple(child.hand_over() for child in self._children)

    def take_over(self, states: Iterable[ChildState]) -> None:
        """Have the children of an earlier program in this process.

        :raises OSError: there is no descriptor to be had.
        """
        cells = {cell.index: cell for cell in self._cells}
        for state in states:
            cell = None if state.cell is None else cells.pop(state.cell)
            self._watch(Child.taken_over(state, cell))
        self._cells = list(cells.values())

    def _hear(self, child: Child) -> int:
        """Take the messages that are here; return how many."""
        channel = child.channel
        dropped = channel.dropped
        messages = channel.receive()
        for message in messages:
            if message["type"] == "stats":
                self._totals.add(message.get("counters"))
                continue
            booted = child.ready_at is not None
            child.take(message, self._clock())
            if child.ready_at is not None and not booted:
                _logger.info(
                    "%s is ready: process %d, generation %d",
                    child.name,
                    child.pid,
                    child.generation,
                )
        dropped = channel.dropped - dropped
        if dropped:
            _logger.warning("%s sent %d messages that are none", child.name, dropped)
        if channel.ended:
            # Its exit shows on the pidfd.
            self._reactor.forget(channel)
        return len(messages) + dropped

    def _reap(self, child: Child) -> None:
        if not child.reap(self._clock()):
            return
        # Its last counters, and why it failed, are still in the channel. The end may never
        # come: a process that the site started may hold the channel too.
        for _ in range(_LAST_READS):
            if child.channel.ended or not self._hear(child):
                break
        self._reactor.forget(child.channel)
        self._reactor.forget(child.pidfd)
        child.close()
        self._children.remove(child)
        if child.cell is not None:
            self._cells.append(child.cell)
            child.cell = None

    def look(self, hang_seconds: float) -> None:
        """Note whose loop is silent, and kill who is late, who hangs, and whose time is over.

        Call this in every turn.
        """
        now = self._clock()
        paused = now - self._looked > MASTER_PAUSE_SECONDS
        self._looked = now
        for child in self._children:
            if paused:
                child.forgive(now)
            child.channel.flush()
            self._listen_for_beats(child, now)
            if child.kill_at is not None and now >= child.kill_at:
                _logger.warning("%s (process %d) is killed", child.name, child.pid)
                child.kill()
            elif child.aborted:
                continue
            elif child.late(now):
                child.too_slow()
                child.abort(now)
            elif child.silent_seconds(now) > hang_seconds:
                _logger.error(
                    "the loop of %s (process %d) has been silent for %g s: SIGABRT",
                    child.name,
                    child.pid,
                    hang_seconds,
                )
                child.abort(now)

    def _listen_for_beats(self, child: Child, now: float) -> None:
        silence = child.silent_seconds(now)
        hung = child.state != "booting" and silence >= self._silent_seconds
        if hung and not child.hung:
            _logger.warning(
                "the loop of %s (process %d) has been silent for %.1f s",
                child.name,
                child.pid,
                silence,
            )
        elif child.hung and not hung:
            _logger.info("the loop of %s (process %d) turns again", child.name, child.pid)
        child.hung = hung

    def next_look(self) -> float:
        """Return when :meth:`look` is due, by the clock."""
        times = [self._looked + LOOK_SECONDS]
        for child in self._children:
            early = (child.kill_at, child.silent_at(self._silent_seconds))
            times += [when for when in early if when is not None]
        return min(times)

    def leave(self) -> None:
        """Close every descriptor: in a child."""
        for child in self._children:
            child.close()
