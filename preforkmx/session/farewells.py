"""Farewells: connections that are not served, and hear why before they are closed."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from preforkmx.session.wire import LINGER_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

LINGERING = 64
"""Connections at once; for another one the oldest is closed, which had the longest to read."""
_READ_OCTETS = 65536


class Farewells:
    """The last words of connections that never become sessions.

    Closing at once is not enough: what the client has sent and nobody reads (a PROXY header, an
    early EHLO) makes the kernel reset the connection, and the reply may be lost with it
    (RFC 9293 section 3.10.7.4). So this side is closed alone, and what comes is thrown away until
    the client closes too, for at most :data:`~preforkmx.session.wire.LINGER_SECONDS` and the time
    to the next :meth:`expire_late`.

    :param ended: called when none is left.
    """

    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended = ended
        # Until when each has, on the loop's clock; the oldest first.
        self._until: dict[socket.socket, float] = {}

    def __len__(self) -> int:
        return len(self._until)

    def say(self, sock: socket.socket, octets: bytes) -> None:
        """Send the last word and see the connection out.

        :param sock: non-blocking; it is closed from here.
        """
        try:
            # A new connection's buffer holds a line; where it does not, nothing is waited for.
            sock.send(octets)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            sock.close()
            return
        if len(self._until) >= LINGERING:
            self._close(next(iter(self._until)))
        loop = asyncio.get_running_loop()
        self._until[sock] = loop.time() + LINGER_SECONDS
        loop.add_reader(sock.fileno(), self._discard, sock)

    def _discard(self, sock: socket.socket) -> None:
        try:
            if sock.recv(_READ_OCTETS):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            # Reset: there is nobody to wait for.
            pass
        self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        del self._until[sock]
        asyncio.get_running_loop().remove_reader(sock.fileno())
        sock.close()
        if not self._until:
            self._ended()

    def expire_late(self, now: float) -> None:
        """Close those whose time is over.

        :param now: on the loop's clock.
        """
        for sock in [sock for sock, until in self._until.items() if until < now]:
            self._close(sock)

    def close(self) -> None:
        """Close all of them at once."""
        for sock in list(self._until):
            self._close(sock)
