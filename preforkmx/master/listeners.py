"""The listening sockets: one SO_REUSEPORT socket for each TCP listener and slot.

The master makes them and keeps every one open for as long as there is its listener and its
slot: what is queued in the socket of a worker that was killed waits there for its replacement.

A unix listener knows neither SO_REUSEPORT nor a filter nor a queue that could be counted
(:mod:`preforkmx.master.unix`): it has one socket, which all slots share.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from preforkmx.master.activation import PassedPort, passed_ports
from preforkmx.master.errors import StartRefused
from preforkmx.master.ports import Port, TcpPort, UnixPort, address_key, covers, match, open_ports
from preforkmx.master.sockets import bind_tcp
from preforkmx.master.steering import attach, program
from preforkmx.master.unix import refuse_live
from preforkmx.session.listener import split_address

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection, Iterable, Sequence

    from preforkmx.master.handover import PortState
    from preforkmx.master.ports import Opened
    from preforkmx.session.listener import Listener

_KINDS: dict[str, type[TcpPort | UnixPort | PassedPort]] = {
    "tcp": TcpPort,
    "unix": UnixPort,
    "passed": PassedPort,
}


class ListenerSockets:
    """The sockets of all listeners.

    :param listeners: what to listen on.
    :param count: worker slots.
    :param passed: sockets that systemd made; a port is opened where none of them fits.
    :raises StartRefused: one of them fits no listener.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        count: int,
        passed: Sequence[socket.socket] = (),
    ) -> None:
        self._count = count
        self.listeners = tuple(listeners)
        """The listeners of the generation that serves; once open, with the port that a port 0
        has become."""
        self.ports: list[Port] = [*passed_ports(listeners, passed, count)]
        """All that are open; during a reload also those that come and those that go."""
        self._dropped_before: list[int | None] | None = None
        """What had been dropped when all were closed."""

    def hand_over(self) -> tuple[PortState, ...]:
        """Return what another program in this process needs to have every port."""
        return tuple(port.hand_over() for port in self.ports)

    @classmethod
    def taken_over(
        cls, listeners: Sequence[Listener], count: int, ports: Iterable[PortState]
    ) -> Self:
        """Return the sockets of an earlier program in this process."""
        sockets = cls(listeners, count)
        sockets.ports = [_KINDS[state.kind].taken_over(state) for state in ports]
        return sockets

    @property
    def count(self) -> int:
        """For how many slots there are sockets."""
        return self._count

    def probe(self) -> None:
        """Bind every port once without SO_REUSEPORT, and let go of it; knock at every path.

        With SO_REUSEPORT alone a second server of the same user would join the first one's
        group in silence, and take its mail.

        :raises StartRefused: an address is taken or not permitted, or is named twice.
        """
        for problem in self.problems(self.listeners):
            raise StartRefused(problem)

    def problems(self, listeners: Sequence[Listener]) -> list[str]:
        """Return why these listeners cannot be opened; those that are open already can."""
        return listener_problems(listeners, self.ports)

    def open(self) -> None:
        """Bind, and listen in the order of the slots: that is their index in the group.

        Each port is probed once more first: the checker has run since the start, and another
        server that was started with this one may have opened them meanwhile.

        :raises StartRefused: as :meth:`probe`; nothing is left open.
        """
        self.probe()
        there = match(self.listeners, self.ports)
        missing = [
            listener for listener, port in zip(self.listeners, there, strict=True) if port is None
        ]
        opened = iter(open_ports(missing, self._count))
        self.ports = [next(opened) if port is None else port for port in there]
        self.listeners = tuple(port.listener for port in self.ports)

    def add(self, listeners: Iterable[Listener], count: int) -> list[Port]:
        """Open further ports, which let nobody in yet.

        :raises StartRefused: one cannot be opened; nothing has changed.
        """
        added = open_ports(list(listeners), count, held=True)
        self.ports += added
        return added

    def remove(self, port: Port) -> None:
        """Close a port, in every process."""
        self.ports.remove(port)
        port.end()

    def serve(self, listeners: Sequence[Listener]) -> None:
        """Be what a new generation listens on: let its clients in, take over its options."""
        for listener, port in self._of(listeners):
            port.release()
            port.adopt(listener)
        self.listeners = tuple(port.listener for _, port in self._of(listeners))

    def grow(self, ports: Iterable[Port], past: Collection[int] = ()) -> None:
        """Make the sockets of one slot more on these ports; no connection is led to them yet.

        :param past: the slots that connections are steered past as it is, and go on to be.
        :raises StartRefused: there is none to be had; nothing has changed.
        """
        skipped = {index for index in past if index < self._count} | {self._count}
        if len(skipped) > self._count:
            # All are away, and who queues there is greeted later: but not in the new one.
            skipped = {self._count}
        grown: list[Port] = []
        try:
            for port in ports:
                if isinstance(port, TcpPort):
                    # Before it listens: nobody is there yet who could greet.
                    with contextlib.suppress(OSError):
                        attach(port.sockets[0], program(self._count + 1, skipped))
                port.grow()
                grown.append(port)
        except BaseException:
            for port in grown:
                port.shrink()
            raise
        self._count += 1

    def shrink(self) -> None:
        """Close the sockets of the highest slot, in every process that has them."""
        self._count -= 1
        for port in self.ports:
            while len(port.sockets) > self._count:
                port.shrink()

    def _of(self, listeners: Sequence[Listener]) -> list[tuple[Listener, Port]]:
        return [
            (listener, port)
            for listener, port in zip(listeners, match(listeners, self.ports), strict=True)
            if port is not None
        ]

    def of_slot(
        self, slot: int, plan: Sequence[Listener] | None = None
    ) -> tuple[tuple[socket.socket, Listener], ...]:
        """Return a slot's sockets, each with its listener.

        :param plan: the listeners of a generation; they are open.
        """
        return tuple(
            (port.sockets[slot], replace(listener, address=port.listener.address))
            for listener, port in self._of(self.listeners if plan is None else plan)
        )

    def groups(self) -> list[list[socket.socket]]:
        """Return the reuseport groups, each in the order of the slots; no socket that is shared."""
        return [port.sockets for port in self.ports if isinstance(port, TcpPort)]

    def queued(self) -> list[int | None]:
        """Return how many connections wait to be accepted, for each listener.

        None for a unix socket: the kernel does not say.
        """
        if not self.ports:
            return [None if listener.unix_path else 0 for listener in self.listeners]
        return [port.queued() for _, port in self._of(self.listeners)]

    def dropped(self) -> list[int | None]:
        """Return how many segments found no place, as :meth:`Port.dropped`, for each listener."""
        if self._dropped_before is not None:
            # Closed for good; and a counter never goes back.
            return self._dropped_before
        if not self.ports:
            return [None if listener.unix_path else 0 for listener in self.listeners]
        return [port.dropped() for _, port in self._of(self.listeners)]

    def waiting(self, ports: Iterable[Port], slots: Iterable[int]) -> int:
        """Return how many connections wait on these ports, and on these slots of the others."""
        parting = list(ports)
        staying = [port for port in self.ports if port not in parting]
        return sum(port.waiting() for port in parting) + sum(
            port.waiting(slot) for slot in slots for port in staying if slot < len(port.sockets)
        )

    def shut(self) -> None:
        """Let no new connection begin; what is queued is still greeted."""
        for port in self.ports:
            port.shut()

    def close(self) -> None:
        """Close every socket, and remove the unix sockets' files: in the master."""
        if self.ports:
            self._dropped_before = self.dropped()
        for port in self.ports:
            port.close()
        self.ports = []

    def leave(self, *, but: Collection[socket.socket] = ()) -> None:
        """Close every socket, save those in `but`, and leave the files: in a child."""
        for port in self.ports:
            port.leave(but)
        self.ports = []


def listener_problems(listeners: Sequence[Listener], ports: Sequence[Opened]) -> list[str]:
    """Return why listeners cannot be opened, each probed by itself.

    :param ports: what is open already, and stays so or not.
    """
    problems = []
    seen = set()
    for listener, port in zip(listeners, match(listeners, ports), strict=True):
        key = address_key(listener.address)
        if key[1] == 0:
            # No probe: for port 0 the kernel picks one that nobody has, shared or not.
            continue
        if key in seen:
            problems.append(f"{listener.address} is named by two listeners")
        elif port is None:
            try:
                _probe(listener, ports)
            except StartRefused as refusal:
                problems.append(str(refusal))
        seen.add(key)
    return problems


def _probe(listener: Listener, ports: Sequence[Opened]) -> None:
    path = listener.unix_path
    if path is not None:
        refuse_live(path)
        return
    host, number = split_address(listener.address)
    # A port of ours on another address may be in the way of a bind that does not share: one that
    # has every address in that of one that has some, and the other way round.
    key = address_key(listener.address)
    ours = [address_key(port.listener.address) for port in ports]
    shared = any(key[1] == other[1] and covers(key[0], other[0]) for other in ours)
    bind_tcp(host, number, reuse_port=shared).close()
