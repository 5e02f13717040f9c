"""Queues: who waits in a listening socket, and how it is emptied before it is closed.

A connection that is complete in the kernel when its listening socket is closed is reset. So
before that no new one may begin, and those that have begun are waited for and accepted.
"""

from __future__ import annotations

import ctypes
import select
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_SECONDS = 0.5
"""Between two looks at the queues. With looks 25 ms apart clients 200 ms away were reset."""
SHORTEST_SECONDS = 1.0
LONGEST_SECONDS = 10.0
"""A worker that does not accept must not hold up what waits for the others."""

_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27
_TCP_INFO = 11
_TCP_INFO_OCTETS = 104
_UNACKED_OFFSET = 24

#: Classic BPF over the TCP header: load octet 13, the flags; a SYN in them drops the segment,
#: everything else passes.
_DROP_SYNS = (
    (0x30, 0, 0, 13),
    (0x45, 0, 1, 2),
    (0x06, 0, 0, 0),
    (0x06, 0, 0, 0xFFFFFFFF),
)


def drop_syns(sock: socket.socket) -> None:
    """Let no new connection begin on a listening socket; handshakes under way still end.

    A client whose SYN is dropped tries again a second later, and is refused if the port is
    closed by then: it never has a connection that is reset.

    :raises OSError: the kernel, or a sandbox, takes no filter.
    """
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in _DROP_SYNS)
    buffer = ctypes.create_string_buffer(program, len(program))
    argument = struct.pack("HP", len(_DROP_SYNS), ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, argument)


def accept_syns(sock: socket.socket) -> None:
    """Undo :func:`drop_syns`."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def queue_length(sock: socket.socket) -> int:
    """Return how many connections wait in a listening TCP socket to be accepted."""
    info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _TCP_INFO_OCTETS)
    length: int = struct.unpack_from("I", info, _UNACKED_OFFSET)[0]
    return length


def somebody_waits(sock: socket.socket) -> bool:
    """Say whether a connection waits in a listening socket of any kind."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(0))


class Emptying:
    """The waiting for queues into which no new connection can come.

    It is over when nobody waited twice, 500 ms apart, after 1 s at least and `longest` at most.
    The second look is half a second after the first because the last step of a distant client's
    handshake may be under way: it still comes to the socket that its SYN was given.

    :param waiting: how many connections wait.
    :param clock: seconds that only grow.
    :ivar left: how many waited at the last look.
    """

    def __init__(
        self,
        waiting: Callable[[], int],
        clock: Callable[[], float],
        longest: float = LONGEST_SECONDS,
    ) -> None:
        self._waiting = waiting
        self._clock = clock
        self._longest = longest
        self._began = clock()
        self._empty = 0
        self.left = 0

    def look(self) -> bool:
        """Look at the queues, :data:`LOOK_SECONDS` after the last time; True when it is over."""
        waited = self._clock() - self._began
        self.left = self._waiting()
        self._empty = 0 if self.left else self._empty + 1
        return (self._empty >= 2 and waited >= SHORTEST_SECONDS) or waited >= self._longest
