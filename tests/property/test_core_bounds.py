"""The core never holds more than its bound, whatever comes."""

from __future__ import annotations

import tracemalloc

import pytest
import streams
from dialogues.caller import Caller

from preforkmx.protocol.core import NEED_DATA
from preforkmx.protocol.events import Chunk, Closing, End
from preforkmx.protocol.settings import Settings

PIECE = 65536
MEBIBYTE = 1 << 20


def peak_of(work) -> int:
    """Octets that were allocated at once while `work` ran."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content", [b"x", b"x\r\n", b"\r\n", b"..\r\n", b"\n", b"\r", b"\r\n.\r", b"\0"]
)
def test_a_message_of_any_size_costs_the_memory_of_a_piece(content):
    caller = Caller(Settings(hostname="mx.example.com", message_size=16 * MEBIBYTE))
    core = caller.core
    caller.connect()
    caller.send(streams.GREETINGS[0] + streams.MESSAGE)
    octets = content * (PIECE // len(content))

    def work():
        for _ in range(8 * MEBIBYTE // PIECE):
            core.receive_data(octets)
            while (event := core.next_event()) is not NEED_DATA:
                assert type(event) is Chunk
            assert core.buffered == 0

    assert peak_of(work) < MEBIBYTE


def test_a_message_that_never_ends_is_read_to_twice_its_limit():
    core = Caller(Settings(hostname="mx.example.com", message_size=MEBIBYTE)).core
    core.greet()
    core.receive_data(streams.GREETINGS[0] + streams.MESSAGE)
    while core.next_event() is not NEED_DATA:
        core.accept()
    fed = 0
    while True:
        core.receive_data(b"x" * PIECE)
        fed += PIECE
        event = core.next_event()
        if type(event) is End:
            break
        assert event is NEED_DATA or type(event) is Chunk
    assert 2 * MEBIBYTE < fed <= 2 * MEBIBYTE + 2 * PIECE
    assert event.fault is not None
    core.finish(event.fault)
    assert type(core.next_event()) is Closing


@pytest.mark.parametrize("opening", [b"", b"AUTH LOGIN\r\n"])
def test_a_line_that_never_ends_is_given_up(opening):
    caller = Caller(streams.small_settings())
    caller.connect()
    caller.send(streams.GREETINGS[0] + opening)

    def work():
        for _ in range(30000):
            if caller.core.closed:
                break
            caller.send(b"x")
            streams.check(caller)

    assert peak_of(work) < MEBIBYTE
    assert caller.core.closed
    assert caller.output.endswith(b"500 5.5.2 Line too long\r\n")


def test_a_flight_of_commands_is_read_without_copying_its_rest_for_each():
    caller = Caller(Settings(hostname="mx.example.com"))
    caller.connect()
    flight = b"NOOP\r\n" * 100_000
    assert peak_of(lambda: caller.send(flight)) < 20 * MEBIBYTE
    assert caller.output.count(b"250 Ok\r\n") == 100_000
