"""The last watch: ends a worker that hangs when nobody is left who would."""

from __future__ import annotations

import select
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from preforkmx.workers.channel import Channel
    from preforkmx.workers.heartbeat import Cell

LOOK_SECONDS = 1.0
"""How often it looks."""


class LastWatch:
    """A thread that takes over from a master that is gone.

    Both signs of the master's end, the channel's and SIGTERM, are for the event loop to hear. One
    that does not turn keeps the listeners open: the kernel would go on completing handshakes in a
    slot where nobody ever greets, and the next master could not have the port. So once the
    channel has ended, silence of the heartbeat for `hang_seconds` is answered with SIGABRT, as
    the master would have done: the stack of every thread is printed, and the process ends.

    It counts its own looks and not time, so that a process that was frozen as a whole has its
    chance when it comes back. It cannot help where the process is stopped (SIGSTOP), or where
    code in C keeps the interpreter's lock.

    :param channel: the worker's end.
    :param cell: what its loop beats in.
    :param hang_seconds: silence that is too long.
    """

    def __init__(self, channel: Channel, cell: Cell, hang_seconds: float) -> None:
        self._channel = channel
        self._cell = cell
        self._hang_seconds = hang_seconds
        self._over = threading.Event()

    def start(self) -> None:
        """Begin, in a thread that keeps nothing from exiting."""
        threading.Thread(target=self._run, name="last-watch", daemon=True).start()

    def stop(self) -> None:
        """Let the loop end; neither the channel nor the cell is looked at after that."""
        self._over.set()

    def _run(self) -> None:
        ended = select.poll()
        # No event is asked for: what remains is that the other side is gone.
        ended.register(self._channel.fileno(), 0)
        while not ended.poll(LOOK_SECONDS * 1000):
            if self._over.is_set():
                return
        beat, silent = 0, 0.0
        while not self._over.wait(LOOK_SECONDS):
            earlier, beat = beat, self._cell.read().beat
            silent = silent + LOOK_SECONDS if beat == earlier else 0.0
            if silent >= self._hang_seconds:
                signal.raise_signal(signal.SIGABRT)
