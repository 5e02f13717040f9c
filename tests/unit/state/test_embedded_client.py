"""A worker's end: deadlines, late replies, reconnection, leases."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest

from preforkmx.errors import StoreUnavailable
from preforkmx.state.decisions import (
    NOTHING,
    ConnectionLimits,
    GreylistSettings,
    Lease,
    Rate,
    Spent,
    running,
)
from preforkmx.state.embedded import EmbeddedStore, client, frames
from preforkmx.state.limits import lease_key

HOST = ip_address("192.0.2.1")
RATE = Rate(count=1, period=1.0, burst=1000)
ONE = ConnectionLimits("in", concurrent=1)
FOUR = ConnectionLimits("in", concurrent=4)
TEN = Rate(count=1, period=10.0, burst=10)
BUDGETS = ConnectionLimits("in", concurrent=4, messages=TEN, octets=TEN)


class Silent:
    """A store process that reads everything and answers when the test says so."""

    def __init__(self):
        self.received = bytearray()
        self.chunks = 0
        self.heard = asyncio.Condition()
        self.connections = []

    async def serve(self, reader, writer):
        self.connections.append(writer)
        while data := await reader.read(65536):
            self.received += data
            self.chunks += 1
            async with self.heard:
                self.heard.notify_all()

    async def until(self, condition):
        async with self.heard:
            await self.heard.wait_for(condition)

    def commands(self):
        """The numbers of the commands that came, in their order."""
        commands, rest = [], bytes(self.received)
        while rest and len(rest) > rest[0]:
            commands.append(rest[1])
            rest = rest[1 + rest[0] :]
        return commands

    def say(self, *replies):
        for reply in replies:
            self.connections[-1].write(frames.REPLY.pack(*reply))

    def greet(self):
        self.say((frames.GREETED, frames.VERSION, 0))


@asynccontextmanager
async def silent(path):
    store = Silent()
    server = await asyncio.start_unix_server(store.serve, path)
    try:
        yield store
    finally:
        server.close()
        for writer in store.connections:
            writer.close()
        await server.wait_closed()


def test_every_operation_fails_at_once_without_a_store(tmp_path):
    async def main():
        async with running(EmbeddedStore(tmp_path / "none.sock", deadline=30.0)) as store:
            for operation in (
                store.take(RATE, "key"),
                store.open_connection(HOST, ONE),
                store.greylist("n", "s", "r", GreylistSettings()),
            ):
                with pytest.raises(StoreUnavailable, match="no connection"):
                    await operation

    asyncio.run(main())


def test_a_store_that_was_not_started_is_away(tmp_path):
    async def main():
        store = EmbeddedStore(tmp_path / "none.sock")
        with pytest.raises(StoreUnavailable):
            await store.take(RATE, "key")
        await store.close()

    asyncio.run(main())


def test_an_operation_without_a_reply_fails_at_its_deadline(tmp_path):
    async def main():
        async with silent(tmp_path / "s") as peer:
            async with running(EmbeddedStore(tmp_path / "s", deadline=0.05)) as store:
                peer_has_all = peer.until(lambda: len(peer.commands()) == 101)
                began = time.monotonic()
                results = await asyncio.gather(
                    *(store.take(RATE, str(n)) for n in range(100)), return_exceptions=True
                )
                took = time.monotonic() - began
                await peer_has_all
            assert {type(result) for result in results} == {StoreUnavailable}
            assert 0.045 <= took < 5.0

    asyncio.run(main())


def test_a_reply_that_comes_too_late_is_not_taken_for_the_next_one(tmp_path):
    async def main():
        async with (
            silent(tmp_path / "s") as peer,
            running(EmbeddedStore(tmp_path / "s", deadline=0.05)) as store,
        ):
            with pytest.raises(StoreUnavailable):
                await store.take(RATE, "first")
            peer.greet()
            second = asyncio.create_task(store.take(RATE, "second"))
            await peer.until(lambda: peer.commands().count(frames.TAKE) == 2)
            peer.say((1, 7_000_000, 0), (0, 0, 0))
            assert (await second).allowed

    asyncio.run(main())


def test_a_place_that_was_given_too_late_is_given_back(tmp_path):
    async def main():
        async with (
            silent(tmp_path / "s") as peer,
            running(EmbeddedStore(tmp_path / "s", deadline=0.05)) as store,
        ):
            with pytest.raises(StoreUnavailable):
                await store.open_connection(HOST, ONE)
            peer.greet()
            peer.say((0, 0, 0))
            await peer.until(lambda: frames.CLOSE in peer.commands())

    asyncio.run(main())


def test_a_place_that_nobody_waits_for_any_more_is_given_back(tmp_path):
    async def main():
        async with (
            silent(tmp_path / "s") as peer,
            running(EmbeddedStore(tmp_path / "s", deadline=30.0)) as store,
        ):
            asked = asyncio.create_task(store.open_connection(HOST, ONE))
            await peer.until(lambda: frames.OPEN in peer.commands())
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            peer.greet()
            peer.say((0, 0, 0))
            await peer.until(lambda: frames.CLOSE in peer.commands())

    asyncio.run(main())


def test_a_place_that_comes_with_the_cancellation_is_given_back(tmp_path):
    async def main():
        async with (
            silent(tmp_path / "s") as peer,
            running(EmbeddedStore(tmp_path / "s", deadline=30.0)) as store,
        ):
            asked = asyncio.create_task(store.open_connection(HOST, ONE))
            await peer.until(lambda: frames.OPEN in peer.commands())
            reply = frames.REPLY.pack(frames.GREETED, frames.VERSION, 0)
            # Reply and cancellation in one turn of the loop, the reply first.
            store._connection.data_received(reply + frames.REPLY.pack(0, 0, 0))
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            await peer.until(lambda: frames.CLOSE in peer.commands())

    asyncio.run(main())


def test_the_commands_of_one_turn_of_the_loop_go_out_in_one_write(tmp_path):
    async def main():
        async with (
            silent(tmp_path / "s") as peer,
            running(EmbeddedStore(tmp_path / "s", deadline=30.0)) as store,
        ):
            await peer.until(lambda: frames.HELLO in peer.commands())
            chunks = peer.chunks
            tasks = [asyncio.create_task(store.take(RATE, str(n))) for n in range(50)]
            await peer.until(lambda: peer.commands().count(frames.TAKE) == 50)
            assert peer.chunks == chunks + 1
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())


def test_questions_beyond_the_bound_are_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "MAX_IN_FLIGHT", 10)

    async def main():
        async with silent(tmp_path / "s"):
            async with running(EmbeddedStore(tmp_path / "s", deadline=30.0)) as store:
                tasks = [asyncio.create_task(store.take(RATE, str(n))) for n in range(11)]
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                (refused,) = done
                with pytest.raises(StoreUnavailable, match="too many"):
                    refused.result()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(result) for result in results} == {StoreUnavailable}

    asyncio.run(main())


def test_a_connection_that_takes_no_more_octets_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "MAX_UNSENT", 1000)

    async def main():
        with socket.socket(socket.AF_UNIX) as sock:  # listens, and never accepts
            sock.bind(str(tmp_path / "s"))
            sock.listen(1)
            async with running(EmbeddedStore(tmp_path / "s", deadline=30.0)) as store:
                with pytest.raises(StoreUnavailable):
                    while True:
                        await asyncio.gather(*(store.take(RATE, "x" * 60) for _ in range(16_000)))

    asyncio.run(main())


def test_a_greeting_may_be_larger_than_what_may_wait_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "MAX_UNSENT", 1000)

    async def main():
        with socket.socket(socket.AF_UNIX) as sock:  # listens, and never accepts
            sock.bind(str(tmp_path / "s"))
            sock.listen(1)
            store = EmbeddedStore(tmp_path / "s", deadline=30.0)
            keys = (lease_key(b"in", HOST.packed),)
            store._leases = {n: Lease(n, keys, store, HOST, ONE) for n in range(1, 40_001)}
            async with running(store):
                connection = store._connection
                await asyncio.sleep(0.01)
                assert connection._transport.get_write_buffer_size() > 1000
                assert store._connection is connection

    asyncio.run(main())


@pytest.mark.parametrize("silence", [0.0, 0.05])
def test_a_connection_that_stays_silent_is_given_up_for_a_new_one(tmp_path, monkeypatch, silence):
    monkeypatch.setattr(client, "SILENCE", silence)
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.001)

    async def main():
        async with (
            silent(tmp_path / "s") as peer,
            running(EmbeddedStore(tmp_path / "s", deadline=0.02)) as store,
        ):
            with pytest.raises(StoreUnavailable):
                await store.take(RATE, "key")
            await peer.until(lambda: peer.commands().count(frames.HELLO) == 2)
            assert len(peer.connections) == 2

    asyncio.run(main())


@pytest.mark.parametrize(
    "octets",
    [
        frames.REPLY.pack(0, 0, 0),
        frames.REPLY.pack(frames.GREETED, frames.VERSION + 1, 0),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        frames.REPLY.pack(frames.GREETED, frames.VERSION, 0) + frames.REPLY.pack(0, 0, 0) * 2,
        frames.REPLY.pack(frames.GREETED, frames.VERSION, 0) * 2,
        frames.REPLY.pack(frames.GRANTS, 1, 1),
        frames.REPLY.pack(frames.GREETED, frames.VERSION, 0)
        + frames.REPLY.pack(frames.GRANTS, 1, 1) * 4,
    ],
)
def test_what_is_no_store_process_is_left_at_once(tmp_path, octets):
    async def main():
        async with (
            silent(tmp_path / "s") as peer,
            running(EmbeddedStore(tmp_path / "s", deadline=30.0)) as store,
        ):
            await peer.until(lambda: frames.HELLO in peer.commands())
            asked = asyncio.create_task(store.open_connection(HOST, ConnectionLimits("in")))
            await peer.until(lambda: frames.OPEN in peer.commands())
            connection = store._connection
            peer.connections[-1].write(octets)
            await connection.lost.wait()
            await asyncio.wait([asked])
            assert asked.exception() is None or isinstance(asked.exception(), StoreUnavailable)

    asyncio.run(main())


def test_the_leases_that_are_held_are_counted_again_by_a_new_store(serve, clock, monkeypatch):
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.001)

    async def main():
        async with serve(clock) as path:
            other = EmbeddedStore(path, deadline=30.0)
            store = EmbeddedStore(path, deadline=30.0)
            await store.start()
            kept = [(await store.open_connection(HOST, FOUR)).lease for _ in range(3)]
            ended = (await store.open_connection(HOST, FOUR)).lease
        assert await _disconnected(store)
        await store.close_connection(ended)
        async with serve(clock):
            await _connected(store)
            async with running(other):
                assert (await other.open_connection(HOST, FOUR)).admitted
                assert not (await other.open_connection(HOST, FOUR)).admitted
                await store.close_connection(kept[0])
                await store.take(RATE, "the close has been read")
                assert (await other.open_connection(HOST, FOUR)).admitted
            await store.close()

    asyncio.run(main())


def test_leases_are_given_back_when_the_store_is_closed(serve, clock):
    async def main():
        async with serve(clock) as path:
            async with running(EmbeddedStore(path, deadline=30.0)) as store:
                assert (await store.open_connection(HOST, ONE)).admitted
            async with running(EmbeddedStore(path, deadline=30.0)) as store:
                await _admitted(store)

    asyncio.run(main())


def test_grants_belong_to_the_reply_behind_them_however_the_octets_come(tmp_path):
    async def main():
        async with (
            silent(tmp_path / "s") as peer,
            running(EmbeddedStore(tmp_path / "s", deadline=30.0)) as store,
        ):
            asked = [
                asyncio.create_task(store.take(RATE, "key")),
                asyncio.create_task(store.open_connection(HOST, BUDGETS)),
                asyncio.create_task(store.take(RATE, "key")),
            ]
            await peer.until(lambda: peer.commands().count(frames.TAKE) == 2)
            peer.greet()
            octets = (
                frames.REPLY.pack(1, 5_000_000, 0)
                + frames.reply_with_grants(0, 0, (1, 2, 3, 4, 5))
                + frames.REPLY.pack(1, 7_000_000, 0)
            )
            for octet in octets:
                peer.connections[-1].write(bytes([octet]))
                await peer.connections[-1].drain()
                await asyncio.sleep(0)
            first, admission, last = await asyncio.gather(*asked)
            assert (first.wait, last.wait) == (5.0, 7.0)
            assert admission.grants == Spent(1, 2, 3, 4, 5)

    asyncio.run(main())


def test_what_an_unanswered_settlement_reserved_is_counted_on_and_given_back(serve, clock):
    async def main():
        async with serve(clock) as path, running(EmbeddedStore(path, deadline=30.0)) as store:
            lease = (await store.open_connection(HOST, BUDGETS)).lease
            for _ in range(20):
                asked = asyncio.create_task(store.settle(lease, NOTHING, Spent(messages=3)))
                await asyncio.sleep(0)
                asked.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asked
            settled = await store.settle(lease, NOTHING, Spent(messages=3))
            assert settled.grants == Spent(3, *settled.grants[1:3], 10, settled.grants.errors)
            await store.close_connection(lease)
            lease = (await store.open_connection(HOST, BUDGETS)).lease
            settled = await store.settle(lease, NOTHING, Spent(messages=10))
            assert settled.grants.messages == 1 + 2  # a quarter of the nine others

    asyncio.run(main())


def test_an_account_whose_lease_was_given_too_late_is_closed(serve, clock):
    async def main():
        async with serve(clock) as path, running(EmbeddedStore(path, deadline=30.0)) as store:
            for _ in range(20):
                asked = asyncio.create_task(store.open_connection(HOST, BUDGETS))
                await asyncio.sleep(0)
                asked.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asked
                await store.take(RATE, "the place has been given back")
                await store.take(RATE, "and that has been read")
            lease = (await store.open_connection(HOST, BUDGETS)).lease
            settled = await store.settle(lease, NOTHING, Spent(messages=10))
            assert settled.grants.messages == 1 + 2

    asyncio.run(main())


def test_an_account_that_is_held_by_a_new_store_has_nothing_reserved(serve, clock, monkeypatch):
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.001)

    async def main():
        async with serve(clock) as path:
            store = EmbeddedStore(path, deadline=30.0)
            await store.start()
            leases = [(await store.open_connection(HOST, BUDGETS)).lease for _ in range(2)]
            settled = await store.settle(leases[0], NOTHING, Spent(messages=3))
            assert settled.grants.messages == 3
        assert await _disconnected(store)
        with pytest.raises(StoreUnavailable):
            await store.settle(leases[0], NOTHING)
        async with serve(clock):
            await _connected(store)
            # Two places of four are held, and the budget is whole.
            assert leases[0].reserved == (0, 0, 0)
            settled = await store.settle(leases[0], Spent(messages=3, octets=4), NOTHING)
            assert (settled.grants.messages, settled.grants.octets) == (0, 6)
            await store.close_connection(leases[1], Spent(messages=1))
            admissions = [await store.open_connection(HOST, BUDGETS) for _ in range(4)]
            assert [admission.limit for admission in admissions] == ["", "", "", "concurrent"]
            # Of ten messages four are spent, and three are reserved.
            settled = await store.settle(leases[0], NOTHING, Spent(messages=10))
            assert settled.grants.messages == 1
            for _ in range(2):
                settled = await store.settle(leases[0], Spent(messages=1), Spent(messages=1))
                assert settled.allowed
            settled = await store.settle(leases[0], Spent(messages=1), Spent(messages=1))
            assert (settled.allowed, settled.limit) == (False, "messages")
            await store.close()

    asyncio.run(main())


async def _connected(store):
    while True:
        try:
            return await store.take(RATE, "connected")
        except StoreUnavailable:
            await asyncio.sleep(0.001)


async def _disconnected(store):
    while True:
        if not store.connected:
            return True
        await asyncio.sleep(0)


async def _admitted(store):
    while True:
        if (await store.open_connection(HOST, ONE)).admitted:
            return
        await asyncio.sleep(0)
