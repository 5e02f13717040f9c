"""The least rate of a message's octets: who is slower only holds a place."""

from __future__ import annotations

import asyncio

import pytest

from preforkmx import MessageAborted, Server
from preforkmx.testing import Client, running

pytestmark = pytest.mark.usefixtures("sweep_fast")

WINDOW = 0.2
RATE = 10_000


@pytest.fixture(autouse=True)
def window(monkeypatch):
    monkeypatch.setattr("preforkmx.session.incoming.RATE_WINDOW_SECONDS", WINDOW)


@pytest.fixture
def clock(monkeypatch):
    """What a session takes for the time: it stands still unless a test moves it."""
    clock = Clock()
    monkeypatch.setattr("preforkmx.session.wire.Wire.now", lambda _: clock.now)
    return clock


class Clock:
    def __init__(self):
        self.now = 1e9

    async def pass_by(self, seconds, session, until):
        """Let time go by while the session waits for its client."""
        await until(lambda: session._waiter is not None)
        self.now += seconds


class Reader:
    """A handler that reads to the end, resting after each piece."""

    def __init__(self, rest=0.0):
        self.rest = rest
        self.size = 0
        self.error = None

    async def __call__(self, ctx, peer, envelope):
        try:
            async for octets in envelope.data:
                self.size += len(octets)
                if self.rest:
                    await asyncio.sleep(self.rest)
        except MessageAborted as error:
            self.error = error
            raise


def converse(run, server, dialogue):
    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            await client.command("MAIL FROM:<>")
            await client.command("RCPT TO:<b@example.com>")
            return await dialogue(client)

    return run(test())


def begin(how, size=10_000_000):
    return b"DATA\r\n" if how == "DATA" else b"BDAT %d LAST\r\n" % size


async def drip(client, octets, pause=0.01, *, times=1000):
    """Send `octets` again and again; return once the server has said something."""
    answer = asyncio.create_task(client.reply())
    for _ in range(times):
        if answer.done():
            break
        await client.send(octets)
        await asyncio.wait({answer}, timeout=pause)
    return await answer


@pytest.mark.parametrize("how", ["DATA", "BDAT"])
def test_who_sends_too_slowly_gets_421_4_4_2(run, how):
    async def dialogue(client):
        await client.send(begin(how))
        if how == "DATA":
            assert (await client.reply()).code == 354
        # Something comes all the time, a tenth of what must.
        return await drip(client, b"0123456789"), await client.rest()

    reader = Reader()
    server = Server(handler=reader, minimum_rate=RATE)
    reply, rest = converse(run, server, dialogue)
    assert (reply.code, reply.text) == (421, "4.4.2 Your message comes too slowly")
    assert rest == b""
    assert isinstance(reader.error, MessageAborted)
    assert reader.size > 0
    assert (server.counters.messages, server.counters.messages_aborted) == (0, 1)
    assert server.counters.timeouts == 1


@pytest.mark.parametrize("how", ["DATA", "BDAT"])
def test_a_silent_client_is_too_slow_before_its_command_timeout(run, how):
    async def dialogue(client):
        await client.send(begin(how))
        if how == "DATA":
            await client.reply()
        return (await client.reply()).text

    server = Server(minimum_rate=RATE, command_timeout=30.0)
    assert converse(run, server, dialogue) == "4.4.2 Your message comes too slowly"


@pytest.mark.parametrize("piece", [b"BDAT 1\r\nx", b"B"], ids=["tiny chunks", "half a command"])
def test_dripped_chunks_and_commands_between_them_are_too_slow(run, piece):
    """A command line that comes octet by octet is counted once, not again at each octet."""

    async def dialogue(client):
        assert (await client.command("BDAT 0")).code == 250
        if piece == b"B":
            return await drip(client, piece, 0.002)
        text = b""
        for _ in range(1000):
            await client.send(piece)
            await asyncio.sleep(0.01)
            reply = await client.reply()
            if reply.code != 250:
                return reply
        return text

    server = Server(minimum_rate=RATE, command_timeout=30.0)
    reply = converse(run, server, dialogue)
    assert (reply.code, reply.text) == (421, "4.4.2 Your message comes too slowly")


@pytest.mark.parametrize("how", ["DATA", "BDAT"])
def test_who_is_fast_enough_passes(run, until, clock, how):
    async def dialogue(client):
        (session,) = server._service.sessions
        await client.send(begin(how, 1000 * 50))
        if how == "DATA":
            await client.reply()
        # Over two windows and a half: five times what must come.
        for _ in range(50):
            await clock.pass_by(0.01, session, until)
            await client.send(b"x" * 998 + b"\r\n")
            await until(lambda: reader.size and session.core.buffered == 0)
        if how == "DATA":
            await client.send(b".\r\n")
        return (await client.reply()).code

    reader = Reader()
    server = Server(handler=reader, minimum_rate=RATE)
    assert converse(run, server, dialogue) == 250
    assert reader.size == 50_000


@pytest.mark.parametrize("how", ["DATA", "BDAT"])
def test_the_time_of_a_slow_handler_is_not_the_client_s(run, how):
    async def dialogue(client):
        await client.send(begin(how, 1_000_000))
        if how == "DATA":
            await client.reply()
        await client.send((b"x" * 998 + b"\r\n") * 1000 + (b".\r\n" if how == "DATA" else b""))
        return (await client.reply()).code

    # Several windows long, and the kernel's buffers never empty.
    reader = Reader(rest=0.1)
    assert converse(run, Server(handler=reader, minimum_rate=10**7), dialogue) == 250


def test_what_came_while_the_handler_was_busy_is_counted(run, until, clock):
    """A client that sends in bursts is as fast as they are large, not as their first segment."""
    busy = asyncio.Event()
    go_on = asyncio.Event()

    async def deliver(ctx, peer, envelope):
        async for _ in envelope.data:
            busy.set()
            await go_on.wait()
            go_on.clear()

    async def dialogue(client):
        (session,) = server._service.sessions
        await client.command("DATA")
        for _ in range(5):
            # The handler takes this octet, and is busy while the burst comes.
            busy.clear()
            await client.send(b"x")
            await busy.wait()
            await client.send(b"x" * 20_000)
            await until(lambda: session.core.buffered == 20_000)
            busy.clear()
            go_on.set()
            await busy.wait()
            go_on.set()
            # Then it waits for the client, half a window.
            await clock.pass_by(WINDOW / 2, session, until)
        await client.send(b"\r\n.\r\n")
        go_on.set()
        answer = asyncio.create_task(client.reply())
        while not answer.done():
            go_on.set()
            await asyncio.wait({answer}, timeout=0.01)
        return (await answer).code

    server = Server(handler=deliver, minimum_rate=RATE)
    assert converse(run, server, dialogue) == 250


@pytest.mark.parametrize("how", ["DATA", "BDAT"])
def test_octets_that_are_thrown_away_count_too(run, how):
    async def dialogue(client):
        if how == "BDAT":
            # Refused: it is above the limit.
            await client.send(b"BDAT 50000 LAST\r\n")
        else:
            await client.command("DATA")
        for _ in range(50):
            await client.send(b"x" * 998 + b"\r\n")
            await asyncio.sleep(0.01)
        if how == "DATA":
            await client.send(b".\r\n")
        return (await client.reply()).code

    server = Server(minimum_rate=RATE, message_size=30_000)
    assert converse(run, server, dialogue) == 552


def test_each_window_is_looked_at_alone(run):
    async def dialogue(client):
        await client.command("DATA")
        await client.send(b"x" * 1_000_000)
        return await drip(client, b"x")

    reader = Reader()
    # A fast beginning does not pay for a slow rest.
    reply = converse(run, Server(handler=reader, minimum_rate=RATE), dialogue)
    assert reply.code == 421
    assert reader.size >= 1_000_000


def test_without_a_rate_the_slowest_client_passes(run):
    async def dialogue(client):
        await client.command("DATA")
        for _ in range(5):
            await client.send(b"x")
            await asyncio.sleep(WINDOW / 2)
        await client.send(b"\r\n.\r\n")
        return (await client.reply()).code

    assert converse(run, Server(), dialogue) == 250
