"""disconnect runs exactly once a session, with the error or None."""

from __future__ import annotations

import asyncio
import ssl

import pytest

from preforkmx import ConnectionLost, MessageAborted, Middleware, Server, SMTPError
from preforkmx.testing import Client, Recorder, running

pytestmark = pytest.mark.usefixtures("sweep_fast")


@pytest.fixture
def recorder():
    return Recorder()


async def the_only_disconnect(recorder, server):
    """Wait until the session is over; return the error that disconnect was given."""
    await recorder.happened("disconnect")
    async with asyncio.timeout(10):
        await server.wait_closed()
    (call,) = recorder.of("disconnect")
    return call.arguments[0]


def outcome(run, server, recorder, dialogue):
    server.use(recorder)

    async def test():
        async with running(server) as address:
            async with await Client.connect(address) as client:
                await dialogue(client, server)
            return await the_only_disconnect(recorder, server)

    return run(test())


def test_after_quit_there_is_no_error(run, recorder):
    async def dialogue(client, server):
        await client.hello()
        await client.command("QUIT")

    assert outcome(run, Server(), recorder, dialogue) is None


def test_after_a_refused_connection_there_is_no_error(run, recorder):
    async def dialogue(client, server):
        await client.rest()

    recorder.refuse("check_connection", SMTPError(554, "No"))
    assert outcome(run, Server(), recorder, dialogue) is None


def test_after_a_refusal_that_closes_there_is_no_error(run, recorder):
    async def dialogue(client, server):
        await client.hello()
        assert (await client.command("MAIL FROM:<>")).code == 550
        assert await client.rest() == b""

    recorder.refuse("check_sender", SMTPError(550, "Go away", close=True))
    assert outcome(run, Server(), recorder, dialogue) is None


def test_after_too_many_errors_there_is_no_error(run, recorder):
    async def dialogue(client, server):
        await client.hello()
        for code in (500, 500, 421):
            assert (await client.command("BOGUS")).code == code

    assert outcome(run, Server(errors=2), recorder, dialogue) is None


def test_after_a_shutdown_there_is_no_error(run, recorder):
    async def dialogue(client, server):
        await client.hello()
        server.drain()
        assert (await client.reply()).code == 421

    assert outcome(run, Server(), recorder, dialogue) is None


def test_after_an_aborted_transaction_of_a_shutdown_there_is_no_error(run, recorder):
    async def dialogue(client, server):
        await client.hello()
        await client.command("MAIL FROM:<>")
        await client.command("RCPT TO:<a@example.com>")
        await client.command("DATA")
        await recorder.happened("handler")
        server.drain()
        server.abort_transactions()
        assert (await client.reply()).code == 421

    assert outcome(run, Server(), recorder, dialogue) is None


def test_after_an_abort_there_is_no_error(run, recorder):
    async def dialogue(client, server):
        await client.hello()
        server.abort()

    assert outcome(run, Server(), recorder, dialogue) is None


@pytest.mark.parametrize("how", ["close", "reset"])
def test_after_a_client_that_left_without_quit_it_is_connection_lost(run, recorder, how):
    async def dialogue(client, server):
        await client.hello()
        if how == "reset":
            client.reset()

    assert isinstance(outcome(run, Server(), recorder, dialogue), ConnectionLost)


@pytest.mark.parametrize("how", ["close", "reset"])
def test_after_a_client_that_left_in_its_message_it_is_connection_lost(run, recorder, how):
    async def dialogue(client, server):
        await client.hello()
        await client.command("MAIL FROM:<>")
        await client.command("RCPT TO:<a@example.com>")
        await client.command("DATA")
        await client.send(b"Half a ")
        if how == "reset":
            client.reset()

    error = outcome(run, Server(), recorder, dialogue)
    assert isinstance(error, ConnectionLost)
    assert recorder.messages == []


def test_after_a_silent_client_it_is_a_timeout_error(run, recorder):
    async def dialogue(client, server):
        await client.hello()
        assert (await client.reply()).code == 421

    error = outcome(run, Server(command_timeout=0.05), recorder, dialogue)
    assert isinstance(error, TimeoutError)


def test_after_a_client_that_is_silent_in_its_message_it_is_message_aborted(run, recorder):
    async def dialogue(client, server):
        await client.hello()
        await client.command("MAIL FROM:<>")
        await client.command("RCPT TO:<a@example.com>")
        await client.command("DATA")
        assert (await client.reply()).code == 421

    error = outcome(run, Server(command_timeout=0.05), recorder, dialogue)
    assert isinstance(error, MessageAborted)
    assert not isinstance(error, ConnectionLost)


def test_after_a_hook_that_took_too_long_it_is_a_timeout_error(run, recorder):
    async def forever(ctx, peer, address):
        await asyncio.Event().wait()

    async def dialogue(client, server):
        await client.hello()
        reply = await client.command("MAIL FROM:<>")
        assert (reply.code, reply.text[:5]) == (451, "4.3.0")
        assert await client.rest() == b""

    server = Server(command_timeout=0.05)
    server.use(Middleware(check_sender=forever))
    assert isinstance(outcome(run, server, recorder, dialogue), TimeoutError)


def test_after_a_hook_that_crashed_it_is_what_the_hook_raised(run, recorder):
    async def dialogue(client, server):
        await client.hello()
        await client.command("MAIL FROM:<>")

    crash = RuntimeError("a bug")
    recorder.refuse("check_sender", crash)
    assert outcome(run, Server(), recorder, dialogue) is crash


def test_after_a_delivery_that_crashed_it_is_what_the_handler_raised(run, recorder):
    async def dialogue(client, server):
        await client.hello()
        assert (await client.deliver(b"Hello\r\n")).code == 502
        assert await client.rest() == b""

    crash = RuntimeError("a bug")
    recorder.refuse("handler", crash)
    assert outcome(run, Server(), recorder, dialogue) is crash


@pytest.mark.parametrize("octets", [b"EHLO in.plain.text\r\n", b"\x16\x03\x01\x00\x05rubbish"])
def test_after_a_failed_starttls_handshake_it_is_the_error(run, recorder, server_tls, octets):
    async def dialogue(client, server):
        await client.hello()
        assert (await client.command("STARTTLS")).code == 220
        await client.send(octets)
        await client.reader.read()

    error = outcome(run, Server(tls=server_tls), recorder, dialogue)
    assert isinstance(error, ssl.SSLError)


@pytest.mark.parametrize("how", ["close", "reset"])
def test_after_a_client_that_left_at_the_handshake_it_is_an_error(run, recorder, server_tls, how):
    async def dialogue(client, server):
        await client.hello()
        assert (await client.command("STARTTLS")).code == 220
        if how == "reset":
            client.reset()

    server = Server(tls=server_tls)
    error = outcome(run, server, recorder, dialogue)
    assert isinstance(error, (OSError, ConnectionLost))
    assert server.counters.tls_failures == 1


def test_after_a_handshake_that_takes_too_long_it_is_an_error(
    run, recorder, server_tls, monkeypatch
):
    monkeypatch.setattr("preforkmx.session.session.TLS_HANDSHAKE_SECONDS", 0.1)

    async def dialogue(client, server):
        await client.hello()
        assert (await client.command("STARTTLS")).code == 220
        assert await client.reader.read() == b""

    error = outcome(run, Server(tls=server_tls), recorder, dialogue)
    assert isinstance(error, OSError)


def test_a_disconnect_hook_that_crashes_does_not_hide_the_error_from_the_next(run, recorder):
    errors = []

    async def crash(ctx, peer, error):
        errors.append(error)
        raise RuntimeError("a bug")

    async def dialogue(client, server):
        await client.hello()
        assert (await client.command("QUIT")).code == 221

    server = Server()
    server.use(Middleware(disconnect=crash), Middleware(disconnect=crash))
    assert outcome(run, server, recorder, dialogue) is None
    assert errors == [None, None]
    assert server.counters.hook_failures == 2


def test_a_disconnect_hook_that_refuses_or_never_ends_does_not_stop_the_next(run, recorder):
    async def refuse(ctx, peer, error):
        raise SMTPError(550, "Stay")

    async def forever(ctx, peer, error):
        await asyncio.Event().wait()

    async def dialogue(client, server):
        await client.hello()
        # Long enough for the client, short for the hook that does not end.
        server._service.command_timeout = 0.05
        assert (await client.command("QUIT")).code == 221

    server = Server()
    server.use(Middleware(disconnect=refuse), Middleware(disconnect=forever))
    assert outcome(run, server, recorder, dialogue) is None


def test_the_last_reply_does_not_wait_for_the_disconnect_hooks(run):
    let_go = asyncio.Event()

    async def slow(ctx, peer, error):
        await let_go.wait()

    server = Server()
    server.use(Middleware(disconnect=slow))

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            assert (await client.command("QUIT")).code == 221
            assert server.sessions == 1
            let_go.set()
            assert await client.rest() == b""

    run(test())


def test_leaving_the_server_ends_a_disconnect_hook_that_never_ends(run):
    async def forever(ctx, peer, error):
        await asyncio.Event().wait()

    server = Server(command_timeout=0.2)
    server.use(Middleware(disconnect=forever))
    server.listen("127.0.0.1:0")

    async def test():
        async with asyncio.timeout(10), server:
            client = await Client.connect(server.addresses[0])
            await client.hello()
        await client.close()

    run(test())
    assert server.sessions == 0


def test_a_connection_whose_implicit_handshake_fails_never_was_a_session(run, recorder, server_tls):
    server = Server(tls=server_tls)
    server.use(recorder)

    async def test():
        async with running(server, tls="implicit") as address:
            async with await Client.connect(address) as client:
                await client.send(b"EHLO in.plain.text\r\n")
                await client.reader.read()
            async with asyncio.timeout(10):
                await server.wait_closed()

    run(test())
    assert recorder.calls == []
    assert server.counters.tls_failures == 1


def test_a_connection_too_many_never_was_a_session(run, recorder):
    server = Server(max_sessions=1)
    server.use(recorder)

    async def test():
        async with running(server) as address, await Client.connect(address) as first:
            await first.hello()
            async with await Client.connect(address) as second:
                assert await second.rest() == (b"421 Too many connections, try again later\r\n")
            await first.command("QUIT")
            await recorder.happened("disconnect")

    run(test())
    assert len(recorder.of("disconnect")) == len(recorder.of("check_connection")) == 1
    assert server.counters.connections_refused == 1
