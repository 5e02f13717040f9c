"""The admin process's port: the master opens it, and keeps its socket.

So a port below 1024 takes only the master's privileges, an address that is taken is found
before anything else happens, and who connects waits while the process is replaced.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from preforkmx.master.errors import StartRefused
from preforkmx.master.handover import AdminState
from preforkmx.master.ports import address_key, covers
from preforkmx.master.sockets import bind_tcp
from preforkmx.session.listener import split_address

if TYPE_CHECKING:
    from collections.abc import Collection

BACKLOG = 128


@dataclass(frozen=True, slots=True)
class _Bound:
    wanted: str
    address: str
    socket: socket.socket


class AdminPort:
    """What ``[admin] address`` names, which a reload may change.

    :param wanted: HOST:PORT; port 0 is any free one; ``""``: there is no admin process.
    :raises StartRefused: it is taken or not permitted.
    """

    def __init__(self, wanted: str = "") -> None:
        self._bound = _bind(wanted)
        self._next: _Bound | None = None
        self._changes = False

    @property
    def sock(self) -> socket.socket | None:
        """The listening socket; None without an address."""
        return None if self._bound is None else self._bound.socket

    @property
    def address(self) -> str:
        """HOST:PORT with the real port; ``""`` without an address."""
        return "" if self._bound is None else self._bound.address

    def hand_over(self) -> AdminState | None:
        """Return what another program in this process needs to have it."""
        bound = self._bound
        if bound is None:
            return None
        return AdminState(wanted=bound.wanted, address=bound.address, socket=bound.socket.fileno())

    @classmethod
    def taken_over(cls, state: AdminState | None) -> Self:
        """Return the port of an earlier program in this process."""
        port = cls()
        if state is not None:
            port._bound = _Bound(state.wanted, state.address, socket.socket(fileno=state.socket))
        return port

    def prepare(self, wanted: str) -> None:
        """Open what a reload asks for, beside what there is.

        :raises StartRefused: it cannot be opened; nothing has changed.
        """
        there = self.hand_over()
        if changes(wanted, there):
            refuse_own(wanted, there)
            self._next = _bind(wanted)
            self._changes = True

    def undo(self) -> None:
        """Close what was prepared and not taken over."""
        if self._next is not None:
            self._next.socket.close()
        self._next, self._changes = None, False

    def take_over(self) -> bool:
        """Close the old port for the one that was prepared; return whether it is another one."""
        changed = self._changes
        if changed:
            self.close()
            self._bound, self._next, self._changes = self._next, None, False
        return changed

    def leave(self, *, but: Collection[socket.socket] = ()) -> None:
        """Close every socket, save those in `but`: in a child."""
        self.undo()
        if self.sock not in but:
            self.close()

    def close(self) -> None:
        """Close the port."""
        if self._bound is not None:
            self._bound.socket.close()


def changes(wanted: str, there: AdminState | None) -> bool:
    """Say whether a configuration asks for another address than there is."""
    if not wanted or there is None:
        return bool(wanted) or there is not None
    return address_key(wanted) not in (address_key(there.wanted), address_key(there.address))


def refuse_own(wanted: str, there: AdminState | None) -> None:
    """Refuse an address that cannot be opened beside the one that there is.

    :raises StartRefused: it is the same port of a host that covers the other one.
    """
    if not wanted or there is None:
        return
    (host, port), (our_host, our_port) = address_key(wanted), address_key(there.address)
    if port == our_port and covers(host, our_host):
        raise StartRefused(
            f"[admin] address: {wanted} cannot be opened beside {there.address}, which is this "
            "server's own: change to another port first, or to none"
        )


def _bind(wanted: str) -> _Bound | None:
    """Bind and listen, without SO_REUSEPORT: no second server shall join in silence."""
    if not wanted:
        return None
    host, port = split_address(wanted)
    try:
        sock = bind_tcp(host, port, reuse_port=False)
    except StartRefused as refusal:
        raise StartRefused(f"[admin] address: {refusal}") from refusal
    try:
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise StartRefused(
            f"[admin] address: {wanted} cannot be listened on: {error.strerror}"
        ) from error
    port = sock.getsockname()[1]
    return _Bound(wanted, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", sock)
