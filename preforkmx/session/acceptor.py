"""The accept loop of one listening socket."""

from __future__ import annotations

import errno
import os
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    import logging
    import socket
    from collections.abc import Callable

    from preforkmx.session.listener import Listener

ACCEPTS_PER_WAKE = 16
"""Connections taken in one turn of the loop, so that the sessions have their turn too."""
BACK_OFF_SECONDS = 0.1
"""How long accepting rests when the process or the machine is out of something. The waiting
connections stay in the listener's queue meanwhile."""
COMPLAINT_SECONDS = 60.0
"""The time between two lines in the log that say so."""
_NO_MEMORY = os.strerror(errno.ENOMEM)


class Acceptor:
    """Takes connections from a listening socket and hands them on.

    ``loop.create_server`` is not used: it loses connections that are accepted in the
    iteration in which it is closed, and it calls ``listen()`` again, which shrinks the
    backlog of a socket that several processes share.

    :param take: called with each connection (non-blocking), the client's address as the
        kernel gave it, and the listener. Where it raises MemoryError it has not taken it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        listener: Listener,
        take: Callable[[socket.socket, object, Listener], None],
        logger: logging.Logger,
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._listener = listener
        self._take = take
        self._logger = logger
        self._running = False
        self._resting: asyncio.TimerHandle | None = None
        self._complained = -inf
        sock.setblocking(False)

    def start(self) -> None:
        """Begin to accept."""
        if not self._running:
            self._running = True
            self._loop.add_reader(self._sock.fileno(), self._accept, ACCEPTS_PER_WAKE)

    def stop(self) -> None:
        """Accept no more; the socket stays open. A second call does nothing."""
        if self._running:
            self._running = False
            if self._resting is not None:
                self._resting.cancel()
                self._resting = None
            else:
                self._loop.remove_reader(self._sock.fileno())

    def accept_now(self) -> None:
        """Take what is queued at this moment, at most a backlog of connections.

        The kernel queues one more than the backlog.
        """
        self._accept(self._listener.backlog + 1)

    def _accept(self, most: int) -> None:
        for _ in range(most):
            try:
                connection, address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                # The client went away while it was queued.
                continue
            except OSError as error:
                if error.errno == errno.EINVAL:
                    # The master has shut it for all processes: it listens no more.
                    self.stop()
                else:
                    self._trouble(error.strerror or str(error))
                return
            except MemoryError:
                self._trouble(_NO_MEMORY)
                return
            try:
                connection.setblocking(False)
                self._take(connection, address, self._listener)
            except MemoryError:
                connection.close()
                self._trouble(_NO_MEMORY)
                return

    def _trouble(self, error: str) -> None:
        """Rest for a while: the socket stays readable, and asking again at once would spin."""
        now = self._loop.time()
        if now - self._complained >= COMPLAINT_SECONDS:
            self._complained = now
            self._logger.error(
                "cannot accept",
                extra={"listener": self._listener.address, "error": error},
            )
        if self._running and self._resting is None:
            self._loop.remove_reader(self._sock.fileno())
            self._resting = self._loop.call_later(BACK_OFF_SECONDS, self._resume)

    def _resume(self) -> None:
        self._resting = None
        if self._running:
            self._loop.add_reader(self._sock.fileno(), self._accept, ACCEPTS_PER_WAKE)
