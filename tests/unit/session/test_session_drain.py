"""Drain: nobody loses mail, and nobody is kept waiting."""

from __future__ import annotations

import asyncio

import pytest

from preforkmx import Middleware, Server
from preforkmx.testing import Client, Recorder, running


@pytest.fixture
def recorder():
    return Recorder()


def converse(run, server, dialogue, **options):
    async def test():
        async with (
            running(server, **options) as address,
            await Client.connect(address) as client,
        ):
            return await dialogue(client)

    return run(test())


async def begin(client, last):
    """Go through a transaction up to and with the command `last`."""
    await client.hello()
    for command in ("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA"):
        assert (await client.command(command)).code < 400
        if command.startswith(last):
            return


def test_an_idle_session_gets_421_4_3_2_at_once(run, recorder):
    async def dialogue(client):
        await client.hello()
        server.drain()
        return await client.rest()

    server = Server(handler=recorder)
    assert converse(run, server, dialogue).startswith(b"421 4.3.2 ")


def test_a_session_that_was_not_greeted_yet_is_told_too(run):
    async def dialogue(client):
        server.drain()
        return await client.rest()

    server = Server()
    said = converse(run, server, dialogue).splitlines()
    assert said[-1].startswith(b"421 ")


def test_a_session_in_an_auth_exchange_is_told_too(run):
    async def dialogue(client):
        await client.hello()
        assert (await client.command("AUTH LOGIN")).code == 334
        server.drain()
        return await client.rest()

    server = Server(allow_insecure_auth=True, handler=Recorder(authenticate=True))
    assert converse(run, server, dialogue).startswith(b"421 4.3.2 ")


@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA"])
def test_a_transaction_is_finished_with_its_250_and_then_comes_421(run, recorder, stage):
    async def dialogue(client):
        await begin(client, stage)
        server.drain()
        if stage == "MAIL":
            assert (await client.command("RCPT TO:<b@example.com>")).code == 250
        if stage != "DATA":
            assert (await client.command("DATA")).code == 354
        await client.send(b"Hello\r\n.\r\n")
        assert (await client.reply()).code == 250
        return await client.rest()

    server = Server(handler=recorder)
    assert converse(run, server, dialogue).startswith(b"421 4.3.2 ")
    assert len(recorder.messages) == 1


@pytest.mark.parametrize("end", ["RSET", "EHLO again.example"])
def test_a_transaction_that_is_given_up_is_the_end_too(run, end):
    async def dialogue(client):
        await begin(client, "RCPT")
        server.drain()
        await client.send(f"{end}\r\n".encode())
        return (await client.rest()).splitlines()

    server = Server()
    said = converse(run, server, dialogue)
    assert said[0].startswith(b"250")
    assert said[-1].startswith(b"421 4.3.2 ")


def test_no_further_transaction_begins_however_many_are_in_flight(run, recorder):
    delivering, go_on = asyncio.Event(), asyncio.Event()

    async def deliver(ctx, peer, envelope):
        delivering.set()
        await go_on.wait()

    async def dialogue(client):
        await client.hello()
        await client.send(
            b"MAIL FROM:<>\r\nRCPT TO:<a@example.com>\r\nDATA\r\nHello\r\n.\r\n"
            b"MAIL FROM:<>\r\nRCPT TO:<a@example.com>\r\nDATA\r\nHello\r\n.\r\nQUIT\r\n"
        )
        await delivering.wait()
        server.drain()
        go_on.set()
        return (await client.rest()).splitlines()

    server = Server(handler=deliver)
    said = converse(run, server, dialogue)
    assert [line[:3] for line in said] == [b"250", b"250", b"354", b"250", b"421"]
    assert server.counters.messages == 1


def test_a_client_that_says_quit_meanwhile_gets_its_221(run):
    asking, go_on = asyncio.Event(), asyncio.Event()

    async def slow(ctx, peer, name):
        asking.set()
        await go_on.wait()

    async def dialogue(client):
        await client.reply()
        await client.send(b"HELO x\r\nQUIT\r\n")
        await asking.wait()
        server.drain()
        go_on.set()
        return (await client.rest()).splitlines()

    server = Server()
    server.use(Middleware(check_helo=slow))
    assert [line[:3] for line in converse(run, server, dialogue)] == [b"250", b"221"]


def test_ctx_draining_tells_a_handler(run):
    seen = []

    async def deliver(ctx, peer, envelope):
        seen.append(bool(ctx.draining))
        working.set()
        async with asyncio.timeout(10):
            await ctx.draining
        seen.append(bool(ctx.draining))

    async def dialogue(client):
        await begin(client, "DATA")
        await working.wait()
        server.drain()
        await client.send(b".\r\n")
        assert (await client.reply()).code == 250

    working = asyncio.Event()
    server = Server(handler=deliver)
    converse(run, server, dialogue)
    assert seen == [False, True]


# --- the deadline -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["MAIL", "RCPT"])
def test_at_the_deadline_a_transaction_without_a_message_gets_421(run, stage):
    async def dialogue(client):
        await begin(client, stage)
        server.drain()
        server.abort_transactions()
        return await client.rest()

    server = Server()
    assert converse(run, server, dialogue).startswith(b"421 4.3.2 ")


@pytest.mark.parametrize("reads", [True, False], ids=["read", "unread"])
def test_at_the_deadline_an_arriving_message_gets_421_and_no_250(run, reads):
    began = asyncio.Event()

    async def deliver(ctx, peer, envelope):
        began.set()
        if reads:
            await envelope.data.read_all(1000)

    async def dialogue(client):
        await begin(client, "DATA")
        await client.send(b"Half a ")
        await began.wait()
        server.drain()
        server.abort_transactions()
        await client.send(b"message\r\n.\r\nQUIT\r\n")
        return await client.rest()

    server = Server(handler=deliver)
    said = converse(run, server, dialogue)
    assert said.startswith(b"421 4.3.2 ")
    assert said.count(b"\r\n") == 1
    assert (server.counters.messages, server.counters.messages_aborted) == (0, 1)


def test_at_the_deadline_a_message_that_was_read_to_its_end_still_gets_its_250(run):
    at_the_end, go_on = asyncio.Event(), asyncio.Event()

    async def deliver(ctx, peer, envelope):
        await envelope.data.read_all(1000)
        at_the_end.set()
        await go_on.wait()

    async def dialogue(client):
        await begin(client, "DATA")
        await client.send(b"Hello\r\n.\r\n")
        await at_the_end.wait()
        server.drain()
        server.abort_transactions()
        go_on.set()
        return (await client.rest()).splitlines()

    server = Server(handler=deliver)
    said = converse(run, server, dialogue)
    assert [line[:3] for line in said] == [b"250", b"421"]


# --- retire -------------------------------------------------------------------------------------------


def test_a_retired_session_gets_421_at_its_next_command_and_not_before(run, recorder):
    async def dialogue(client):
        await client.hello()
        server.retire()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.reply()
        # Not even NOOP keeps an old worker alive.
        return await client.command("NOOP"), await client.rest()

    server = Server(handler=recorder)
    reply, rest = converse(run, server, dialogue)
    assert (reply.code, reply.text[:5], rest) == (421, "4.3.2", b"")


@pytest.mark.parametrize("command", ["MAIL FROM:<>", "RSET", "VRFY x", "STARTTLS"])
def test_a_retired_session_begins_nothing_any_more(run, command, server_tls):
    async def dialogue(client):
        await client.hello()
        server.retire()
        return await client.command(command), await client.rest()

    server = Server(tls=server_tls)
    reply, rest = converse(run, server, dialogue)
    assert (reply.code, reply.text[:5], rest) == (421, "4.3.2", b"")


def test_a_retired_session_finishes_its_transaction_first(run, recorder):
    async def dialogue(client):
        await begin(client, "DATA")
        server.retire()
        await client.send(b"Hello\r\n.\r\n")
        assert (await client.reply()).code == 250
        return await client.command("MAIL FROM:<>")

    server = Server(handler=recorder)
    assert converse(run, server, dialogue).code == 421
    assert len(recorder.messages) == 1


def test_a_retired_session_may_still_say_quit(run):
    async def dialogue(client):
        await client.hello()
        server.retire()
        return await client.command("QUIT")

    server = Server()
    assert converse(run, server, dialogue).code == 221
