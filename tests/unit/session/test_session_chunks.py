"""BDAT: a message in chunks reaches its handler while it arrives (RFC 3030)."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
import tracemalloc

import pytest

from preforkmx import ConnectionLost, MessageAborted, Middleware, Server, SMTPError
from preforkmx.observe.log import AccessLog
from preforkmx.session.wire import HIGH_WATER
from preforkmx.testing import Client, Recorder, running

SHORT = 0.05
MAX = 1000


class Reader:
    """A handler that reads the message to its end and keeps what it met."""

    def __init__(self):
        self.octets = b""
        self.error = None
        self.whole = False
        self.began = asyncio.Event()
        self.ended = asyncio.Event()

    async def __call__(self, ctx, peer, envelope):
        self.began.set()
        try:
            async for chunk in envelope.data:
                self.octets += chunk
            self.whole = True
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.ended.set()


@pytest.fixture
def reader():
    return Reader()


@pytest.fixture
def recorder():
    return Recorder()


async def begin(client, *, body=""):
    await client.hello()
    await client.command(f"MAIL FROM:<a@example.org>{body}")
    assert (await client.command("RCPT TO:<b@example.com>")).code == 250


async def chunk(client, octets, *, last=False):
    await client.send(b"BDAT %d%s\r\n" % (len(octets), b" LAST" if last else b"") + octets)
    return await client.reply()


def converse(run, server, dialogue, **options):
    async def test():
        async with running(server, **options) as address:
            async with await Client.connect(address) as client:
                result = await dialogue(client)
            async with asyncio.timeout(10):
                await server.wait_closed()
            return result

    return run(test())


# --- streaming ----------------------------------------------------------------------------------


def test_the_handler_reads_the_first_chunk_before_the_second_is_sent(run, reader, until):
    async def dialogue(client):
        await begin(client)
        reply = await chunk(client, b"first\n")
        assert (reply.code, reply.text) == (250, "2.0.0 6 octets received")
        assert reader.octets == b"first\n"
        await client.send(b"BDAT 8\r\nsec")
        await until(lambda: reader.octets == b"first\nsec")
        await client.send(b"ond\r\n")
        assert (await client.reply()).code == 250
        assert not reader.ended.is_set()
        return await chunk(client, b"", last=True)

    server = Server(handler=reader)
    reply = converse(run, server, dialogue)
    assert reply.code == 250
    assert "queued" in reply.text
    assert reader.whole
    assert reader.octets == b"first\nsecond\r\n"
    assert server.counters.octets == 14


def test_a_chunk_is_answered_once_the_handler_has_taken_it(run):
    go_on = asyncio.Event()

    async def deliver(ctx, peer, envelope):
        await envelope.data.read(100)
        await go_on.wait()
        await envelope.data.read()

    async def dialogue(client):
        await begin(client)
        await client.send(b"BDAT 5\r\nhello")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SHORT):
                await client.reader.readexactly(1)
        go_on.set()
        assert (await client.reply()).code == 250
        return (await chunk(client, b"x", last=True)).code

    assert converse(run, Server(handler=deliver), dialogue) == 250


def test_a_handler_that_does_not_read_a_chunk_stops_its_client(run):
    size = 64 << 20
    go_on = asyncio.Event()
    taken = 0

    async def deliver(ctx, peer, envelope):
        nonlocal taken
        await go_on.wait()
        async for octets in envelope.data:
            taken += len(octets)

    async def dialogue(client):
        await begin(client)
        await client.send(b"BDAT %d LAST\r\n" % size)
        sent = 0
        piece = bytes(65536)
        try:
            while sent < size:
                client.writer.write(piece)
                sent += len(piece)
                async with asyncio.timeout(0.2):
                    await client.writer.drain()
        except TimeoutError:
            pass
        (session,) = server._service.sessions
        held = session.core.buffered
        go_on.set()
        while sent < size:
            await client.send(piece)
            sent += len(piece)
        return held, (await client.reply()).code

    server = Server(handler=deliver, message_size=size)
    held, code = converse(run, server, dialogue)
    assert code == 250
    assert 0 < held <= HIGH_WATER + 256 * 1024
    assert taken == size


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_a_chunk_of_10_mb_streams_within_bounds(run, tls, server_tls, client_tls):
    size = 10_000_000
    largest = held = total = 0

    async def deliver(ctx, peer, envelope):
        nonlocal largest, held, total
        (session,) = server._service.sessions
        async for octets in envelope.data:
            total += len(octets)
            largest = max(largest, len(octets))
            held = max(held, session.core.buffered)

    async def test():
        context = client_tls if tls == "implicit" else None
        async with (
            running(server, tls=tls) as address,
            await Client.connect(address, tls=context) as client,
        ):
            await begin(client)
            await client.send(b"BDAT %d LAST\r\n" % size)
            for _ in range(100):
                await client.send(bytes(size // 100))
            return (await client.reply()).code

    server = Server(handler=deliver, tls=server_tls)
    assert run(test()) == 250
    assert total == server.counters.octets == size
    # The read that woke the session, and one before its turn.
    assert max(largest, held) <= HIGH_WATER + 2 * 256 * 1024


def test_a_chunk_is_raw_and_its_octets_are_never_commands(run, recorder):
    octets = b"QUIT\r\n.\r\nRSET\r\n\0\r\n.\n\xff..\rBDAT 1 LAST\r\n"

    async def dialogue(client):
        await begin(client, body=" BODY=BINARYMIME")
        await chunk(client, octets)
        await chunk(client, b"\r\n.\r\n", last=True)
        return (await client.command("QUIT")).code

    assert converse(run, Server(handler=recorder), dialogue) == 221
    assert recorder.messages[0].octets == octets + b"\r\n.\r\n"
    assert recorder.of("handler")[0].arguments[0].body == "BINARYMIME"


def test_a_whole_session_in_one_flight_delivers_each_message_once(run, recorder):
    one = b"MAIL FROM:<>\r\nRCPT TO:<b@example.com>\r\nBDAT 2\r\nheBDAT 3 LAST\r\nllo"

    async def dialogue(client):
        await client.hello()
        await client.send(one * 3 + b"QUIT\r\n")
        return [*(await client.replies(13)), await client.rest()]

    codes = converse(run, Server(handler=recorder), dialogue)
    assert codes == [250] * 12 + [221, b""]
    assert [message.octets for message in recorder.messages] == [b"hello"] * 3


@pytest.mark.parametrize("octets", [b"", b"one chunk\r\n"])
def test_one_last_chunk_is_a_message(run, recorder, octets):
    async def dialogue(client):
        await begin(client)
        return (await chunk(client, octets, last=True)).code

    assert converse(run, Server(handler=recorder), dialogue) == 250
    assert recorder.messages[0].octets == octets


def test_data_and_bdat_may_follow_each_other_in_a_session(run, recorder):
    async def dialogue(client):
        await client.hello()
        for last in (b"one", b"three"):
            await client.command("MAIL FROM:<>")
            await client.command("RCPT TO:<b@example.com>")
            assert (await chunk(client, last, last=True)).code == 250
            assert (await client.deliver(b"..two\r\n")).code == 250

    converse(run, Server(handler=recorder), dialogue)
    assert [message.octets for message in recorder.messages] == [
        b"one",
        b"..two\r\n",
        b"three",
        b"..two\r\n",
    ]


def test_commands_that_end_nothing_are_answered_between_two_chunks(run, recorder):
    async def dialogue(client):
        await begin(client)
        await chunk(client, b"one ")
        codes = [
            (await client.command(command)).code
            for command in (
                "NOOP",
                "VRFY joe",
                "HELP",
                "BOGUS",
                "EHLO",
                "MAIL FROM:<>",
                "RCPT TO:<c@example.com>",
                "DATA",
                "STARTTLS",
                "XCLIENT ADDR=192.0.2.1",
            )
        ]
        assert (await chunk(client, b"two", last=True)).code == 250
        return codes

    codes = converse(run, Server(handler=recorder), dialogue)
    assert codes == [250, 252, 214, 500, 501, 503, 503, 503, 503, 503]
    (message,) = recorder.messages
    assert (message.octets, message.recipients) == (b"one two", ("b@example.com",))


# --- what ends a transfer -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code", "resets"),
    [
        ("RSET", 250, 1),
        ("EHLO again.example", 250, 1),
        ("HELO again.example", 250, 1),
        ("QUIT", 221, 0),
    ],
)
def test_a_command_between_two_chunks_aborts_the_message(
    run, reader, recorder, command, code, resets
):
    async def dialogue(client):
        await begin(client)
        await chunk(client, b"half a message")
        reply = await client.command(command)
        assert reply.code == code
        if code == 221:
            return b"", await client.rest()
        # There is no transaction any more, and the session goes on.
        assert (await chunk(client, b"x", last=True)).code == 503
        assert (await client.command("RCPT TO:<b@example.com>")).code == 503
        assert len(recorder.of("reset")) == resets
        return (await client.deliver(b"Hello\r\n")).code, (await client.command("QUIT")).code

    async def deliver(ctx, peer, envelope):
        await (recorder.handler if reader.ended.is_set() else reader)(ctx, peer, envelope)

    server = Server(handler=deliver)
    server.use(Middleware(reset=recorder.reset, disconnect=recorder.disconnect))
    result = converse(run, server, dialogue)
    assert result == ((b"", b"") if command == "QUIT" else (250, 221))
    assert type(reader.error) is MessageAborted
    assert not reader.whole
    assert server.counters.messages_aborted == 1
    assert server.counters.messages == len(recorder.messages) == (0 if command == "QUIT" else 1)
    (call,) = recorder.of("disconnect")
    assert call.arguments == (None,)


def test_reset_hooks_hear_of_a_message_that_a_refused_greeting_gave_up(run, reader, recorder):
    async def refuse(ctx, peer, name):
        if name == "other.example":
            raise SMTPError(550, "Not you", enhanced=(5, 7, 1))

    server = Server(handler=reader)
    server.use(Middleware(check_helo=refuse, reset=recorder.reset))

    async def dialogue():
        async with running(server) as address, await Client.connect(address) as client:
            await begin(client)
            await client.send(b"BDAT 5\r\nhello")
            assert (await client.reply()).code == 250
            assert (await client.command("EHLO other.example")).code == 550
            assert len(recorder.of("reset")) == 1
            # Nothing is given up by the next one.
            assert (await client.command("EHLO other.example")).code == 550
            assert len(recorder.of("reset")) == 1

    run(dialogue())


def test_a_transfer_that_was_reset_is_aborted_in_the_log(run, reader):
    async def dialogue(client):
        await begin(client)
        await chunk(client, b"half a message")
        await client.command("RSET")
        await client.command("QUIT")

    lines = []
    log = AccessLog(lines.append, "logfmt", clock=lambda: 0.0)
    converse(run, Server(handler=reader, access_log=log), dialogue)
    transaction, session = lines
    assert "verdict=aborted" in transaction
    assert "ended=quit" in session


def test_a_greeting_that_is_refused_between_two_chunks_gave_the_message_up(run, reader):
    async def check_helo(ctx, peer, name):
        if name == "again.example":
            raise SMTPError(550, "Not you")

    async def dialogue(client):
        await begin(client)
        await chunk(client, b"half a message")
        assert (await client.command("EHLO again.example")).code == 550
        return (await chunk(client, b"x", last=True)).code

    server = Server(handler=reader)
    server.use(Middleware(check_helo=check_helo))
    assert converse(run, server, dialogue) == 503
    assert type(reader.error) is MessageAborted
    assert server.counters.messages == 0


@pytest.mark.parametrize("how", ["close", "half close", "reset"])
@pytest.mark.parametrize("where", ["inside", "between", "before the last octet"])
def test_a_lost_connection_is_never_a_whole_message(run, reader, recorder, how, where):
    async def test():
        async with running(server) as address:
            async with await Client.connect(address) as client:
                await begin(client)
                if where == "between":
                    await chunk(client, b"half a message")
                elif where == "inside":
                    await client.send(b"BDAT 20\r\nhalf")
                else:
                    await client.send(b"BDAT 20 LAST\r\n" + b"x" * 19)
                await reader.began.wait()
                if how == "reset":
                    client.reset()
                elif how == "half close":
                    client.writer.write_eof()
                    async with asyncio.timeout(10):
                        await reader.ended.wait()
            async with asyncio.timeout(10):
                await server.wait_closed()

    server = Server(handler=reader)
    server.use(Middleware(disconnect=recorder.disconnect))
    run(test())
    assert isinstance(reader.error, ConnectionLost)
    assert (server.counters.messages, server.counters.messages_aborted) == (0, 1)
    assert isinstance(recorder.of("disconnect")[0].arguments[0], ConnectionLost)


@pytest.mark.parametrize("sizes", [[MAX + 1], [MAX, 1], [MAX - 1, 0, 2]])
def test_a_message_over_the_limit_is_aborted_and_its_chunks_are_consumed(run, reader, sizes):
    async def dialogue(client):
        await begin(client)
        replies = [(await chunk(client, b"x" * size)).code for size in sizes]
        last = await chunk(client, b"QUIT\r\n", last=True)
        assert (await client.command("NOOP")).code == 250
        return replies, last

    replies, last = converse(run, Server(handler=reader, message_size=MAX), dialogue)
    assert replies == [250] * (len(sizes) - 1) + [552]
    assert (last.code, last.text[:6]) == (552, "5.3.4 ")
    assert type(reader.error) is MessageAborted


def test_a_message_of_exactly_the_limit_is_taken(run, recorder):
    async def dialogue(client):
        await begin(client)
        await chunk(client, b"x" * (MAX - 1))
        return (await chunk(client, b"y", last=True)).code

    assert converse(run, Server(handler=recorder, message_size=MAX), dialogue) == 250


@pytest.mark.parametrize("size", [2 * MAX + 1, 10**19, 99999999999999999999])
@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
def test_a_chunk_above_twice_the_limit_ends_the_session_unread(run, reader, size, first):
    async def dialogue(client):
        await begin(client)
        if not first:
            await chunk(client, b"x")
        await client.send(b"BDAT %d\r\nMAIL FROM:<evil@example.org>\r\n" % size)
        reply = await client.reply()
        return reply, await client.rest()

    server = Server(handler=reader, message_size=MAX)
    reply, rest = converse(run, server, dialogue)
    assert (reply.code, rest) == (552, b"")
    assert server.counters.transactions == 1
    assert not reader.whole
    assert reader.began.is_set() is not first
    if not first:
        assert type(reader.error) is MessageAborted


@pytest.mark.parametrize("argument", ["", "x", "-1", "+5", "5 LA\u017fT", "5 LAST x", "1" * 21])
def test_a_bdat_of_which_nobody_knows_the_end_aborts_the_message_and_closes(run, reader, argument):
    async def dialogue(client):
        await begin(client)
        await chunk(client, b"half a message")
        await client.send(f"BDAT {argument}\r\nRSET\r\n".encode())
        reply = await client.reply()
        return reply.code, await client.rest()

    server = Server(handler=reader)
    assert converse(run, server, dialogue) == (501, b"")
    assert type(reader.error) is MessageAborted
    assert server.counters.messages == 0


@pytest.mark.parametrize("where", ["inside", "between"])
def test_the_drain_deadline_aborts_a_transfer(run, reader, where):
    async def dialogue(client):
        await begin(client)
        if where == "between":
            await chunk(client, b"half a message")
        else:
            await client.send(b"BDAT 100 LAST\r\nhalf")
        await reader.began.wait()
        server.drain()
        if where == "between":
            assert (await chunk(client, b"a drain lets it go on")).code == 250
        server.abort_transactions()
        return await client.reply(), await client.rest()

    server = Server(handler=reader)
    reply, rest = converse(run, server, dialogue)
    assert (reply.code, reply.text[:6], rest) == (421, "4.3.2 ", b"")
    assert type(reader.error) is MessageAborted
    assert server.counters.messages == 0


def test_a_drain_lets_a_transfer_end(run, reader):
    async def dialogue(client):
        await begin(client)
        await chunk(client, b"half a message")
        server.drain()
        assert (await chunk(client, b"and the rest", last=True)).code == 250
        return (await client.reply()).code

    server = Server(handler=reader)
    assert converse(run, server, dialogue) == 421
    assert reader.whole


@pytest.mark.parametrize("where", ["inside", "between", "half a command"])
@pytest.mark.usefixtures("sweep_fast")
def test_a_silent_client_aborts_its_transfer_and_gets_421(run, reader, where):
    async def dialogue(client):
        await begin(client)
        await client.send(
            {"inside": b"BDAT 9\r\nhalf", "between": b"BDAT 4\r\nhalf"}.get(
                where, b"BDAT 4\r\nhalfBD"
            )
        )
        if where != "inside":
            assert (await client.reply()).code == 250
        return await client.reply(), await client.rest()

    server = Server(handler=reader, command_timeout=SHORT)
    reply, rest = converse(run, server, dialogue)
    assert (reply.code, reply.text[:6], rest) == (421, "4.4.2 ", b"")
    assert type(reader.error) is MessageAborted
    assert server.counters.timeouts == 1


# --- what the handler says ----------------------------------------------------------------------


def test_a_handler_that_fails_early_answers_the_chunks_that_follow(run, recorder):
    async def deliver(ctx, peer, envelope):
        assert await envelope.data.read(4) == b"spam"
        raise SMTPError(554, "Spam", enhanced=(5, 7, 1))

    async def dialogue(client):
        await begin(client)
        replies = [await chunk(client, octets) for octets in (b"spam", b"RSET\r\n", b"QUIT\r\n")]
        replies.append(await chunk(client, b"NOOP\r\n", last=True))
        # They were consumed, and the session goes on.
        assert (await client.command("RCPT TO:<b@example.com>")).code == 503
        assert (await client.command("MAIL FROM:<>")).code == 250
        return [(reply.code, reply.text) for reply in replies]

    lines = []
    log = AccessLog(lines.append, "logfmt", clock=lambda: 0.0)
    server = Server(handler=Middleware(handler=deliver, name="filter"), access_log=log)
    server.use(Middleware(reset=recorder.reset))
    replies = converse(run, server, dialogue)
    assert replies == [(554, "5.7.1 Spam")] * 4
    assert (server.counters.messages, server.counters.messages_refused) == (0, 1)
    assert len(recorder.of("reset")) == 1
    # Who refused it stands in the log, whichever chunk was the last.
    assert "by=filter" in lines[0]
    assert "verdict=refused" in lines[0]


def test_a_handler_that_refuses_at_once_costs_the_chunk_and_no_more(run):
    async def deliver(ctx, peer, envelope):
        raise SMTPError(451, "Not now")

    async def dialogue(client):
        await begin(client)
        await client.send(b"BDAT 600000\r\n" + b"QUIT\r\n" * 100_000)
        assert (await client.reply()).code == 451
        assert (await client.command("RSET")).code == 250
        await client.command("MAIL FROM:<>")
        await client.command("RCPT TO:<b@example.com>")
        return (await chunk(client, b"QUIT\r\n" * 1000, last=True)).code

    assert converse(run, Server(handler=deliver), dialogue) == 451


def test_a_handler_that_returns_early_took_the_message(run):
    async def deliver(ctx, peer, envelope):
        await envelope.data.read(1)

    async def dialogue(client):
        await begin(client)
        codes = [(await chunk(client, b"x" * 1000)).code for _ in range(3)]
        codes.append((await chunk(client, b"QUIT\r\n", last=True)).code)
        return codes, (await client.command("NOOP")).code

    server = Server(handler=deliver)
    assert converse(run, server, dialogue) == ([250] * 4, 250)
    assert server.counters.messages == 1


def test_what_a_handler_returned_early_does_not_save_a_message_that_was_reset(run):
    async def deliver(ctx, peer, envelope):
        await envelope.data.read(1)

    async def dialogue(client):
        await begin(client)
        await chunk(client, b"half")
        return (await client.command("RSET")).code, (await client.command("NOOP")).code

    server = Server(handler=deliver)
    assert converse(run, server, dialogue) == (250, 250)
    assert (server.counters.messages, server.counters.messages_aborted) == (0, 1)


@pytest.mark.parametrize("last", [False, True])
def test_a_handler_that_crashes_in_mid_transfer_ends_the_session(run, recorder, caplog, last):
    async def deliver(ctx, peer, envelope):
        await envelope.data.read(4)
        raise RuntimeError("private")

    async def dialogue(client):
        await begin(client)
        await client.send(b"BDAT 9%s\r\nhalf" % (b" LAST" if last else b""))
        await client.send(b"-chunk"[:5] + b"NOOP\r\n")
        reply = await client.reply()
        return reply, await client.rest()

    server = Server(handler=deliver)
    server.use(Middleware(disconnect=recorder.disconnect))
    reply, rest = converse(run, server, dialogue)
    assert (reply.code, rest) == (502, b"")
    assert "private" not in reply.text
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert isinstance(record.exc_info[1], RuntimeError)
    assert isinstance(recorder.of("disconnect")[0].arguments[0], RuntimeError)
    assert server.counters.hook_failures == 1


def test_a_handler_that_crashes_because_the_transfer_was_reset_ends_the_session(
    run, recorder, caplog
):
    async def deliver(ctx, peer, envelope):
        try:
            await envelope.data.read()
        except MessageAborted as error:
            raise RuntimeError("private") from error

    async def dialogue(client):
        await begin(client)
        await chunk(client, b"half")
        reply = await client.command("RSET")
        return reply.code, await client.rest()

    server = Server(handler=deliver)
    server.use(Middleware(disconnect=recorder.disconnect))
    assert converse(run, server, dialogue) == (502, b"")
    assert isinstance(recorder.of("disconnect")[0].arguments[0], RuntimeError)
    assert server.counters.hook_failures == 1


def test_reading_after_the_answer_steals_nothing_from_the_session(run):
    kept = []

    async def deliver(ctx, peer, envelope):
        kept.append(envelope.data)

    async def dialogue(client):
        await begin(client)
        assert (await chunk(client, b"one", last=True)).code == 250
        await client.send(b"NOOP\r\nMAIL FROM:<>\r\n")
        with pytest.raises(MessageAborted):
            await kept[0].read(10)
        assert await client.replies(2) == [250, 250]
        assert (await client.command("RCPT TO:<b@example.com>")).code == 250
        assert (await client.command("DATA")).code == 354
        with pytest.raises(MessageAborted):
            await kept[0].read()
        return (await client.command(".")).code

    assert converse(run, Server(handler=deliver), dialogue) == 250


@pytest.mark.parametrize("bdat", [False, True], ids=["DATA", "BDAT"])
def test_the_end_that_was_read_stays_the_end_after_the_answer(run, bdat):
    kept = []

    async def deliver(ctx, peer, envelope):
        await envelope.data.read()
        kept.append(envelope.data)

    async def dialogue(client):
        if bdat:
            await begin(client)
            await chunk(client, b"one", last=True)
        else:
            await client.hello()
            await client.deliver(b"one\r\n")
        return await kept[0].read(10)

    assert converse(run, Server(handler=deliver), dialogue) == b""


# --- many ---------------------------------------------------------------------------------------


def test_100_000_chunks_of_one_octet_cost_no_memory(run):
    count = 100_000
    total = pieces = 0

    async def deliver(ctx, peer, envelope):
        nonlocal total, pieces
        async for octets in envelope.data:
            total += len(octets)
            pieces += 1

    async def dialogue(client):
        await begin(client)
        flight = b"BDAT 1\r\nx" * 1000
        blocks = []
        peak = 0
        for sent in range(0, count, 1000):
            if sent == count - 5_000:
                # It makes everything slow.
                tracemalloc.start()
            await client.send(flight)
            async with asyncio.timeout(10):
                replies = await client.reader.readexactly(1000 * 29)
            assert replies == b"250 2.0.0 1 octets received\r\n" * 1000
            blocks.append(sys.getallocatedblocks())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return (await chunk(client, b"", last=True)).code, blocks, peak

    code, blocks, peak = converse(run, Server(handler=deliver), dialogue)
    assert (code, total, pieces) == (250, count, count)
    # Not one object is kept for a chunk, and buffers do not grow.
    assert blocks[-6] - blocks[9] < count // 10
    assert peak < 500_000


@pytest.mark.parametrize("kind", ["BDAT 1", "BDAT 0", "NOOP"])
def test_a_flood_of_chunks_does_not_starve_another_session(run, kind):
    flood = {"BDAT 1": b"BDAT 1\r\nx", "BDAT 0": b"BDAT 0\r\n", "NOOP": b"NOOP\r\n"}[kind] * 20_000
    answered = []

    async def deliver(ctx, peer, envelope):
        await envelope.data.read()

    async def test():
        async with (
            running(server) as address,
            await Client.connect(address) as loud,
            await Client.connect(address) as quiet,
        ):
            await quiet.hello()
            await begin(loud)
            await chunk(loud, b"first")
            sending = asyncio.create_task(loud.send(flood))
            done = 0

            async def read():
                nonlocal done
                while done < 20_000:
                    octets = await loud.reader.read(65536)
                    done += octets.count(b"\n")

            reader = asyncio.create_task(read())
            while not reader.done():
                began = time.perf_counter()
                assert (await quiet.command("NOOP")).code == 250
                answered.append((done, time.perf_counter() - began))
            await sending
            assert (await chunk(loud, b"", last=True)).code == 250

    server = Server(handler=deliver)
    run(test())
    # Many turns in between, and none of them long.
    assert len({done for done, _ in answered}) > 5
    assert max(seconds for _, seconds in answered) < 0.5


def test_a_thousand_transfers_that_were_reset_leave_nothing(run, reader):
    async def deliver(ctx, peer, envelope):
        await envelope.data.read()

    async def dialogue(client):
        await client.hello()
        one = b"MAIL FROM:<>\r\nRCPT TO:<b@example.com>\r\nBDAT 3\r\nabcRSET\r\n"
        for _ in range(1000):
            await client.send(one)
            assert await client.replies(4) == [250] * 4

    server = Server(handler=deliver)
    converse(run, server, dialogue)
    assert server.counters.messages_aborted == 1000
    assert server.in_data == 0
