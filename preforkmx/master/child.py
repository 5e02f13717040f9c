"""Child: one forked process, as its master sees it."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Literal, Self

from preforkmx.master.handover import ChildState
from preforkmx.workers.channel import Channel
from preforkmx.workers.reports import cut

if TYPE_CHECKING:
    from preforkmx.workers.channel import Message
    from preforkmx.workers.heartbeat import Cell, Reading
    from preforkmx.workers.reports import Document

_logger = logging.getLogger("preforkmx.master")

State = Literal["booting", "ready", "draining", "gone"]

MOST_PROBLEMS = 100
"""That one process may name: it runs the site's code, and could go on for ever."""
ABORT_SECONDS = 2.0
"""From SIGABRT, at which a process prints its stack, to SIGKILL."""


class Child:
    """One forked process.

    The process id of a child cannot be another's before it is reaped, and only this class
    reaps it; signals go through the pidfd all the same.

    :param name: what the log calls it: ``"worker 2"``.
    :param channel: the master's end.
    :param cell: its heartbeat; None for a process that does not beat.
    :param boot_seconds: it is killed when it is not ready by then.
    :param now: by the master's clock.
    """

    def __init__(
        self,
        name: str,
        pid: int,
        channel: Channel,
        cell: Cell | None,
        *,
        generation: int,
        boot_seconds: float,
        now: float,
    ) -> None:
        self.name = name
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.channel = channel
        self.cell = cell
        self.generation = generation
        self.state: State = "booting"
        self.problems: list[str] = []
        """Why it could not start, or what a checker found."""
        self.aborted = False
        """It was sent SIGABRT: late or hanging."""
        self.hung = False
        """Its loop has been silent for too long to be waited for."""
        self.wants_replacement = False
        self.asks: int | None = None
        """The number of its question for the status document, until it is answered."""
        self.started = time.time()
        """When it was forked, in seconds since 1970."""
        self.status: int | None = None
        """Once it is gone: its exit status, or minus the signal that ended it."""
        self.ready_at: float | None = None
        self.gone_at: float | None = None
        self.kill_at: float | None = None
        """When it gets SIGKILL, by the master's clock."""
        self.boot_by = now + boot_seconds
        self._out_of_reach = False
        self._boot_seconds = boot_seconds
        self._beat = 0
        self._beat_changed = now

    def hand_over(self) -> ChildState:
        """Return what another program in this process needs to have this child; it is alive."""
        assert self.state != "gone"
        return ChildState(
            name=self.name,
            pid=self.pid,
            channel=self.channel.fileno(),
            unsent=tuple(json.dumps(message) for message in self.channel.unsent()),
            cell=None if self.cell is None else self.cell.index,
            generation=self.generation,
            state=self.state,
            problems=tuple(self.problems),
            aborted=self.aborted,
            hung=self.hung,
            wants_replacement=self.wants_replacement,
            asks=self.asks,
            started=self.started,
            ready_at=self.ready_at,
            kill_at=self.kill_at,
            boot_by=self.boot_by,
            boot_seconds=self._boot_seconds,
            beat=self._beat,
            beat_changed=self._beat_changed,
        )

    @classmethod
    def taken_over(cls, state: ChildState, cell: Cell | None) -> Self:
        """Return the child of an earlier program in this process.

        It may be dead by now: until it is reaped, nobody else gets its process id.

        :raises OSError: there is no descriptor to be had.
        """
        unsent = [json.loads(message) for message in state.unsent]
        child = cls(
            state.name,
            state.pid,
            Channel(socket.socket(fileno=state.channel), unsent),
            cell,
            generation=state.generation,
            boot_seconds=state.boot_seconds,
            now=state.beat_changed,
        )
        child.state = state.state
        child.problems = list(state.problems)
        child.aborted = state.aborted
        child.hung = state.hung
        child.wants_replacement = state.wants_replacement
        child.asks = state.asks
        child.started = state.started
        child.ready_at = state.ready_at
        child.kill_at = state.kill_at
        child.boot_by = state.boot_by
        child._beat = state.beat
        return child

    @property
    def alive(self) -> bool:
        """Whether it has not been reaped."""
        return self.state != "gone"

    @property
    def healthy_seconds(self) -> float:
        """How long it was ready before it went, 0 when it never was."""
        if self.ready_at is None or self.gone_at is None:
            return 0.0
        return self.gone_at - self.ready_at

    @property
    def end(self) -> str:
        """How it ended, for the log."""
        status = self.status
        if status is None:
            return "still runs"
        if status >= 0:
            return f"exit status {status}"
        try:
            return f"killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"killed by signal {-status}"

    def reading(self) -> Reading | None:
        """Return what its heartbeat says."""
        return None if self.cell is None else self.cell.read()

    def silent_seconds(self, now: float) -> float:
        """Return since when its loop has not turned; 0 before its first beat."""
        reading = self.reading()
        if reading is None or reading.beat == 0:
            return 0.0
        if reading.beat != self._beat:
            self._beat = reading.beat
            self._beat_changed = now
        return now - self._beat_changed

    def silent_at(self, seconds: float) -> float | None:
        """Return when its loop will have been silent for so long, if it has not been yet."""
        reading = self.reading()
        if reading is None or reading.beat == 0 or self.hung or self.state == "booting":
            return None
        return self._beat_changed + seconds

    def forgive(self, now: float) -> None:
        """Begin to measure its silence anew."""
        self._beat_changed = now
        self.hung = False

    def take(self, message: Message, now: float) -> None:
        """Take a message about its own life."""
        kind = message["type"]
        if kind == "ready" and self.state == "booting":
            self.state = "ready"
            self.ready_at = now
        elif kind == "failed":
            problems = message.get("problems")
            if isinstance(problems, list):
                room = MOST_PROBLEMS - len(self.problems)
                self.problems += [str(problem) for problem in problems[: max(room, 0)]]
        elif kind == "replace":
            self.wants_replacement = True
        elif kind == "ask":
            serial = message.get("serial")
            self.asks = serial if type(serial) is int else None

    def tell(self, document: Document) -> None:
        """Answer its question."""
        if self.asks is None:
            return
        for kind, values in cut(document, self.asks):
            self.channel.post(kind, **values)
        self.asks = None

    def retire(self, seconds: float) -> None:
        """Let it close its listeners and its sessions end by themselves."""
        if not self.alive:
            return
        self.state = "draining"
        self.channel.post("retire", seconds=seconds)

    def drain(self, seconds: float) -> None:
        """Let it close its listeners and end its sessions soon."""
        if not self.alive:
            return
        if self.state == "booting":
            # Before its loop hears the channel SIGTERM ends it, and nobody is served yet.
            self.signal(signal.SIGTERM)
        self.state = "draining"
        self.channel.post("drain", seconds=seconds)

    def lame_duck(self) -> None:
        """Let it refuse health checks from now on."""
        if self.alive:
            self.channel.post("lame_duck")

    def share_with(self, slots: int) -> None:
        """Let a worker know how many slots there are by now; who does not know the message goes
        on with the number that it was forked with."""
        if self.alive:
            self.channel.post("slots", count=slots)

    def stop(self) -> None:
        """Let it abort its sessions and exit."""
        if not self.alive:
            return
        if self.state == "booting":
            self.signal(signal.SIGTERM)
        self.state = "draining"
        self.channel.post("stop")

    def abort(self, now: float) -> None:
        """Let it print its stack and die; SIGKILL follows."""
        self.aborted = True
        self.signal(signal.SIGABRT)
        self.kill_by(now + ABORT_SECONDS)

    def kill(self) -> None:
        """Kill it."""
        self.kill_at = None
        self.signal(signal.SIGKILL)

    def kill_by(self, when: float) -> None:
        """Kill it at this time, or at an earlier one that was set before."""
        self.kill_at = when if self.kill_at is None else min(when, self.kill_at)

    def late(self, now: float) -> bool:
        """Whether it should have been ready by now."""
        return self.state == "booting" and now >= self.boot_by

    def too_slow(self) -> None:
        """Note that it was not ready in time."""
        self.problems.append(f"{self.name} was not ready within {self._boot_seconds:g} s")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens when it is gone.

        It may have become another user in a program that it executed: then a master without
        privileges cannot end it, says so once, and goes on.
        """
        if not self.alive:
            return
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return
        except PermissionError:
            if not self._out_of_reach:
                self._out_of_reach = True
                _logger.error(
                    "%s (process %d) takes no signal from the master", self.name, self.pid
                )

    def reap(self, now: float) -> bool:
        """Take its exit status; False when it has not exited."""
        result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
        if result is None:
            return False
        exited = result.si_code == os.CLD_EXITED
        self.status = result.si_status if exited else -result.si_status
        self.state = "gone"
        self.gone_at = now
        self.kill_at = None
        return True

    def close(self) -> None:
        """Close the descriptors."""
        self.channel.close()
        os.close(self.pidfd)
