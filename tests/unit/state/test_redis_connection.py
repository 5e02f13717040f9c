"""One connection: order, bounds, and servers that say what they should not."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
from hiredis import ReplyError

from preforkmx.errors import StoreUnavailable
from preforkmx.state.redis import Script, connection
from preforkmx.state.redis.connection import Connection
from preforkmx.state.redis.script import pack

DEADLINE = 0.05


class Server(asyncio.Protocol):
    """Hears everything, and says what the test wants."""

    def __init__(self):
        self.heard = bytearray()
        self.writes = 0
        self.there = asyncio.Event()
        self.gone = asyncio.Event()

    def connection_made(self, transport):
        self.transport = transport
        self.there.set()

    def connection_lost(self, _exc):
        self.gone.set()

    def data_received(self, data):
        self.heard += data
        self.writes += 1

    def says(self, data):
        self.transport.write(data)


async def connected(deadline=DEADLINE, on_change=None):
    loop = asyncio.get_running_loop()
    server = Server()
    listening = await loop.create_server(lambda: server, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    _, client = await loop.create_connection(
        lambda: Connection(deadline, on_change), "127.0.0.1", port
    )
    await server.there.wait()
    listening.close()
    return client, server


async def finished(client, server):
    client.abort("the test is over")
    server.transport.abort()
    async with asyncio.timeout(10):
        await server.gone.wait()
    await asyncio.sleep(0)


def test_a_command_is_packed_as_redis_reads_it():
    assert pack("GET", b"k\r\n", 10) == b"*3\r\n$3\r\nGET\r\n$3\r\nk\r\n\r\n$2\r\n10\r\n"


def test_a_script_is_named_by_its_hash():
    script = Script(b"return 1")
    name = hashlib.sha1(b"return 1").hexdigest().encode()
    assert script.sha1 == name
    assert script.by_name([b"k"], ["a", 2]) == pack("EVALSHA", name, 1, b"k", "a", 2)
    assert script.whole([b"k"], ["a", 2]) == pack("EVAL", b"return 1", 1, b"k", "a", 2)


def test_replies_are_matched_in_order_however_they_are_cut(run, until):
    async def main():
        client, server = await connected(deadline=10)
        told = []
        first = client.ask(pack("A"))
        client.tell(pack("B"), told.append)
        client.tell(pack("C"))
        last = client.ask(pack("D"))
        expected = b"".join(pack(each) for each in "ABCD")
        await until(lambda: server.heard == expected)
        assert server.writes == 1
        for octet in b":1\r\n-ERR no\r\n$-1\r\n*2\r\n:4\r\n$1\r\nx\r\n":
            server.says(bytes([octet]))
            await asyncio.sleep(0)
        assert await first == 1
        assert await last == [4, b"x"]
        assert isinstance(told[0], ReplyError)
        await finished(client, server)

    run(main())


def test_a_question_whose_deadline_is_over_makes_the_connection_overdue(run, until):
    async def main():
        changes = []
        client, server = await connected(on_change=lambda: changes.append(client.answering))
        late = client.ask(pack("LATE"))
        assert isinstance(await late, StoreUnavailable)
        await until(lambda: changes == [False])
        with pytest.raises(StoreUnavailable):
            client.ask(pack("AGAIN"))
        client.tell(pack("TOLD"))
        await until(lambda: server.heard == pack("LATE") + pack("TOLD"))
        server.says(b":1\r\n")
        await until(lambda: client.answering)
        assert changes == [False, True]
        asked = client.ask(pack("NOW"))
        server.says(b":2\r\n:3\r\n")
        assert await asked == 3
        await finished(client, server)

    run(main())


def test_a_server_that_stands_still_twice_costs_one_deadline_each_time(run, until):
    async def main():
        client, server = await connected()
        for _ in range(2):
            async with asyncio.timeout(connection.SILENCE / 2):
                assert isinstance(await client.ask(pack("A")), StoreUnavailable)
            server.says(b"+late\r\n")
            await until(lambda: client.answering)
        await finished(client, server)

    run(main())


def test_a_silent_connection_is_given_up_although_nobody_asks(run, monkeypatch):
    monkeypatch.setattr(connection, "SILENCE", 0.1)

    async def main():
        client, server = await connected()
        client.tell(pack("HELLO"))
        async with asyncio.timeout(5):
            await client.lost.wait()
        assert "silent" in client.why
        await finished(client, server)

    run(main())


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (b"HTTP/1.1 200 OK\r\n", "not a reply"),
        (b":1\r\n:2\r\n", "nobody asked"),
        (b"$2000000\r\n" + b"x" * 1_500_000, "too long"),
        (b"*200000\r\n" + b":1\r\n" * 199_999, "too long"),
        (b"$99999999999999999999\r\n", "not a reply"),
    ],
)
def test_what_is_no_reply_ends_the_connection(run, monkeypatch, says, why):
    monkeypatch.setattr(connection, "MAX_REPLY", 500_000)

    async def main():
        client, server = await connected(deadline=10)
        asked = client.ask(pack("PING"))
        server.says(says)
        async with asyncio.timeout(10):
            await client.lost.wait()
        assert why in client.why
        assert asked.done()
        with pytest.raises(StoreUnavailable):
            client.ask(pack("PING"))
        with pytest.raises(StoreUnavailable):
            client.tell(pack("PING"))
        await finished(client, server)

    run(main())


def test_all_who_wait_are_told_when_the_connection_is_lost(run):
    async def main():
        client, server = await connected(deadline=10)
        asked = [client.ask(pack("PING")) for _ in range(10)]
        await asyncio.sleep(0.01)
        server.transport.abort()
        for reply in await asyncio.gather(*asked):
            assert isinstance(reply, StoreUnavailable)
        await finished(client, server)

    run(main())


def test_a_server_that_does_not_read_is_asked_no_more_than_fits(run):
    async def main():
        client, server = await connected(deadline=30)
        server.transport.pause_reading()
        command = pack("ECHO", b"x" * 100_000)
        asked = 0
        with pytest.raises(StoreUnavailable, match="does not read"):
            while True:
                client.tell(command)
                asked += 1
                assert asked < 1000
                await asyncio.sleep(0)
        assert asked * len(command) < 40 << 20
        await finished(client, server)

    run(main())


def test_what_is_asked_in_one_turn_is_bounded(run):
    async def main():
        client, server = await connected(deadline=30)
        command = pack("ECHO", b"x" * 100_000)
        with pytest.raises(StoreUnavailable, match="does not read"):
            for _ in range(100):
                client.tell(command)
        await finished(client, server)

    run(main())
