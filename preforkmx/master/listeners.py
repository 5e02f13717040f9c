"""The listening sockets: one SO_REUSEPORT socket for each TCP listener and slot.

The master makes them and keeps every one open for its whole life: what is queued in the
socket of a worker that was killed waits there for its replacement.

A unix listener knows neither SO_REUSEPORT nor a filter nor a queue that could be looked at
(:mod:`preforkmx.master.unix`): it has one socket, which all slots share.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from preforkmx.master.errors import StartRefused
from preforkmx.master.sockets import bind_tcp, drop_syns, longest_backlog, queue_length
from preforkmx.master.unix import UnixSocket, refuse_live
from preforkmx.session.listener import split_address

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection, Sequence
    from pathlib import Path

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
        """For each listener one for each slot; the same for all slots where they share it."""
        self._unix: list[UnixSocket] = []

    def probe(self) -> None:
        """Bind every port once without SO_REUSEPORT, and let go of it; knock at every path.

        With SO_REUSEPORT alone a second server of the same user would join the first one's
        group in silence, and take its mail.

        :raises StartRefused: an address is taken or not permitted, or is named twice.
        """
        seen: set[tuple[str, int]] = set()
        for listener in self.listeners:
            path = listener.unix_path
            host, port = split_address(listener.address) if path is None else (str(path), -1)
            if port == 0:
                # No probe: for port 0 the kernel picks one that nobody has, shared or not.
                continue
            if (host, port) in seen:
                raise StartRefused(f"{listener.address} is named by two listeners")
            seen.add((host, port))
            if path is None:
                bind_tcp(host, port, reuse_port=False).close()
            else:
                refuse_live(path)

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
        path = listener.unix_path
        return self._open_tcp(listener) if path is None else self._open_unix(listener, path)

    def _open_tcp(self, listener: Listener) -> Listener:
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

    def _open_unix(self, listener: Listener, path: Path) -> Listener:
        unix = UnixSocket(path, listener.backlog)
        self._unix.append(unix)
        self._sockets.append([unix.socket] * self._count)
        return listener

    @property
    def is_open(self) -> bool:
        """Whether the ports are there."""
        return bool(self._sockets)

    def of_slot(
        self, slot: int, plan: Sequence[Listener] | None = None
    ) -> tuple[tuple[socket.socket, Listener], ...]:
        """Return a slot's sockets, each with its listener.

        :param plan: the listeners of another generation, which may trust other networks.
        """
        return tuple(
            (sockets[slot], replace(wanted, address=bound.address))
            for sockets, bound, wanted in zip(
                self._sockets, self.listeners, plan or self.listeners, strict=True
            )
        )

    def groups(self) -> list[list[socket.socket]]:
        """Return the reuseport groups, each in the order of the slots; no socket that is shared."""
        return [
            sockets
            for sockets, listener in zip(self._sockets, self.listeners, strict=False)
            if listener.unix_path is None
        ]

    def queued(self) -> list[int | None]:
        """Return how many connections wait to be accepted, for each listener.

        None for a unix socket: the kernel does not say.
        """
        if not self._sockets:
            return [None if listener.unix_path else 0 for listener in self.listeners]
        return [
            None if listener.unix_path else sum(map(queue_length, sockets))
            for sockets, listener in zip(self._sockets, self.listeners, strict=True)
        ]

    def shut(self) -> None:
        """Let no new connection begin; what is queued is still greeted."""
        for unix in self._unix:
            unix.unlink()
        for sockets, listener in zip(self._sockets, self.listeners, strict=True):
            if listener.unix_path is not None:
                continue
            for sock in sockets:
                try:
                    drop_syns(sock)
                except OSError as error:
                    _logger.warning("a socket could not be filtered: %s", error)

    def close(self) -> None:
        """Close every socket, and remove the unix sockets' files: in the master."""
        for unix in self._unix:
            unix.unlink()
        self.leave()

    def leave(self, *, but: Collection[socket.socket] = ()) -> None:
        """Close every socket, save those in `but`, and leave the files: in a child."""
        for sockets in self._sockets:
            for sock in sockets:
                if sock not in but:
                    sock.close()
        self._sockets = []
        self._unix = []
