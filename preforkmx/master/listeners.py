"""The listening sockets: one SO_REUSEPORT socket for each listener and slot.

The master makes them and keeps every one open for its whole life: what is queued in the
socket of a worker that was killed waits there for its replacement.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from preforkmx.master.errors import StartRefused
from preforkmx.master.sockets import bind_tcp, drop_syns, longest_backlog, queue_length
from preforkmx.session.listener import split_address

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection, Sequence

    from preforkmx.session.listener import Listener

_logger = logging.getLogger("preforkmx.master")


class ListenerSockets:
    """The sockets of all listeners.

    :param listeners: what to listen on.
    :param count: worker slots.
    """

    def __init__(self, listeners: Sequence[Listener], count: int) -> None:
        self._count = count
        self.listeners = tuple(listeners)
        """The listeners; once open, with the port that a port 0 has become."""
        self._sockets: list[list[socket.socket]] = []
        self.filtered = False
        """Whether no new connection can begin."""

    def probe(self) -> None:
        """Bind every address once without SO_REUSEPORT, and let go of it.

        With SO_REUSEPORT alone a second server of the same user would join the first one's
        group in silence, and take its mail.

        :raises StartRefused: an address is taken or not permitted, or is named twice.
        """
        seen: set[tuple[str, int]] = set()
        for listener in self.listeners:
            host, port = split_address(listener.address)
            if port == 0:
                # No probe: for port 0 the kernel picks one that nobody has, shared or not.
                continue
            if (host, port) in seen:
                raise StartRefused(f"{listener.address} is named by two listeners")
            seen.add((host, port))
            bind_tcp(host, port, reuse_port=False).close()

    def open(self) -> None:
        """Bind, and listen in the order of the slots: that is their index in the group.

        :raises StartRefused: as :meth:`probe`; nothing is left open.
        """
        try:
            self.listeners = tuple(self._open(listener) for listener in self.listeners)
        except BaseException:
            self.close()
            raise
        longest = longest_backlog()
        for listener in self.listeners:
            if longest is not None and listener.backlog > longest:
                _logger.warning(
                    "the kernel cuts the backlog %d of %s to net.core.somaxconn = %d",
                    listener.backlog,
                    listener.address,
                    longest,
                )

    def _open(self, listener: Listener) -> Listener:
        host, port = split_address(listener.address)
        sockets: list[socket.socket] = []
        self._sockets.append(sockets)
        for _ in range(self._count):
            sock = bind_tcp(host, port, reuse_port=True)
            sockets.append(sock)
            port = sock.getsockname()[1]
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        for sock in sockets:
            try:
                sock.listen(listener.backlog)
            except OSError as error:
                raise StartRefused(f"{shown} cannot be listened on: {error.strerror}") from error
        return replace(listener, address=shown)

    @property
    def is_open(self) -> bool:
        """Whether the ports are there."""
        return bool(self._sockets)

    def of_slot(self, slot: int) -> tuple[tuple[socket.socket, Listener], ...]:
        """Return a slot's sockets, each with its listener."""
        return tuple(
            (sockets[slot], listener)
            for sockets, listener in zip(self._sockets, self.listeners, strict=True)
        )

    def queued(self) -> list[int]:
        """Return how many connections wait to be accepted, for each listener."""
        if not self._sockets:
            return [0 for _ in self.listeners]
        return [sum(map(queue_length, sockets)) for sockets in self._sockets]

    def drop_syns(self) -> None:
        """Let no new connection begin; what is queued is still greeted."""
        self.filtered = True
        for sockets in self._sockets:
            for sock in sockets:
                try:
                    drop_syns(sock)
                except OSError as error:
                    _logger.warning("a socket could not be filtered: %s", error)

    def close(self, *, but: Collection[socket.socket] = ()) -> None:
        """Close every socket in this process, save those in `but`."""
        for sockets in self._sockets:
            for sock in sockets:
                if sock not in but:
                    sock.close()
        self._sockets = []
