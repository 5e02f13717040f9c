"""Signals of the master: a handler writes the number into a socket pair, the loop reads it."""

from __future__ import annotations

import signal
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

_READ_OCTETS = 256


class SignalInbox:
    """Takes signals over, one after the other, until it is closed.

    The wake-up descriptor is the C handler's own write, so nothing is lost between a signal
    and the next look, and no Python code runs in the middle of something else.

    :param numbers: the signals to take; they are unblocked too.
    """

    def __init__(self, numbers: Sequence[signal.Signals]) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._earlier_descriptor = signal.set_wakeup_fd(
            self._writer.fileno(), warn_on_full_buffer=False
        )
        self._earlier = {number: signal.signal(number, _noted) for number in numbers}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._reader.fileno()

    def take(self) -> list[signal.Signals]:
        """Return the signals that have come since the last call, in their order."""
        try:
            octets = self._reader.recv(_READ_OCTETS)
        except BlockingIOError:
            return []
        return [signal.Signals(number) for number in octets]

    def close(self) -> None:
        """Give the handlers back as they were."""
        signal.set_wakeup_fd(self._earlier_descriptor)
        for number, handler in self._earlier.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self.leave()

    def leave(self) -> None:
        """Close the descriptors only: in a child, whose handlers are its own."""
        self._reader.close()
        self._writer.close()


def _noted(_number: int, _frame: FrameType | None) -> None:
    """Be a handler: the wake-up descriptor has the number."""
