"""The master's loop."""

from __future__ import annotations

import socket
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from preforkmx.master.reactor import WRITE, Reactor

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    with closing(Reactor()) as reactor:
        yield reactor


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, two = socket.socketpair()
    with one, two:
        yield one, two


def test_who_watches_is_called_when_there_is_something(
    reactor: Reactor, pair: tuple[socket.socket, socket.socket]
) -> None:
    seen = []
    reactor.watch(pair[0], lambda: seen.append(pair[0].recv(10)))
    reactor.turn(0)
    assert seen == []
    pair[1].send(b"x")
    reactor.turn(5)
    assert seen == [b"x"]


def test_a_second_watch_takes_the_place_of_the_first(
    reactor: Reactor, pair: tuple[socket.socket, socket.socket]
) -> None:
    seen = []
    reactor.watch(pair[0], lambda: seen.append("read"))
    reactor.watch(pair[0], lambda: seen.append("write"), WRITE)
    pair[1].send(b"x")
    reactor.turn(5)
    assert seen == ["write"]


def test_what_is_forgotten_is_not_called_and_may_be_forgotten_twice(
    reactor: Reactor, pair: tuple[socket.socket, socket.socket]
) -> None:
    seen = []
    reactor.watch(pair[0], lambda: seen.append("read"))
    pair[1].send(b"x")
    reactor.forget(pair[0])
    reactor.forget(pair[0])
    reactor.turn(0)
    assert seen == []


def test_a_descriptor_that_an_earlier_call_of_the_same_turn_closed_is_left_alone(
    reactor: Reactor,
) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    seen = []

    def close_all() -> None:
        seen.append("called")
        for ours, theirs in pairs:
            if ours.fileno() >= 0:
                reactor.forget(ours)
                ours.close()
                theirs.close()

    for ours, theirs in pairs:
        reactor.watch(ours, close_all)
        theirs.send(b"x")
    reactor.turn(5)
    assert seen == ["called"]


def test_a_timeout_that_is_over_already_does_not_wait(reactor: Reactor) -> None:
    reactor.turn(-5.0)
