"""Steering: which members of a reuseport group get new connections.

The kernel spreads connections over the sockets of a group by a hash, and knows nothing of
what is behind them: with one of four workers hung, 47 of 200 clients waited for a greeting.
A classic BPF program (``SO_ATTACH_REUSEPORT_CBPF``, ``socket(7)``) takes the hash's place
while there is a slot that nobody serves. It takes no privilege.

The program draws at random and not by the connection's hash: a client that tries again, or
whose SYN was dropped because a queue was full, then finds another slot. A handshake that is
under way keeps the socket that its SYN was given.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import socket
import struct
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

SO_ATTACH_REUSEPORT_CBPF = 51
SO_DETACH_REUSEPORT_BPF = 68

_LOAD = 0x20
_MODULO = 0x94
_ADD = 0x04
_SKIP_UNLESS_AT_LEAST = 0x35
_RETURN = 0x16
_RANDOM = 0xFFFFF000 + 56
"""SKF_AD_OFF + SKF_AD_RANDOM: at this place of the packet a 32-bit random number is read."""

Program: TypeAlias = list[tuple[int, int, int, int]]
"""Instructions: code, jump if true, jump if false, constant."""

_logger = logging.getLogger("preforkmx.master")


def program(count: int, away: Collection[int]) -> Program:
    """Return a program that draws one of `count` indices, each as likely, save those in `away`.

    :param away: some of the indices, not all of them.
    """
    skipped = sorted(away)
    drawn: Program = [(_LOAD, 0, 0, _RANDOM), (_MODULO, 0, 0, count - len(skipped))]
    # The k-th index that is served: one more for each before it that is not.
    for index in skipped:
        drawn += [(_SKIP_UNLESS_AT_LEAST, 0, 1, index), (_ADD, 0, 0, 1)]
    return [*drawn, (_RETURN, 0, 0, 0)]


def attach(member: socket.socket, instructions: Program) -> None:
    """Let a program choose for the whole group of a listening socket; replaces an earlier one.

    What it returns is an index in the order in which the members called ``listen()``; for one
    that is out of range the kernel takes its hash.

    :raises OSError: the kernel is too old, or a sandbox does not permit it.
    """
    octets = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    buffer = ctypes.create_string_buffer(octets, len(octets))
    argument = struct.pack("HP", len(instructions), ctypes.addressof(buffer))
    member.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, argument)


def detach(member: socket.socket) -> None:
    """Let the kernel's hash choose again; nothing happens where no program is attached.

    :raises OSError: as :func:`attach`.
    """
    try:
        member.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


class Steering:
    """Keeps every group as the last :meth:`steer` said, also one that comes or grows later.

    It remembers nothing that could not be forgotten: a group that it has not seen is set
    anew, whatever an earlier program left attached.

    :param groups: gives the groups that there are now, each in the order of the slots.
    """

    def __init__(self, groups: Callable[[], Iterable[Sequence[socket.socket]]]) -> None:
        self._groups = groups
        self._done: WeakKeyDictionary[socket.socket, tuple[int, frozenset[int]]]
        self._done = WeakKeyDictionary()
        self._failed = False

    def steer(self, away: Collection[int], slots: int) -> None:
        """Spread new connections over the slots that are not in `away`; call it in every turn.

        Where that is all of them the kernel's hash does it, which is the fairest. So it does
        where all slots are away: there is nothing to steer to.

        :param slots: how many there are. A group may have more sockets, for slots that a reload
            adds: nobody is led there.
        """
        for members in self._groups():
            count = len(members)
            skipped = frozenset(index for index in range(count) if index in away or index >= slots)
            if len(skipped) == count:
                skipped = frozenset(range(slots, count))
            if members and self._done.get(members[0]) != (count, skipped):
                self._done[members[0]] = (count, skipped)
                self._set(members[0], count, skipped)

    def _set(self, member: socket.socket, count: int, skipped: frozenset[int]) -> None:
        try:
            if skipped:
                attach(member, program(count, skipped))
            else:
                detach(member)
        except OSError as error:
            # Memory may be there in the next turn.
            del self._done[member]
            # A kernel that cannot detach has nothing attached: that alone is no news.
            if skipped and not self._failed:
                self._failed = True
                _logger.warning(
                    "connections cannot be steered past a worker that does not serve: %s",
                    error.strerror,
                )
