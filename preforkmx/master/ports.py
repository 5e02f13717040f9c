"""Ports: listeners that are open, each with the sockets of its worker slots."""

from __future__ import annotations

import logging
import select
import socket
from abc import ABC, abstractmethod
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from preforkmx.master.errors import StartRefused
from preforkmx.master.handover import PortState
from preforkmx.master.sockets import (
    accept_syns,
    bind_tcp,
    drop_syns,
    dropped_segments,
    longest_backlog,
    queue_length,
)
from preforkmx.master.unix import MODE, UnixSocket
from preforkmx.session.listener import split_address

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from preforkmx.session.listener import Listener

_logger = logging.getLogger("preforkmx.master")

Key = tuple[str, int]
"""What tells two addresses apart: host and port, or the path and -1."""


def address_key(address: str) -> Key:
    """Return an address so that its spellings are equal: ``[::0]:25`` is ``[::]:25``."""
    if address.startswith("unix:"):
        return address.removeprefix("unix:"), -1
    host, port = split_address(address)
    return str(ip_address(host)), port


def covers(host: str, other: str) -> bool:
    """Say whether a socket of one host is in the way of one of the other, on the same port.

    :param host: as :func:`address_key` gives it; so is `other`.
    """
    every = {"0.0.0.0", "::"}
    return host == other or (
        (":" in host) == (":" in other) and not every.isdisjoint((host, other))
    )


class Port(ABC):
    """A listener that is open.

    :ivar asked: the address as the configuration gave it.
    :ivar listener: the listener of the generation that serves; a port 0 has become a real one.
    :ivar sockets: one for each slot, by its number; the same where the slots share it.
    """

    asked: str
    listener: Listener
    sockets: list[socket.socket]

    @abstractmethod
    def hold(self) -> None:
        """Listen, but let nobody in before :meth:`release`."""

    @abstractmethod
    def release(self) -> None:
        """Let clients in."""

    @abstractmethod
    def grow(self) -> None:
        """Make the socket of one slot more.

        :raises StartRefused: there is none to be had; nothing has changed.
        """

    @abstractmethod
    def shrink(self) -> None:
        """Close the socket of the highest slot, in every process that has it."""

    @abstractmethod
    def shut(self) -> None:
        """Let no new connection begin; what is queued can still be accepted."""

    @abstractmethod
    def queued(self) -> int | None:
        """Return how many connections wait to be accepted; None where nobody can say."""

    @abstractmethod
    def dropped(self) -> int | None:
        """Return how many segments of new connections the kernel threw away, or None."""

    @abstractmethod
    def waiting(self, slot: int | None = None) -> int:
        """Return how many connections wait, at least 1 if any do, in all slots or in one.

        What a slot shares with others is not the slot's.
        """

    @abstractmethod
    def end(self) -> None:
        """Let nothing be accepted any more, whatever process has the sockets, and close them."""

    @abstractmethod
    def close(self) -> None:
        """Close the sockets in the master, and remove what was made for them."""

    @abstractmethod
    def hand_over(self) -> PortState:
        """Return what another program in this process needs to have it."""

    def adopt(self, listener: Listener) -> None:
        """Take over the options of another generation's listener on this address."""
        earlier, self.listener = self.listener, replace(listener, address=self.listener.address)
        if listener.backlog == earlier.backlog:
            return
        warn_of_cut(self.listener)
        for sock in set(self.sockets):
            try:
                # On a socket that listens this changes its backlog and nothing else.
                sock.listen(listener.backlog)
            except OSError as error:
                _logger.warning(
                    "the backlog of %s stays as it was: %s", self.listener.address, error
                )

    def leave(self, but: Collection[socket.socket] = ()) -> None:
        """Close the sockets save those in `but`: in a child."""
        for sock in self.sockets:
            if sock not in but:
                sock.close()


class TcpPort(Port):
    """A TCP listener: a group of SO_REUSEPORT sockets, one for each slot.

    The slot's number is the socket's index in the group, because they begin to listen in the
    order of the slots and only the last one may ever be closed: the kernel moves the last one
    into a hole.

    :raises StartRefused: the address is taken or not permitted; nothing is left open.
    """

    def __init__(self, asked: Listener, count: int) -> None:
        self.asked = asked.address
        self._host, self._number = split_address(asked.address)
        self.sockets = []
        self._dropped = 0
        """What was counted by sockets that are closed."""
        self._held = False
        try:
            for _ in range(count):
                self.sockets.append(bind_tcp(self._host, self._number, reuse_port=True))
                self._number = self.sockets[-1].getsockname()[1]
        except BaseException:
            self.close()
            raise
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self.listener = replace(asked, address=f"{shown}:{self._number}")

    def hand_over(self) -> PortState:
        """Return what another program in this process needs to have it."""
        return PortState(
            kind="tcp",
            asked=self.asked,
            listener=self.listener,
            sockets=tuple(sock.fileno() for sock in self.sockets),
            dropped=self._dropped,
            held=self._held,
        )

    @classmethod
    def taken_over(cls, state: PortState) -> Self:
        """Return the port of an earlier program in this process."""
        port = cls.__new__(cls)
        port.asked, port.listener = state.asked, state.listener
        port._host, port._number = split_address(state.listener.address)
        port.sockets = [socket.socket(fileno=fd) for fd in state.sockets]
        port._dropped, port._held = state.dropped, state.held
        return port

    def listen(self) -> None:
        """Listen, in the order of the slots.

        :raises StartRefused: the kernel refused.
        """
        for sock in self.sockets:
            self._listen(sock)

    def _listen(self, sock: socket.socket) -> None:
        try:
            sock.listen(self.listener.backlog)
        except OSError as error:
            raise StartRefused(
                f"{self.listener.address} cannot be listened on: {error.strerror}"
            ) from error

    def hold(self) -> None:
        """Listen behind a filter: a client's SYN is dropped, and it tries again a second later."""
        self._held = True
        try:
            for sock in self.sockets:
                drop_syns(sock)
        except OSError as error:
            raise StartRefused(f"{self.listener.address} cannot be filtered: {error}") from error
        self.listen()

    def release(self) -> None:
        """Take the filter away."""
        if self._held:
            self._held = False
            for sock in self.sockets:
                accept_syns(sock)

    def grow(self) -> None:
        """Add a socket to the group: its index is the next one."""
        sock = bind_tcp(self._host, self._number, reuse_port=True)
        try:
            self._listen(sock)
        except StartRefused:
            sock.close()
            raise
        self.sockets.append(sock)

    def shrink(self) -> None:
        """Take the last socket out of the group."""
        self._end(self.sockets.pop())

    def _end(self, sock: socket.socket) -> None:
        try:
            self._dropped += dropped_segments(sock)
            # Out of the group at once, though a worker may still have it open: a worker that
            # hangs would otherwise keep an index, and a port that nobody serves.
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            # Not connected: it did not listen yet.
            pass
        sock.close()

    def shut(self) -> None:
        """Drop the SYNs of new connections; handshakes under way still end."""
        for sock in self.sockets:
            try:
                drop_syns(sock)
            except OSError as error:
                _logger.warning("a socket could not be filtered: %s", error)

    def queued(self) -> int:
        """Return the sum over the slots."""
        return sum(map(queue_length, self.sockets))

    def waiting(self, slot: int | None = None) -> int:
        """Return the queue's length."""
        return self.queued() if slot is None else queue_length(self.sockets[slot])

    def dropped(self) -> int:
        """Return the sum over the slots, those that are gone included."""
        return self._dropped + sum(map(dropped_segments, self.sockets))

    def end(self) -> None:
        """End the highest slot's socket first."""
        while self.sockets:
            self.shrink()

    def close(self) -> None:
        """Close the sockets here; the last process that has one closes the port."""
        self.leave()
        self.sockets = []


class UnixPort(Port):
    """A unix listener: one socket that all slots share.

    :raises StartRefused: as :class:`preforkmx.master.unix.UnixSocket`.
    """

    def __init__(self, asked: Listener, count: int, *, mode: int = MODE) -> None:
        path = asked.unix_path
        assert path is not None
        self.asked = asked.address
        self.listener = asked
        self._unix = UnixSocket(path, asked.backlog, mode)
        self.sockets = [self._unix.socket] * count

    def hand_over(self) -> PortState:
        """Return what another program in this process needs to have it."""
        device, inode = self._unix.file
        return PortState(
            kind="unix",
            asked=self.asked,
            listener=self.listener,
            sockets=tuple(sock.fileno() for sock in self.sockets),
            device=device,
            inode=inode,
        )

    @classmethod
    def taken_over(cls, state: PortState) -> Self:
        """Return the port of an earlier program in this process."""
        path = state.listener.unix_path
        assert path is not None
        port = cls.__new__(cls)
        port.asked, port.listener = state.asked, state.listener
        port._unix = UnixSocket.taken_over(path, state.sockets[0], (state.device, state.inode))
        port.sockets = [port._unix.socket] * len(state.sockets)
        return port

    def hold(self) -> None:
        """Do nothing: it was made with a mode that lets nobody in."""

    def release(self) -> None:
        """Let everybody in who may enter the folder."""
        self._unix.admit()

    def grow(self) -> None:
        """Let one slot more share the socket."""
        self.sockets.append(self._unix.socket)

    def shrink(self) -> None:
        """Let one slot less share the socket."""
        self.sockets.pop()

    def shut(self) -> None:
        """Remove the file."""
        self._unix.unlink()

    def queued(self) -> None:
        """Return None: the kernel does not say."""
        return

    def dropped(self) -> None:
        """Return None: a client of a full unix socket waits, or is told so."""
        return

    def waiting(self, slot: int | None = None) -> int:
        """Return 1 when somebody waits."""
        if slot is not None:
            return 0
        poll = select.poll()
        poll.register(self._unix.socket, select.POLLIN)
        return len(poll.poll(0))

    def end(self) -> None:
        """Refuse whoever knows the socket still."""
        try:
            self._unix.socket.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            _logger.warning("%s could not be shut: %s", self.listener.address, error)
        self.close()

    def close(self) -> None:
        """Close the socket here, and remove the file."""
        self._unix.unlink()
        self.leave()
        self.sockets = []


def open_ports(listeners: Sequence[Listener], count: int, *, held: bool = False) -> list[Port]:
    """Open every listener with the sockets of so many slots.

    :param held: nobody is let in before :meth:`Port.release`.
    :raises StartRefused: one cannot be opened; nothing is left open.
    """
    ports: list[Port] = []
    try:
        for listener in listeners:
            if listener.unix_path is not None:
                ports.append(UnixPort(listener, count, mode=0 if held else MODE))
                continue
            port = TcpPort(listener, count)
            ports.append(port)
            if held:
                port.hold()
            else:
                port.listen()
    except BaseException:
        for port_ in ports:
            port_.close()
        raise
    for port_ in ports:
        warn_of_cut(port_.listener)
    return ports


class Opened(Protocol):
    """What is known of a port that is open, in this process or as it was handed over."""

    @property
    def asked(self) -> str:
        """The address as the configuration gave it."""

    @property
    def listener(self) -> Listener:
        """The listener, with its real port."""


_Opened = TypeVar("_Opened", bound=Opened)


def match(listeners: Sequence[Listener], ports: Sequence[_Opened]) -> list[_Opened | None]:
    """Return for each listener the port that it is, None where it is not open.

    A listener is the port that has its address. One on port 0 is the first of those that were
    opened for it and are not named by their real number.
    """
    left = list(ports)
    found: dict[int, _Opened] = {}
    for by_number in (True, False):
        for index, listener in enumerate(listeners):
            key = address_key(listener.address)
            if index in found or (key[1] == 0) is by_number:
                continue
            for port in left:
                if key == address_key(port.listener.address if by_number else port.asked):
                    found[index] = port
                    left.remove(port)
                    break
    return [found.get(index) for index in range(len(listeners))]


def warn_of_cut(listener: Listener) -> None:
    """Say so when the kernel cuts a listener's backlog."""
    longest = longest_backlog()
    if longest is not None and listener.backlog > longest:
        _logger.warning(
            "the kernel cuts the backlog %d of %s to net.core.somaxconn = %d",
            listener.backlog,
            listener.address,
            longest,
        )
