"""The channel between the master and a process."""

from __future__ import annotations

import errno
import json
import os
import select
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from preforkmx.workers.channel import MESSAGE_OCTETS, PROBLEMS, Channel

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = Channel.pair()
    yield ours, theirs
    ours.close()
    theirs.close()


def fill(channel: Channel) -> int:
    """Fill the socket; return how many messages it took."""
    count = 0
    with suppress(BlockingIOError):
        while True:
            channel._socket.send(b'{"type": "filler"}')
            count += 1
    return count


def receive_all(channel: Channel) -> list[dict[str, object]]:
    """Receive until there is nothing."""
    messages = []
    while piece := channel.receive():
        messages += piece
    return messages


def test_messages_keep_their_boundaries_and_their_order(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    theirs.post("ready")
    theirs.post("failed", problems=["a"])
    assert ours.receive() == [{"type": "ready"}, {"type": "failed", "problems": ["a"]}]
    assert ours.receive() == []
    assert not ours.ended


def test_an_end_shows_after_all_that_was_sent_before_it(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    theirs.post("ready")
    theirs.close()
    assert ours.receive() == [{"type": "ready"}]
    assert ours.ended


def test_what_a_dead_process_sent_is_received_although_it_left_messages_unread(
    ends: tuple[Channel, Channel],
) -> None:
    ours, theirs = ends
    theirs.post_counters({"messages": 1})
    ours.post("drain", seconds=1.0)
    theirs.close()
    messages = ours.receive() + ours.receive()
    assert messages == [{"type": "stats", "counters": {"messages": 1}}]
    assert ours.ended


def test_the_end_wakes_who_waits(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    theirs.close()
    assert select.select([ours], [], [], 5)[0] == [ours]


def test_a_message_to_a_dead_process_is_lost_without_an_error(
    ends: tuple[Channel, Channel],
) -> None:
    ours, theirs = ends
    theirs.close()
    ours.post("drain", seconds=1.0)
    assert ours.flush()


class Exhausted:
    """A socket whose kernel is out of something for a while."""

    def __init__(self, number: int, times: int, sock: socket.socket) -> None:
        self._error = OSError(number, os.strerror(number))
        self._times = times
        self._socket = sock

    def send(self, octets: bytes) -> int:
        self._times -= 1
        if self._times >= 0:
            raise self._error
        return self._socket.send(octets)

    def close(self) -> None:
        self._socket.close()


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENOMEM])
def test_what_the_kernel_has_no_memory_for_goes_out_later(
    ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    ours, theirs = ends
    monkeypatch.setattr(theirs, "_socket", Exhausted(number, 3, theirs._socket))
    theirs.post("ready")
    theirs.post_counters({"messages": 1})
    assert receive_all(ours) == []
    assert theirs.unsent() == [{"type": "ready"}]
    assert not theirs.flush()
    assert theirs.flush()
    assert [message["type"] for message in receive_all(ours)] == ["ready", "stats"]


def test_a_message_that_is_too_long_is_told_of_and_keeps_nobody(
    ends: tuple[Channel, Channel], caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = ends
    theirs._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    theirs.post("failed", problems=["x" * 60_000])
    theirs.post("ready")
    assert receive_all(ours) == [{"type": "ready"}]
    assert [record.getMessage() for record in caplog.records] == [
        "a message (failed) is too long to be sent: dropped"
    ]


def test_counters_that_a_full_socket_does_not_take_are_added_up(
    ends: tuple[Channel, Channel],
) -> None:
    ours, theirs = ends
    taken = fill(theirs)
    for _ in range(1000):
        theirs.post_counters({"messages": 2, "octets": 10})
    assert not theirs.flush()
    assert len(receive_all(ours)) == taken
    assert theirs.flush()
    assert receive_all(ours) == [{"type": "stats", "counters": {"messages": 2000, "octets": 10000}}]


def test_of_orders_that_wait_the_last_of_each_kind_is_kept(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    taken = fill(ours)
    for seconds in range(1000):
        ours.post("drain", seconds=seconds)
    ours.post("stop")
    assert len(receive_all(theirs)) == taken
    assert ours.flush()
    assert receive_all(theirs) == [{"type": "drain", "seconds": 999}, {"type": "stop"}]


def test_an_order_goes_out_before_counters_that_wait(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    fill(theirs)
    theirs.post_counters({"messages": 1})
    theirs.post("replace")
    receive_all(ours)
    theirs.flush()
    assert [message["type"] for message in receive_all(ours)] == ["replace", "stats"]


def test_one_call_receives_a_bounded_number(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    fill(theirs)
    assert len(ours.receive()) == 32


@pytest.mark.parametrize(
    "octets",
    [b"x", b"[]", b"null", b"{}", b'{"type": null}', b"[" * 20_000, b"\xff", b"9" * 10_000],
)
def test_what_is_no_message_is_counted_and_dropped(
    ends: tuple[Channel, Channel], octets: bytes
) -> None:
    ours, theirs = ends
    theirs._socket.send(octets)
    theirs.post("ready")
    assert ours.receive() == [{"type": "ready"}]
    assert ours.dropped == 1


def test_any_number_of_problems_of_any_length_fits_one_message(
    ends: tuple[Channel, Channel],
) -> None:
    ours, theirs = ends
    theirs.post_failure([f"{n}: " + "\x01\U0001f4a5" * 5000 for n in range(200)])
    (message,) = ours.receive()
    assert len(message["problems"]) == PROBLEMS
    assert message["problems"][0].startswith("0: \x01\U0001f4a5")
    assert message["problems"][-1] == "… and 151 more"
    assert len(json.dumps(message, ensure_ascii=False).encode()) <= MESSAGE_OCTETS


def test_a_problem_with_a_lone_surrogate_arrives(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    theirs.post_failure(["file \udc80 is missing"])
    assert ours.receive()[0]["problems"] == ["file \udc80 is missing"]
