"""Steering of reuseport groups: the kernel's own answers, on real sockets."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkmx.master import steering
from preforkmx.master.listeners import ListenerSockets
from preforkmx.master.sockets import bind_tcp
from preforkmx.master.steering import Steering, attach, detach, program
from preforkmx.session.listener import Listener

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

CONNECTIONS = 400


class Group:
    """Listening sockets that share a port."""

    def __init__(self, count: int, host: str = "127.0.0.1") -> None:
        self.host = host
        self.port = 0
        self.members: list[socket.socket] = []
        for _ in range(count):
            self.bind()
        for sock in self.members:
            sock.listen(CONNECTIONS)

    def bind(self) -> socket.socket:
        """Bind one more socket; it does not listen yet."""
        sock = bind_tcp(self.host, self.port, reuse_port=True)
        self.port = sock.getsockname()[1]
        self.members.append(sock)
        return sock

    def shares(self, connections: int = CONNECTIONS) -> list[int]:
        """Connect so often, and return how many connections each member got."""
        with ExitStack() as stack:
            for _ in range(connections):
                stack.enter_context(socket.create_connection((self.host, self.port)))
            return [self._accept_all(sock) for sock in self.members]

    def _accept_all(self, sock: socket.socket) -> int:
        taken = 0
        while True:
            try:
                connection, _ = sock.accept()
            except BlockingIOError:
                return taken
            connection.close()
            taken += 1

    def close(self) -> None:
        """Close them all."""
        for sock in self.members:
            sock.close()


@pytest.fixture
def group() -> Iterator[Group]:
    group = Group(4)
    yield group
    group.close()


def run(instructions: steering.Program, drawn: int) -> int:
    """Do what the kernel does with a program, with a random number of ours."""
    accumulator = place = 0
    while True:
        code, met, missed, constant = instructions[place]
        place += 1
        if code == 0x20:
            accumulator = drawn
        elif code == 0x94:
            accumulator %= constant
        elif code == 0x04:
            accumulator += constant
        elif code == 0x35:
            place += met if accumulator >= constant else missed
        else:
            assert code == 0x16
            return accumulator


@given(st.integers(2, 40).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_every_index_but_those_away_is_drawn_exactly_as_often(case: tuple[int, set[int]]) -> None:
    count, away = case
    if len(away) == count:
        away.pop()
    instructions = program(count, away)
    served = [index for index in range(count) if index not in away]
    drawn = [run(instructions, number) for number in range(3 * len(served))]
    assert sorted(drawn) == sorted(served * 3)


@pytest.mark.parametrize("away", [{1}, {0}, {3}, {0, 2}, {1, 2, 3}])
def test_no_connection_lands_where_it_is_steered_away_from(group: Group, away: set[int]) -> None:
    attach(group.members[0], program(4, away))
    shares = group.shares()
    served = [share for index, share in enumerate(shares) if index not in away]
    assert [shares[index] for index in away] == [0] * len(away)
    assert sum(served) == CONNECTIONS
    # Binomial: a share of a third is 133 ± 9.4, one of a half 200 ± 10; five times that is chance
    # once in a million.
    assert all(abs(share - CONNECTIONS / len(served)) <= 50 for share in served)


def test_ipv6_is_steered_as_well() -> None:
    group = Group(2, "::1")
    try:
        attach(group.members[0], program(2, {0}))
        assert group.shares(40) == [0, 40]
    finally:
        group.close()


def test_any_member_may_be_told_and_the_last_program_counts(group: Group) -> None:
    attach(group.members[0], program(4, {1}))
    attach(group.members[3], program(4, {0, 2, 3}))
    assert group.shares(40) == [0, 40, 0, 0]


def test_an_index_out_of_range_falls_back_to_the_hash(group: Group) -> None:
    """Every other connection is sent to one of ten that there are not."""
    attach(group.members[0], program(14, set()))
    shares = group.shares()
    assert sum(shares) == CONNECTIONS
    assert all(shares)


def test_detach_restores_the_hash(group: Group) -> None:
    attach(group.members[0], program(4, {1}))
    detach(group.members[2])
    shares = group.shares()
    assert sum(shares) == CONNECTIONS
    assert all(shares)


def test_detach_where_nothing_is_attached_does_nothing(group: Group) -> None:
    detach(group.members[0])


def test_a_handshake_under_way_is_not_disturbed(group: Group) -> None:
    """Connections that are queued stay where they are."""
    with ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(socket.create_connection(("127.0.0.1", group.port)))
        attach(group.members[0], program(4, {0}))
        assert sum(group.shares(0)) == 40


class Watched(Steering):
    """Steering that counts what it asks of the kernel."""

    def __init__(self, groups: Collection[list[socket.socket]]) -> None:
        super().__init__(lambda: groups)
        self.calls: list[tuple[int, frozenset[int]]] = []

    def _set(self, member: socket.socket, count: int, skipped: frozenset[int]) -> None:
        self.calls.append((count, skipped))
        super()._set(member, count, skipped)


def test_the_kernel_is_asked_only_when_something_changes(group: Group) -> None:
    watched = Watched([group.members])
    for away in ({1}, {1}, {1, 2}, set(), set()):
        watched.steer(away, 4)
    assert watched.calls == [(4, {1}), (4, {1, 2}), (4, set())]
    assert all(group.shares())


def test_where_all_are_away_nobody_is_steered(group: Group) -> None:
    watched = Watched([group.members])
    watched.steer({1}, 4)
    watched.steer({0, 1, 2, 3}, 4)
    assert watched.calls[-1] == (4, set())
    assert all(group.shares())


def test_nobody_is_led_to_a_socket_whose_slot_is_not_there_yet(group: Group) -> None:
    watched = Watched([group.members])
    for away, served in ((set(), {0, 1}), ({0}, {1}), ({0, 1}, {0, 1})):
        watched.steer(away, 2)
        shares = group.shares(40)
        assert {index for index, share in enumerate(shares) if share} == served
    watched.steer(set(), 4)
    assert all(group.shares())


def test_a_slot_that_a_group_does_not_have_is_none_of_its_business(group: Group) -> None:
    watched = Watched([group.members])
    watched.steer({7}, 8)
    assert watched.calls == [(4, set())]


def test_a_group_that_grows_or_comes_later_is_steered_too(group: Group) -> None:
    groups = [group.members]
    watched = Watched(groups)
    watched.steer({0}, 5)
    group.bind().listen(CONNECTIONS)
    other = Group(2)
    try:
        groups.append(other.members)
        watched.steer({0}, 5)
        assert watched.calls[1:] == [(5, {0}), (2, {0})]
        shares = group.shares()
        assert (shares[0], all(shares[1:])) == (0, True)
        assert other.shares(20) == [0, 20]
    finally:
        other.close()


def test_what_an_earlier_master_left_attached_is_taken_off(group: Group) -> None:
    attach(group.members[0], program(4, {1}))
    Steering(lambda: [group.members]).steer(set(), 4)
    assert all(group.shares())


class Refusing:
    """A socket in a sandbox."""

    def setsockopt(self, *_: object) -> None:
        raise OSError(errno.ENOPROTOOPT, "Protocol not available")


def test_a_kernel_that_refuses_is_named_once_and_all_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    members = cast("Any", [Refusing(), Refusing()])
    steered = Steering(lambda: [members])
    steered.steer(set(), 2)
    assert caplog.messages == []
    for away in ({0}, {1}, set(), {0}):
        steered.steer(away, 2)
    assert len(caplog.messages) == 1
    assert "Protocol not available" in caplog.text


class RefusingOnce(Refusing):
    """A socket of a machine that had no memory for a moment."""

    asked = 0

    def setsockopt(self, *_: object) -> None:
        self.asked += 1
        if self.asked == 1:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")


def test_what_the_kernel_refused_for_a_moment_is_asked_again_in_the_next_turn() -> None:
    member = RefusingOnce()
    steered = Steering(lambda: [cast("Any", [member, member])])
    for _ in range(3):
        steered.steer({0}, 2)
    assert member.asked == 2


def test_a_unix_listener_is_in_no_group(tmp_path: Path) -> None:
    listeners = ListenerSockets(
        [Listener("127.0.0.1:0"), Listener(f"unix:{tmp_path}/smtp.sock"), Listener("[::1]:0")], 2
    )
    assert listeners.groups() == []
    listeners.open()
    try:
        families = [[sock.family for sock in group] for group in listeners.groups()]
        assert families == [[socket.AF_INET] * 2, [socket.AF_INET6] * 2]
    finally:
        listeners.close()
