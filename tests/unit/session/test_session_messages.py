"""envelope.data: a stream over the connection, with all that can go wrong on the way."""

from __future__ import annotations

import asyncio

import pytest

from preforkmx import ConnectionLost, MessageAborted, Middleware, Server, SMTPError, prepend
from preforkmx.session.wire import HIGH_WATER
from preforkmx.testing import Client, Recorder, running


@pytest.fixture
def recorder():
    return Recorder()


class Reader:
    """A handler that reads the message to its end and keeps what it met."""

    def __init__(self):
        self.chunks = []
        self.error = None
        self.ended = asyncio.Event()
        self.began = asyncio.Event()
        self.arrived = asyncio.Event()

    async def __call__(self, ctx, peer, envelope):
        self.began.set()
        try:
            async for chunk in envelope.data:
                self.chunks.append(chunk)
                self.arrived.set()
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.ended.set()


async def begin(client):
    await client.hello()
    await client.command("MAIL FROM:<a@example.org>")
    await client.command("RCPT TO:<b@example.com>")
    assert (await client.command("DATA")).code == 354


def converse(run, server, dialogue, **options):
    async def test():
        async with (
            running(server, **options) as address,
            await Client.connect(address) as client,
        ):
            return await dialogue(client)

    return run(test())


# --- reading ------------------------------------------------------------------------------------


def test_a_handler_reads_while_the_client_sends(run):
    reader = Reader()

    async def dialogue(client):
        await begin(client)
        await client.send(b"first\r\n")
        await reader.arrived.wait()
        # Its CRLF may be the beginning of the end, and waits for what comes behind it.
        assert b"".join(reader.chunks) == b"first"
        await client.send(b"second\r\n.\r\n")
        return await client.reply()

    assert converse(run, Server(handler=reader), dialogue).code == 250
    assert b"".join(reader.chunks) == b"first\r\nsecond\r\n"


def test_a_handler_reads_the_client_s_octets_without_the_transparency_dots(run, recorder):
    async def dialogue(client):
        await begin(client)
        await client.send(b"..dots\r\n...\r\n\0\xff\r\n.\r\n")
        assert (await client.reply()).code == 250

    converse(run, Server(handler=recorder), dialogue)
    assert recorder.messages[0].octets == b".dots\r\n..\r\n\0\xff\r\n"


def test_an_empty_message_is_a_message(run, recorder):
    async def dialogue(client):
        await begin(client)
        assert (await client.command(".")).code == 250

    converse(run, Server(handler=recorder), dialogue)
    assert recorder.messages[0].octets == b""


def test_read_returns_at_most_so_many_octets_and_nothing_only_at_the_end(run):
    pieces = []

    async def deliver(ctx, peer, envelope):
        while piece := await envelope.data.read(4):
            pieces.append(piece)
        pieces.append(await envelope.data.read(4))

    async def dialogue(client):
        await client.hello()
        assert (await client.deliver(b"0123456789\r\n")).code == 250

    converse(run, Server(handler=deliver), dialogue)
    assert b"".join(pieces) == b"0123456789\r\n"
    assert max(map(len, pieces)) == 4
    assert pieces[-1] == b""


def test_prepend_adds_lines_without_holding_the_message(run, recorder):
    async def stamp(ctx, peer, envelope):
        envelope.data = prepend(envelope.data, b"X-Seen: yes\r\n")

    async def dialogue(client):
        await client.hello()
        assert (await client.deliver(b"Subject: x\r\n\r\nHello\r\n")).code == 250

    server = Server(handler=recorder)
    server.use(Middleware(handler=stamp))
    converse(run, server, dialogue)
    assert recorder.messages[0].octets == b"X-Seen: yes\r\nSubject: x\r\n\r\nHello\r\n"


@pytest.mark.parametrize("read", [0, 5], ids=["nothing", "the beginning"])
def test_what_a_handler_does_not_read_is_read_for_it(run, read):
    async def deliver(ctx, peer, envelope):
        await envelope.data.read(read)

    async def dialogue(client):
        await client.hello()
        for _ in range(2):
            assert (await client.deliver(b"MAIL FROM:<evil@example.org>\r\n" * 20_000)).code == 250
        assert (await client.command("QUIT")).code == 221

    server = Server(handler=deliver)
    converse(run, server, dialogue)
    assert server.counters.transactions == server.counters.messages == 2


def test_a_refusal_is_the_reply_after_the_whole_message(run):
    async def deliver(ctx, peer, envelope):
        raise SMTPError(554, "Spam", enhanced=(5, 7, 1))

    async def dialogue(client):
        await client.hello()
        reply = await client.deliver(b"Hello\r\n" * 50_000)
        assert (await client.command("NOOP")).code == 250
        return reply

    server = Server(handler=deliver)
    reply = converse(run, server, dialogue)
    assert (reply.code, reply.text) == (554, "5.7.1 Spam")
    assert (server.counters.messages, server.counters.messages_refused) == (0, 1)


def test_a_handler_that_gives_up_a_good_message_gets_it_offered_again(run):
    async def deliver(ctx, peer, envelope):
        raise MessageAborted("my next hop went away")

    async def dialogue(client):
        await client.hello()
        return await client.deliver(b"Hello\r\n")

    assert converse(run, Server(handler=deliver), dialogue).code == 451


# --- what aborts a message ------------------------------------------------------------------------


def aborted(run, server, reader, dialogue):
    """Run `dialogue` after DATA; return its result and what the handler met."""

    async def test():
        async with running(server) as address:
            async with await Client.connect(address) as client:
                await begin(client)
                result = await dialogue(client)
            async with asyncio.timeout(10):
                await reader.ended.wait()
                await server.wait_closed()
        return result

    return run(test()), reader.error


@pytest.mark.parametrize("how", ["close", "half close", "reset"])
def test_a_lost_connection_aborts_the_message(run, how):
    async def dialogue(client):
        await client.send(b"Half a message\r\n")
        await reader.began.wait()
        if how == "reset":
            client.reset()
        elif how == "half close":
            client.writer.write_eof()
            return await client.rest()
        return b""

    reader = Reader()
    server = Server(handler=reader)
    said, error = aborted(run, server, reader, dialogue)
    assert isinstance(error, ConnectionLost)
    assert not said.startswith(b"2")
    assert (server.counters.messages, server.counters.messages_aborted) == (0, 1)


def test_a_connection_lost_between_the_last_line_and_the_end_aborts_the_message(run):
    async def dialogue(client):
        await client.send(b"Looks whole\r\n.\r")
        await reader.began.wait()

    reader = Reader()
    server = Server(handler=reader)
    _, error = aborted(run, server, reader, dialogue)
    assert isinstance(error, ConnectionLost)
    assert server.counters.messages == 0


def test_a_message_over_the_limit_is_aborted_and_refused_with_552(run):
    async def dialogue(client):
        await client.send(b"0123456789\r\n" * 100 + b".\r\n")
        reply = await client.reply()
        assert (await client.command("NOOP")).code == 250
        return reply

    reader = Reader()
    server = Server(handler=reader, message_size=1000)
    reply, error = aborted(run, server, reader, dialogue)
    assert type(error) is MessageAborted
    assert (reply.code, reply.text[:5]) == (552, "5.3.4")
    # It is not told of octets that do not count any more.
    assert sum(map(len, reader.chunks)) <= 1000


def test_a_message_of_twice_the_limit_ends_the_session_and_nothing_of_it_is_a_command(run):
    async def dialogue(client):
        await client.send(b"MAIL FROM:<evil@example.org>\r\n" * 1000)
        return await client.rest()

    reader = Reader()
    server = Server(handler=reader, message_size=1000)
    said, error = aborted(run, server, reader, dialogue)
    assert type(error) is MessageAborted
    assert said.startswith(b"552 5.3.4 ")
    assert said.count(b"\r\n") == 1
    assert server.counters.transactions == 1


@pytest.mark.parametrize("newline", [b"\n", b"\r"], ids=["LF", "CR"])
def test_a_bare_newline_aborts_the_message_and_ends_the_session(run, newline):
    async def dialogue(client):
        await client.send(b"One" + newline + b"two\r\n" + b"three\r\n.\r\n")
        return await client.rest()

    reader = Reader()
    said, error = aborted(run, Server(handler=reader), reader, dialogue)
    assert type(error) is MessageAborted
    assert said.startswith(b"550 5.5.2 ")


def test_the_drain_deadline_aborts_a_message_that_arrives(run):
    async def dialogue(client):
        await client.send(b"Half a ")
        await reader.began.wait()
        server.drain()
        server.abort_transactions()
        return await client.rest()

    reader = Reader()
    server = Server(handler=reader)
    said, error = aborted(run, server, reader, dialogue)
    assert type(error) is MessageAborted
    assert said.startswith(b"421 4.3.2 ")
    assert server.counters.messages == 0


@pytest.mark.usefixtures("sweep_fast")
def test_a_silent_client_aborts_its_message_and_gets_421(run):
    async def dialogue(client):
        await client.send(b"Half a ")
        return await client.rest()

    reader = Reader()
    server = Server(handler=reader, command_timeout=0.05)
    said, error = aborted(run, server, reader, dialogue)
    assert type(error) is MessageAborted
    assert said.startswith(b"421 4.4.2 ")
    assert server.counters.timeouts == 1


def test_an_aborted_message_stays_aborted_however_often_it_is_read(run):
    errors = []

    async def deliver(ctx, peer, envelope):
        for _ in range(3):
            try:
                await envelope.data.read_all(1000)
            except MessageAborted as error:
                errors.append(error)
        finished.set()

    async def test():
        async with running(server) as address:
            async with await Client.connect(address) as client:
                await begin(client)
            async with asyncio.timeout(10):
                await finished.wait()
                await server.wait_closed()

    finished = asyncio.Event()
    server = Server(handler=deliver)
    run(test())
    assert len(errors) == 3
    # It said nothing was wrong: it does not count.
    assert (server.counters.messages, server.counters.messages_aborted) == (0, 1)


# --- a fault in the rest wins -------------------------------------------------------------------------

BAD = {
    "bare newline": (b"good\r\n" * 3 + b"bad\n\r\n.\r\n", b"550 5.5.2 "),
    "size": (b"0123456789\r\n" * 100 + b".\r\n", b"552 5.3.4 "),
    "twice the size": (b"0123456789\r\n" * 200 + b".\r\n", b"552 5.3.4 "),
}


@pytest.mark.parametrize("outcome", [None, SMTPError(451, "Later")], ids=["taken", "deferred"])
@pytest.mark.parametrize("fault", list(BAD))
def test_a_fault_in_the_drained_rest_wins_over_the_handler_s_verdict(run, fault, outcome):
    octets, expected = BAD[fault]

    async def deliver(ctx, peer, envelope):
        await envelope.data.read(4)
        if outcome is not None:
            raise outcome

    async def dialogue(client):
        await begin(client)
        await client.send(octets[:100])
        await client.send(octets[100:] + b"QUIT\r\n")
        return await client.rest()

    server = Server(handler=deliver, message_size=1000)
    assert converse(run, server, dialogue).startswith(expected)
    assert (server.counters.messages, server.counters.messages_refused) == (0, 1)


def test_a_handler_that_crashed_ends_the_session_also_when_a_fault_of_the_message_wins(run):
    async def deliver(ctx, peer, envelope):
        raise RuntimeError("a bug")

    async def dialogue(client):
        await begin(client)
        await client.send(BAD["size"][0])
        return await client.rest()

    assert converse(run, Server(handler=deliver, message_size=1000), dialogue).startswith(b"552 ")


def test_a_connection_lost_in_the_drained_rest_takes_nothing(run, recorder):
    async def deliver(ctx, peer, envelope):
        await envelope.data.read(4)

    async def test():
        async with running(server) as address:
            async with await Client.connect(address) as client:
                await begin(client)
                await client.send(b"Half a message\r\n")
            (call,) = await recorder.happened("disconnect")
            return call

    server = Server(handler=deliver)
    server.use(Middleware(disconnect=recorder.disconnect))
    assert isinstance(run(test()).arguments[0], ConnectionLost)
    assert (server.counters.messages, server.counters.messages_aborted) == (0, 1)


# --- after the end ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset"])
def test_once_the_end_is_read_a_lost_connection_does_not_cancel_the_handler(run, how, recorder):
    committed = []
    at_the_end, go_on = asyncio.Event(), asyncio.Event()

    async def deliver(ctx, peer, envelope):
        octets = await envelope.data.read_all(1000)
        at_the_end.set()
        await go_on.wait()
        committed.append(octets)

    async def test():
        async with running(server) as address:
            async with await Client.connect(address) as client:
                await begin(client)
                await client.send(b"Hello\r\n.\r\n")
                await at_the_end.wait()
                if how == "reset":
                    client.reset()
            go_on.set()
            await recorder.happened("disconnect")

    server = Server(handler=deliver)
    server.use(Middleware(disconnect=recorder.disconnect))
    run(test())
    assert committed == [b"Hello\r\n"]
    assert server.counters.messages == 1


# --- backpressure ---------------------------------------------------------------------------------------

PIECE = (b"x" * 998 + b"\r\n") * 64


async def push(client):
    """Send pieces until nothing goes any more; return how many octets that were."""
    sent = 0
    try:
        while sent < 128 * 1024 * 1024:
            client.writer.write(PIECE)
            sent += len(PIECE)
            async with asyncio.timeout(0.2):
                await client.writer.drain()
    except TimeoutError:
        return sent
    raise AssertionError("nothing stops the client")


@pytest.mark.parametrize("read_first", [0, 1_000_000], ids=["at once", "after a megabyte"])
@pytest.mark.parametrize("tls", ["off", "implicit"])
def test_a_handler_that_does_not_read_stops_its_client(
    run, read_first, tls, server_tls, client_tls
):
    go_on = asyncio.Event()
    total = 0

    async def deliver(ctx, peer, envelope):
        nonlocal total
        while total < read_first:
            total += len(await envelope.data.read(65536))
        await go_on.wait()
        async for chunk in envelope.data:
            total += len(chunk)

    async def test():
        context = client_tls if tls == "implicit" else None
        async with (
            running(server, tls=tls) as address,
            await Client.connect(address, tls=context) as client,
        ):
            await begin(client)
            sent = await push(client)
            (session,) = server._service.sessions
            held = session.core.buffered
            go_on.set()
            await client.send(b".\r\n")
            return sent, held, await client.reply()

    server = Server(handler=deliver, message_size=1 << 30, tls=server_tls)
    sent, held, reply = run(test())
    assert reply.code == 250
    # One read of the loop may come on top of the high-water mark: 256 KiB.
    assert held <= HIGH_WATER + 256 * 1024
    # The client could send what the buffers of both kernels and loops hold, and no more.
    assert sent < read_first + 16 * 1024 * 1024
    # Not one octet was lost on the way.
    assert total == sent
