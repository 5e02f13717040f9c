"""The store process' end: bounds, bad frames, workers that come and go."""

from __future__ import annotations

import asyncio
import contextlib
from ipaddress import ip_address

import pytest

from preforkmx.state.decisions import (
    NOTHING,
    WITHOUT_LIMIT,
    ConnectionLimits,
    GreylistSettings,
    GreylistState,
    Rate,
    Spent,
    running,
)
from preforkmx.state.embedded import EmbeddedStore, frames, server

HOST = ip_address("192.0.2.1")
ONE = ConnectionLimits("in", concurrent=1)
TOKEN = b"0123456789abcdef"
GREETED = frames.REPLY.pack(frames.GREETED, frames.VERSION, 0)
TEN = Rate(count=1, period=10.0, burst=10)
BUDGETS = ConnectionLimits("in", messages=TEN, octets=TEN)
ACCOUNT = frames.open_connection(1, b"host", BUDGETS)
TAKE = frames.take(1_000_000, 1_000_000, b"key")


@contextlib.asynccontextmanager
async def connected(path):
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.mark.parametrize(
    "octets",
    [
        b"\x00",
        frames.hello(TOKEN)[:1] + b"\x02" + frames.hello(TOKEN)[2:],
        TAKE,
        frames.hello(TOKEN) + frames.hello(TOKEN),
        frames.hello(TOKEN) + b"\x00",
        frames.hello(TOKEN) + b"\x01\x63",
        frames.hello(TOKEN) + b"\x05" + TAKE[1:6],
        frames.hello(TOKEN).replace(b"\x01\x04\x00", b"\x01\x03\x00", 1),
        frames.hello(TOKEN) + frames.hold(1, b"key") + frames.hold(1, b"key"),
        frames.hello(TOKEN) + frames.hold(1, b""),
        frames.hello(TOKEN) + frames.hold_account(1, b"host", BUDGETS) * 2,
        frames.hello(TOKEN) + frames.hold(1, b"key") + frames.hold_account(1, b"host", BUDGETS),
        frames.hello(TOKEN) + frames.settle(1, NOTHING, NOTHING),
        frames.hello(TOKEN) + frames.hold(1, b"key") + frames.settle(1, NOTHING, NOTHING),
        frames.hello(TOKEN) + b"\x05" + ACCOUNT[1:6],
        frames.hello(TOKEN) + b"\x05" + frames.close_account(1, NOTHING)[1:6],
        frames.hello(TOKEN) + ACCOUNT.replace(TEN.tolerance.to_bytes(8, "little"), b"\xff" * 8),
        frames.hello(TOKEN) + frames.greylist((0, 1 << 63, 1, 0, 0), b"k" * 16, b"n"),
        frames.hello(TOKEN) + frames.look(b""),
        frames.hello(TOKEN) + frames.look(b"key"),
        frames.hello(TOKEN) + frames.forget(b"c\0host"),
        frames.hello(TOKEN) + b"\x05" + frames.look_at_greylist(bytes(16), b"n")[1:6],
        frames.hello(TOKEN) + frames.allow(0, 1, b"n"),
        frames.hello(TOKEN) + frames.allow(5, 1 << 63, b"n"),
        frames.hello(TOKEN) + frames.remember(1 << 63, [b"m" * 20]),
        frames.hello(TOKEN) + frames.remember(1, []),
        frames.hello(TOKEN) + bytes((28, frames.REMEMBER, *bytes(8))) + b"m" * 19,
        frames.hello(TOKEN) + bytes((5, frames.REMEMBER, *bytes(4))),
        frames.hello(TOKEN) + frames.known([]),
        frames.hello(TOKEN) + bytes((22, frames.KNOWN)) + b"m" * 21,
        frames.hello(TOKEN) + bytes((40, frames.FORGET_MARKS)) + b"m" * 39,
        b"EHLO client.example\r\n" * 100,
    ],
)
def test_a_malformed_frame_ends_its_connection_and_no_other(serve, clock, octets, caplog):
    async def main():
        async with serve(clock) as path, running(EmbeddedStore(path, deadline=30.0)) as store:
            async with connected(path) as (reader, writer):
                writer.write(octets)
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() in (b"", GREETED)
            assert (await store.take(Rate(1, 1.0, 1), "key")).allowed

    asyncio.run(main())
    assert "closed the connection of a worker" in caplog.text


def test_frames_may_come_in_pieces(serve, clock):
    async def main():
        async with serve(clock) as path, connected(path) as (reader, writer):
            for octet in frames.hello(TOKEN) + TAKE + TAKE:
                writer.write(bytes([octet]))
                await writer.drain()
                await asyncio.sleep(0)
            expected = GREETED + frames.REPLY.pack(0, 0, 0) + frames.REPLY.pack(1, 1_000_000, 0)
            assert await reader.readexactly(len(expected)) == expected

    asyncio.run(main())


def test_a_second_connection_of_a_worker_takes_the_place_of_the_first(serve, clock):
    async def main():
        async with serve(clock) as path, connected(path) as (old, writer):
            writer.write(frames.hello(TOKEN) + frames.open_connection(1, b"host", ONE))
            await old.readexactly(2 * frames.REPLY.size)
            async with connected(path) as (reader, new):
                new.write(frames.hello(TOKEN) + frames.open_connection(1, b"host", ONE))
                await reader.readexactly(frames.REPLY.size)
                admitted, _, _ = frames.REPLY.unpack(await reader.readexactly(frames.REPLY.size))
                assert admitted == 0
            assert await old.read() == b""

    asyncio.run(main())


def test_a_lease_dies_with_its_worker(serve, clock):
    async def main():
        async with serve(clock) as path, running(EmbeddedStore(path, deadline=30.0)) as store:
            async with connected(path) as (reader, writer):
                writer.write(frames.hello(TOKEN) + frames.open_connection(1, HOST.packed, ONE))
                await reader.readexactly(2 * frames.REPLY.size)
                assert not (await store.open_connection(HOST, ONE)).admitted
            while True:
                if (await store.open_connection(HOST, ONE)).admitted:
                    break
                await asyncio.sleep(0)

    asyncio.run(main())


def test_workers_above_the_bound_are_not_heard(serve, clock, monkeypatch):
    monkeypatch.setattr(server, "MAX_CLIENTS", 2)

    async def main():
        async with (
            serve(clock) as path,
            running(EmbeddedStore(path, deadline=30.0)) as one,
            running(EmbeddedStore(path, deadline=30.0)) as two,
        ):
            for store in (one, two):
                await store.take(Rate(1, 1.0, 9), "key")
            async with connected(path) as (reader, _):
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""

    asyncio.run(main())


def test_a_worker_holds_no_more_leases_than_the_bound(serve, clock, monkeypatch):
    monkeypatch.setattr(server, "MAX_LEASES", 2)

    async def main():
        async with serve(clock) as path, connected(path) as (reader, writer):
            writer.write(frames.hello(TOKEN))
            writer.write(b"".join(frames.hold(n, b"key") for n in range(3)))
            assert await reader.read() in (b"", GREETED)

    asyncio.run(main())


def test_a_worker_that_reads_no_replies_is_not_read_from_any_more(serve, clock):
    async def main():
        async with (
            serve(clock) as path,
            running(EmbeddedStore(path, deadline=30.0)) as store,
            connected(path) as (reader, writer),
        ):
            reader._transport.pause_reading()
            writer.write(frames.hello(TOKEN))
            sent = 0
            # What the sockets hold is some hundred kilobytes; the rest stays with us.
            while writer.transport.get_write_buffer_size() < 4_000_000:
                assert sent < 64_000_000
                writer.write(TAKE * 10_000)
                sent += len(TAKE) * 10_000
                await store.take(Rate(1000, 1.0, 1000), "the others are served")
            writer.transport.abort()

    asyncio.run(main())


def test_what_was_learnt_last_is_saved_before_the_end(serve, clock):
    async def ask():
        async with serve(clock) as path, running(EmbeddedStore(path, deadline=30.0)) as store:
            return await store.greylist("192.0.2.0/24", "a", "b", GreylistSettings())

    assert asyncio.run(ask()).state is GreylistState.NEW
    clock.advance(299.0)
    verdict = asyncio.run(ask())
    assert (verdict.state, verdict.seconds_left) == (GreylistState.EARLY, 1.0)


def test_what_was_reserved_is_given_back_when_its_worker_dies(serve, clock):
    async def main():
        async with serve(clock) as path, running(EmbeddedStore(path, deadline=30.0)) as store:
            async with connected(path) as (reader, writer):
                writer.write(frames.hello(TOKEN))
                for number in range(10):
                    writer.write(frames.open_connection(number, HOST.packed, BUDGETS))
                await reader.readexactly(41 * frames.REPLY.size)
                assert (await store.open_connection(HOST, BUDGETS)).limit == "messages"
            while True:
                admission = await store.open_connection(HOST, BUDGETS)
                if admission.admitted:
                    break
                await asyncio.sleep(0)
            settled = await store.settle(admission.lease, NOTHING, Spent(messages=10))
            assert settled.grants.messages == 1 + 2  # a quarter of nine, rounded down

    asyncio.run(main())


def test_a_lease_that_cannot_be_held_reserves_nothing(serve, clock):
    async def main():
        async with serve(clock) as path, running(EmbeddedStore(path, deadline=30.0)) as store:
            for _ in range(3):
                async with connected(path) as (reader, writer):
                    frame = frames.open_connection(1, HOST.packed, BUDGETS)
                    writer.write(frames.hello(TOKEN) + frame + frame)
                    with contextlib.suppress(ConnectionError):
                        assert await reader.read() in (b"", GREETED)
            for _ in range(10):
                assert (await store.open_connection(HOST, BUDGETS)).admitted

    asyncio.run(main())


@pytest.mark.parametrize(
    "limits", [BUDGETS, ONE, ConnectionLimits("n" * 64, concurrent=1, errors=TEN)]
)
def test_no_frame_is_longer_than_256_octets(limits):
    host, most = b"8 octets", (1 << 64) - 1
    everything = Spent(most, most, most, most, most)
    for frame in (
        frames.open_connection(most, host, limits),
        frames.hold_account(most, host, BUDGETS),
        frames.settle(most, everything, WITHOUT_LIMIT),
        frames.close_account(most, everything),
    ):
        assert len(frame) == 1 + frame[0] <= 256
