"""LMTP: LHLO, and one reply for each recipient (RFC 2033)."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from preforkmx import MessageAborted, Middleware, Server, SMTPError
from preforkmx.observe.log import AccessLog
from preforkmx.testing import Client, Recorder

FULL = SMTPError(452, "Mailbox full", enhanced=(4, 2, 2))
UNKNOWN = SMTPError(550, "No such user", enhanced=(5, 1, 1))


@pytest.fixture(params=["tcp", "unix"])
def listen(request, tmp_path):
    """Start a server on a TCP or unix socket, and connect a client to it."""

    @contextlib.asynccontextmanager
    async def listen(server, *, protocol="lmtp", **options):
        address = "127.0.0.1:0" if request.param == "tcp" else f"unix:{tmp_path}/s"
        server.listen(address, protocol=protocol, **options)
        async with server:
            where = server.addresses[0]
            if request.param == "tcp":
                client = await Client.connect(where)
            else:
                client = Client(*await asyncio.open_unix_connection(where[0]))
            async with client:
                yield client
            async with asyncio.timeout(10):
                await server.wait_closed()

    return listen


async def begin(client, *, count=3, hello="LHLO client.example"):
    assert (await client.reply()).code == 220
    assert (await client.command(hello)).code == 250
    await envelope(client, count=count)


async def envelope(client, *, count=3):
    assert (await client.command("MAIL FROM:<a@example.org>")).code == 250
    for i in range(count):
        assert (await client.command(f"RCPT TO:<r{i}@example.com>")).code == 250


async def message(client, how="DATA"):
    if how == "DATA":
        assert (await client.command("DATA")).code == 354
        await client.send(b"Hello\r\n.\r\n")
    else:
        await client.send(b"BDAT 3\r\nHelBDAT 4 LAST\r\nlo\r\n")
        assert (await client.reply()).code == 250


async def answers(client, count):
    return [f"{reply.code} {reply.text}" for reply in [await client.reply() for _ in range(count)]]


def rejecting(rejections):
    async def deliver(ctx, peer, envelope):
        assert await envelope.data.read() == b"Hello\r\n"
        for index, error in rejections.items():
            envelope.reject_recipient(index, error)

    return deliver


def access_log():
    lines = []
    return lines, AccessLog(lines.append, "logfmt", clock=lambda: 0.0)


def test_lhlo_is_the_greeting_and_the_only_one(run, listen):
    async def test():
        async with listen(Server(hostname="mx.example.com")) as client:
            greeting = await client.reply()
            for command, code in (("HELO x", 500), ("EHLO x", 500), ("MAIL FROM:<>", 503)):
                assert (await client.command(command)).code == code
            return greeting, await client.command("LHLO x")

    greeting, hello = run(test())
    assert greeting.text == "mx.example.com LMTP"
    assert hello.lines[0] == "mx.example.com"
    # RFC 2033 section 5 wants these.
    assert {"PIPELINING", "ENHANCEDSTATUSCODES", "8BITMIME"} <= set(hello.lines)


@pytest.mark.parametrize("how", ["DATA", "BDAT"])
def test_each_recipient_has_its_reply_in_order(run, listen, how):
    lines, log = access_log()
    server = Server(handler=rejecting({1: UNKNOWN, 3: FULL}), access_log=log)

    async def test():
        async with listen(server) as client:
            await begin(client, count=4)
            await message(client, how)
            texts = await answers(client, 4)
            # No reply more: the next one is the next command's.
            assert (await client.command("QUIT")).code == 221
            return texts

    first, second, third, fourth = run(test())
    assert first == third
    assert first.startswith("250 2.0.0 Ok: queued as ")
    assert second == "550 5.1.1 No such user"
    assert fourth == "452 4.2.2 Mailbox full"
    counters = server.counters
    assert (counters.messages, counters.messages_refused, counters.recipients) == (1, 0, 4)
    assert counters.octets == 7
    transaction, session = lines
    for part in ("proto=LMTP", "count=4", "rejected=2", "verdict=accepted"):
        assert part in transaction
    assert "messages=1" in session


def test_a_message_that_nobody_has_is_refused_in_counters_and_log(run, listen):
    lines, log = access_log()
    server = Server(handler=rejecting({0: UNKNOWN, 1: FULL}), access_log=log)

    async def test():
        async with listen(server) as client:
            await begin(client, count=2)
            await message(client)
            return await answers(client, 2)

    assert run(test()) == ["550 5.1.1 No such user", "452 4.2.2 Mailbox full"]
    assert (server.counters.messages, server.counters.messages_refused) == (0, 1)
    # Some of it comes again.
    assert "verdict=deferred" in lines[0]
    assert "rejected=2" in lines[0]


@pytest.mark.parametrize("how", ["DATA", "BDAT"])
def test_a_handler_s_refusal_is_every_recipient_s(run, listen, how):
    async def deliver(ctx, peer, envelope):
        envelope.reject_recipient(0, UNKNOWN)
        await envelope.data.read()
        raise SMTPError(451, "Not now", enhanced=(4, 3, 0))

    lines, log = access_log()
    server = Server(handler=Middleware(handler=deliver, name="target"), access_log=log)

    async def test():
        async with listen(server) as client:
            await begin(client)
            await message(client, how)
            texts = await answers(client, 3)
            assert (await client.command("NOOP")).code == 250
            return texts

    assert run(test()) == ["451 4.3.0 Not now"] * 3
    assert "verdict=deferred by=target" in lines[0]


def test_a_handler_that_failed_early_answers_a_chunk_once_and_the_last_for_all(run, listen):
    async def deliver(ctx, peer, envelope):
        await envelope.data.read(3)
        raise UNKNOWN

    async def test():
        async with listen(Server(handler=deliver)) as client:
            await begin(client, count=2)
            await client.send(b"BDAT 3\r\nHelBDAT 2\r\nloBDAT 2 LAST\r\n\r\n")
            texts = await answers(client, 4)
            assert (await client.command("NOOP")).code == 250
            return texts

    assert run(test()) == ["550 5.1.1 No such user"] * 4


@pytest.mark.parametrize("fault", [b"bare\nnewline\r\n", b"x" * 2000 + b"\r\n"])
def test_a_fault_of_the_message_is_every_recipient_s(run, listen, fault):
    errors = []

    async def deliver(ctx, peer, envelope):
        try:
            await envelope.data.read()
        except MessageAborted as error:
            errors.append(error)
            raise

    async def test():
        async with listen(Server(handler=deliver, message_size=1500)) as client:
            await begin(client, count=2)
            assert (await client.command("DATA")).code == 354
            await client.send(fault + b".\r\n")
            return await client.replies(2)

    codes = run(test())
    assert codes == ([550] * 2 if b"bare" in fault else [552] * 2)
    assert len(errors) == 1


def test_a_handler_that_crashes_answers_every_recipient_and_ends_the_session(run, listen):
    async def deliver(ctx, peer, envelope):
        raise RuntimeError("a bug")

    async def test():
        async with listen(Server(handler=deliver)) as client:
            await begin(client)
            await message(client)
            return await client.replies(3), await client.rest()

    assert run(test()) == ([502] * 3, b"")


def test_a_rejection_that_closes_is_said_among_the_others(run, listen):
    async def test():
        server = Server(handler=rejecting({0: SMTPError(421, "Bye")}))
        async with listen(server) as client:
            await begin(client)
            await message(client)
            return await client.replies(3), await client.rest()

    assert run(test()) == ([421, 250, 250], b"")


def test_a_recipient_that_is_none_is_the_handler_s_mistake(run, listen):
    async def test():
        server = Server(handler=rejecting({3: UNKNOWN}))
        async with listen(server) as client:
            await begin(client)
            await message(client)
            return await client.replies(3), await client.rest(), server.counters.hook_failures

    assert run(test()) == ([502] * 3, b"", 1)


def test_a_recipient_that_was_refused_at_rcpt_has_no_reply_after_the_message(run, listen):
    recorder = Recorder()

    async def check_recipient(ctx, peer, address):
        if address == "no@example.com":
            raise UNKNOWN

    server = Server(handler=rejecting({1: FULL}))
    server.use(recorder, Middleware(check_recipient=check_recipient))

    async def test():
        async with listen(server) as client:
            await begin(client, count=1)
            assert (await client.command("RCPT TO:<no@example.com>")).code == 550
            assert (await client.command("RCPT TO:<r1@example.com>")).code == 250
            await message(client)
            codes = await client.replies(2)
            return codes, (await client.command("NOOP")).code

    assert run(test()) == ([250, 452], 250)


def test_the_replies_of_the_next_message_are_its_own(run, listen):
    async def deliver(ctx, peer, envelope):
        await envelope.data.read()
        if len(envelope.recipients) == 2:
            envelope.reject_recipient(0, UNKNOWN)

    async def test():
        async with listen(Server(handler=deliver)) as client:
            await begin(client, count=2)
            await message(client)
            codes = await client.replies(2)
            await envelope(client, count=3)
            await message(client)
            return codes, await client.replies(3)

    assert run(test()) == ([550, 250], [250] * 3)


def test_without_a_recipient_there_is_no_message(run, listen):
    async def test():
        async with listen(Server()) as client:
            await begin(client, count=0)
            return (await client.command("DATA")).code, (await client.command("BDAT 0 LAST")).code

    # RFC 2033 section 4.2.
    assert run(test()) == (503, 503)


# --- the same rejections in SMTP ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rejections", "text", "verdict"),
    [
        ({0: UNKNOWN, 2: FULL}, "452 4.2.2 Mailbox full", "deferred"),
        (
            {1: UNKNOWN},
            "550 5.1.1 No such user (not delivered to <r1@example.com>; the others have it)",
            "refused",
        ),
        (dict.fromkeys(range(3), UNKNOWN), "550 5.1.1 No such user", "refused"),
    ],
    ids=["temporary", "mixed", "all"],
)
def test_smtp_has_one_answer_for_all(run, listen, rejections, text, verdict):
    lines, log = access_log()
    server = Server(handler=rejecting(rejections), access_log=log)

    async def test():
        async with listen(server, protocol="smtp") as client:
            await begin(client, hello="EHLO client.example")
            await message(client)
            said = await answers(client, 1)
            assert (await client.command("NOOP")).code == 250
            return said

    assert run(test()) == [text]
    assert (server.counters.messages, server.counters.messages_refused) == (0, 1)
    assert f"verdict={verdict}" in lines[0]
    assert f"rejected={len(rejections)}" in lines[0]


# --- what hooks see -------------------------------------------------------------------------------


def test_hooks_see_how_the_mail_arrives(run, listen, server_tls, client_tls):
    recorder = Recorder(authenticate=True)
    server = Server(tls=server_tls, allow_insecure_auth=True, handler=recorder)

    async def test():
        async with listen(server) as client:
            await begin(client)
            await client.command("RSET")
            assert (await client.command("AUTH PLAIN AGpvZQBzZWNyZXQ=")).code == 235
            await envelope(client, count=1)
            await client.command("RSET")
            await client.starttls(client_tls)
            await client.command("LHLO again.example")
            await envelope(client, count=1)
            await client.command("RSET")
            assert (await client.command("AUTH PLAIN AGpvZQBzZWNyZXQ=")).code == 235
            await envelope(client, count=1)
            await client.command("QUIT")

    run(test())
    protocols = [call.peer.protocol for call in recorder.of("check_sender")]
    assert protocols == ["LMTP", "LMTPA", "LMTPS", "LMTPSA"]


def test_a_unix_peer_has_no_address(run, listen):
    recorder = Recorder()
    server = Server(handler=recorder)

    async def test():
        async with listen(server) as client:
            await begin(client, count=1)
            return server.addresses[0]

    host, port = run(test())
    peer = recorder.of("check_sender")[0].peer
    if port:
        assert (peer.host, peer.address is None) == ("127.0.0.1", False)
    else:
        assert host.endswith("/s")
        assert (peer.host, peer.address, peer.port) == ("unix", None, 0)
