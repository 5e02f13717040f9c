"""UDP ports: where the questions to one resolver leave from, and its answers arrive.

Whoever forges an answer without seeing the question has to guess the id and the port (RFC 5452).
The kernel draws the port of each socket at random, a question leaves from any of :data:`PORTS`
sockets, and a socket is used for few questions and for a short time. All are connected: an
answer from another address does not arrive at all.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from preforkmx.dns.messages import id_of

if TYPE_CHECKING:
    from preforkmx.dns.counters import DNSCounters
    from preforkmx.dns.messages import Question
    from preforkmx.dns.upstream import Upstream

#: Sockets for each resolver among which a question chooses; a power of two.
PORTS: Final = 8
_PORT_BITS: Final = PORTS.bit_length() - 1
#: Questions after which a socket is replaced.
MAX_QUESTIONS: Final = 64
#: Seconds after which a socket is replaced.
MAX_AGE: Final = 30.0
#: Replaced sockets that still wait for answers. While there are as many, none is replaced.
MAX_RETIRED: Final = 24
#: Ids that a socket has used at most: half of them, so that a free one is soon found.
MAX_IDS: Final = 1 << 15
#: Answers to nothing that one socket takes before it is given up, and what it waits for is asked
#: over TCP: somebody guesses (RFC 5452 section 9.2).
MAX_WRONG: Final = 64
#: Datagrams that are read before others have their turn.
MAX_READS: Final = 32
#: Octets of a datagram that are read; the rest is lost, and the answer malformed.
MAX_DATAGRAM: Final = 4096


class Asker(Protocol):
    """Who waits for an answer."""

    question: Question

    def received(self, upstream: Upstream, wire: bytes) -> None:
        """Take the answer of `upstream`."""

    def refused(self, upstream: Upstream, reason: str) -> None:
        """Learn that there will be none of `upstream`."""

    def suspected(self, upstream: Upstream) -> None:
        """Learn that somebody guesses answers of `upstream`."""


class Place:
    """Where an asker is waited for: one id of one socket."""

    __slots__ = ("_asker", "_number", "_port")

    def __init__(self, port: _Port, number: int, asker: Asker) -> None:
        self._port = port
        self._number = number
        self._asker = asker

    def leave(self) -> None:
        """Wait no longer; an answer that comes all the same is late."""
        self._port.forget(self._number)


class Ports:
    """The sockets towards one resolver. Belongs to one event loop."""

    def __init__(self, upstream: Upstream, counters: DNSCounters) -> None:
        self.upstream = upstream
        self.counters = counters
        self._current: list[_Port | None] = [None] * PORTS
        self._retired: set[_Port] = set()

    @property
    def count(self) -> int:
        """How many sockets are open."""
        return sum(port is not None for port in self._current) + len(self._retired)

    def send(self, asker: Asker, *, edns: bool) -> Place:
        """Send the asker's question from a port that chance chooses.

        :raises OSError: nothing can be sent.
        """
        slot = secrets.randbits(_PORT_BITS)
        try:
            return self._port(slot).send(asker, edns=edns)
        except ConnectionRefusedError as error:
            # The socket tells of an earlier question's fate: a new one knows of none.
            self.give_up(slot, error.strerror or "refused")
            return self._port(slot).send(asker, edns=edns)

    def close(self) -> None:
        """Close every socket; nobody is told."""
        for port in (*self._current, *self._retired):
            if port is not None:
                port.close()
        self._current = [None] * PORTS
        self._retired.clear()

    def give_up(self, slot: int, reason: str, *, suspected: bool = False) -> None:
        """Close the socket of `slot`, and tell who waits there."""
        port = self._current[slot]
        if port is not None:
            self._current[slot] = None
            port.give_up(reason, suspected=suspected)

    def lost(self, port: _Port, reason: str, *, suspected: bool = False) -> None:
        """Do the same with a socket that may be retired."""
        if port in self._current:
            self.give_up(self._current.index(port), reason, suspected=suspected)
        else:
            port.give_up(reason, suspected=suspected)

    def emptied(self, port: _Port) -> None:
        """Close a socket at which nobody waits any more, if it is retired."""
        if port in self._retired:
            port.close()
            self._retired.discard(port)

    def _port(self, slot: int) -> _Port:
        port = self._current[slot]
        if port is not None and port.is_used_up and len(self._retired) < MAX_RETIRED:
            if port.is_waited_at:
                self._retired.add(port)
            else:
                port.close()
            port = None
        if port is None:
            port = self._current[slot] = _Port(self)
        return port


class _Port:
    """One socket."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._waiting: dict[int, Asker] = {}
        self._used: set[int] = set()
        self._wrong = 0
        self._loop = asyncio.get_running_loop()
        self._until = time.monotonic() + MAX_AGE
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(ports.upstream.server.family, kind)
        try:
            # The kernel binds it, to a port at random, and takes answers from nobody else.
            self._socket.connect(ports.upstream.server.address)
            self._loop.add_reader(self._socket.fileno(), self._readable)
        except BaseException:
            self._socket.close()
            raise
        ports.counters.ports += 1

    @property
    def is_used_up(self) -> bool:
        return len(self._used) >= MAX_QUESTIONS or time.monotonic() >= self._until

    @property
    def is_waited_at(self) -> bool:
        return bool(self._waiting)

    def send(self, asker: Asker, *, edns: bool) -> Place:
        if len(self._used) >= MAX_IDS:
            raise OSError(errno.EBUSY, "every id is in use")
        number = secrets.randbits(16)
        while number in self._used:
            number = secrets.randbits(16)
        # One that does not fit into the socket's buffer is lost, as any datagram may be.
        with suppress(BlockingIOError):
            self._socket.send(asker.question.query(number, edns=edns))
        self._used.add(number)
        self._waiting[number] = asker
        self._ports.counters.sent += 1
        return Place(self, number, asker)

    def forget(self, number: int) -> None:
        if self._waiting.pop(number, None) is not None and not self._waiting:
            self._ports.emptied(self)

    def close(self) -> None:
        self._waiting.clear()
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def give_up(self, reason: str, *, suspected: bool) -> None:
        waiting = list(self._waiting.values())
        self.close()
        self._ports.emptied(self)
        for asker in waiting:
            if suspected:
                asker.suspected(self._ports.upstream)
            else:
                asker.refused(self._ports.upstream, reason)

    def _readable(self) -> None:
        for _ in range(MAX_READS):
            try:
                wire = self._socket.recv(MAX_DATAGRAM)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._ports.lost(self, error.strerror or os.strerror(error.errno or 0))
                return
            self._received(wire)
            if self._socket.fileno() < 0:
                return

    def _received(self, wire: bytes) -> None:
        number = id_of(wire)
        asker = self._waiting.get(number)
        if asker is not None and asker.question.is_answered_by(wire):
            self.forget(number)
            asker.received(self._ports.upstream, wire)
        elif asker is None and number in self._used:
            self._ports.counters.late += 1
        else:
            self._ports.counters.wrong += 1
            self._wrong += 1
            if self._wrong >= MAX_WRONG:
                self._ports.lost(self, "", suspected=True)
