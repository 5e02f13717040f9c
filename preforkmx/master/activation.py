"""Socket activation: listening sockets that systemd made, and hands over (``LISTEN_FDS``).

A passed socket is used for the listener that has its address. It is one socket for all slots,
and stays systemd's: it is never steered and never filtered, its backlog is systemd's, and what
is queued in it when the server ends is greeted by the next one. For a listener for which
nothing was passed a port is opened as usual.
"""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from preforkmx.master.errors import StartRefused
from preforkmx.master.handover import PortState
from preforkmx.master.ports import Port, address_key
from preforkmx.master.sockets import dropped_segments, queue_length

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping, Sequence

    from preforkmx.session.listener import Listener

FIRST_DESCRIPTOR = 3
MOST_DESCRIPTORS = 1024
"""More were no list of sockets."""

_VARIABLES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")

_logger = logging.getLogger("preforkmx.master")


def take_passed_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """Return the sockets that were passed to this process, which no program it starts inherits.

    :param environ: the variables are removed from it.
    :raises StartRefused: one is no listening stream socket of TCP or the file system.
    """
    taken = {name: environ.pop(name, "") for name in _VARIABLES}
    count, pid = taken["LISTEN_FDS"], taken["LISTEN_PID"]
    if pid != str(os.getpid()) or not count.isdecimal():
        # For another process: whoever started this one has not cleaned up.
        return []
    names = taken["LISTEN_FDNAMES"].split(":")
    passed: list[socket.socket] = []
    try:
        for index in range(min(int(count), MOST_DESCRIPTORS)):
            name = names[index] if index < len(names) else ""
            passed.append(_take(FIRST_DESCRIPTOR + index, name))
    except StartRefused:
        close_all(passed)
        raise
    return passed


def _take(descriptor: int, name: str) -> socket.socket:
    shown = f"the passed socket {name or descriptor}"
    try:
        os.set_inheritable(descriptor, False)
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise StartRefused(f"{shown} is none: {error.strerror}") from error
    try:
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        known = sock.family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
        if sock.type != socket.SOCK_STREAM or not known or not listens:
            raise StartRefused(f"{shown} does not listen (ListenStream=, Accept=no)")
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise StartRefused(f"{shown} cannot be used: {error.strerror}") from error
    except StartRefused:
        sock.close()
        raise
    return sock


def passed_address(sock: socket.socket) -> str:
    """Return the address of a passed socket as a listener's is written."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    host, port = name[:2]
    return f"[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{host}:{port}"


def close_all(sockets: Iterable[socket.socket]) -> None:
    """Close this process's copies; systemd has its own."""
    for sock in sockets:
        sock.close()


class PassedPort(Port):
    """A listener whose socket was passed: all slots share it, and it is not ours to end."""

    def __init__(self, asked: Listener, sock: socket.socket, count: int) -> None:
        self.asked = asked.address
        self.listener = asked
        self._socket = sock
        self.sockets = [sock] * count

    def hand_over(self) -> PortState:
        """Return what another program in this process needs to have it."""
        return PortState(
            kind="passed",
            asked=self.asked,
            listener=self.listener,
            sockets=tuple(sock.fileno() for sock in self.sockets),
        )

    @classmethod
    def taken_over(cls, state: PortState) -> Self:
        """Return the port of an earlier program in this process."""
        port = cls(state.listener, socket.socket(fileno=state.sockets[0]), len(state.sockets))
        port.asked = state.asked
        return port

    def hold(self) -> None:
        """Do nothing: it listened before this program began."""

    def release(self) -> None:
        """Do nothing, as :meth:`hold`."""

    def adopt(self, listener: Listener) -> None:
        """Take over the options of another generation, save the backlog, which is systemd's."""
        self.listener = replace(listener, address=self.listener.address)

    def grow(self) -> None:
        """Let one slot more share the socket."""
        self.sockets.append(self._socket)

    def shrink(self) -> None:
        """Let one slot less share the socket."""
        self.sockets.pop()

    def shut(self) -> None:
        """Do nothing: a filter would outlive this program, and be a black hole."""

    def queued(self) -> int | None:
        """Return the queue's length; None for a unix socket."""
        return None if self._socket.family == socket.AF_UNIX else queue_length(self._socket)

    def dropped(self) -> int | None:
        """Return what found no place since systemd made the socket; None for a unix socket."""
        return None if self._socket.family == socket.AF_UNIX else dropped_segments(self._socket)

    def waiting(self, slot: int | None = None) -> int:  # noqa: ARG002 - it is the same for all
        """Return 0: who is queued is greeted by this server, or by the next one."""
        return 0

    def end(self) -> None:
        """Close it here; in the workers it is closed when they retire."""
        _logger.warning(
            "%s is served no more, and systemd still listens there: stop its socket unit",
            self.listener.address,
        )
        self.close()

    def close(self) -> None:
        """Close it here, and leave the file."""
        self._socket.close()
        self.sockets = []


def passed_ports(
    listeners: Sequence[Listener], sockets: Sequence[socket.socket], count: int
) -> list[PassedPort]:
    """Return the ports of the listeners for which a socket was passed.

    :raises StartRefused: a socket is no listener's. Clients would connect to it, and nobody
        would ever answer them.
    """
    ports = []
    wanted = {address_key(listener.address): listener for listener in listeners}
    for sock in sockets:
        address = passed_address(sock)
        listener = wanted.pop(address_key(address), None)
        if listener is None:
            raise StartRefused(
                f"systemd passes a socket that listens on {address}, and no [[listener]] has that "
                "address (or two sockets do)"
            )
        if sock.family == socket.AF_INET6 and not sock.getsockopt(
            socket.IPPROTO_IPV6, socket.IPV6_V6ONLY
        ):
            raise StartRefused(
                f"the passed socket {address} takes IPv4 connections too, which a listener never "
                "does: BindIPv6Only=ipv6-only"
            )
        _logger.info("%s is systemd's socket", address)
        ports.append(PassedPort(listener, sock, count))
    return ports
