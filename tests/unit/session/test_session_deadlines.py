"""Every wait has a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from preforkmx import Middleware, Server
from preforkmx.testing import Client, Recorder, running

pytestmark = pytest.mark.usefixtures("sweep_fast")

SHORT = 0.05
LONG = 30.0


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


# --- the client's time ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "commands",
    [[], ["EHLO x"], ["EHLO x", "MAIL FROM:<>"], ["EHLO x", "AUTH LOGIN"], ["EHLO x", "NO"]],
    ids=["greeting", "EHLO", "MAIL", "AUTH", "half a command"],
)
def test_a_client_that_says_nothing_gets_421_4_4_2_and_the_end(run, commands):
    async def dialogue(client):
        await client.reply()
        for command in commands[:-1]:
            await client.command(command)
        for command in commands[-1:]:
            await client.send(command.encode() + b"\r\n"[: 0 if command == "NO" else 2])
        return await client.rest()

    server = Server(command_timeout=SHORT, allow_insecure_auth=True)
    server.use(Recorder(authenticate=True))
    last = converse(run, server, dialogue).splitlines()[-1]
    assert last.startswith(b"421 4.4.2 " if commands else b"421 Timeout")
    assert server.counters.timeouts == 1


@pytest.mark.parametrize("hooks", [False, True], ids=["no hooks", "hooks"])
def test_each_command_starts_the_client_s_time_again(run, hooks, until):
    async def dialogue(client):
        await client.hello()
        (session,) = server._service.sessions
        for command in ("NOOP", "MAIL FROM:<>", "RCPT TO:<a@example.com>", "RSET", "BOGUS"):
            before = session.deadline
            assert session.now() < before <= session.now() + LONG
            await asyncio.sleep(0.002)
            await client.command(command)
            # The reply leaves before the wait begins.
            await until(lambda before=before: before < session.deadline <= session.now() + LONG)

    server = Server(command_timeout=LONG)
    if hooks:
        server.use(Recorder())
    converse(run, server, dialogue)


def test_a_client_that_sends_no_octet_of_its_message_gets_421_4_4_2(run):
    async def dialogue(client):
        await begin(client)
        return await client.rest()

    assert converse(run, Server(command_timeout=SHORT), dialogue).startswith(b"421 4.4.2 ")


def test_a_session_that_lasts_too_long_gets_421_between_two_transactions(run):
    async def dialogue(client):
        await begin(client)
        (session,) = server._service.sessions
        session._ends -= 7200
        assert (await client.command(".")).code == 250
        return await client.rest()

    server = Server(session_time=3600)
    assert converse(run, server, dialogue).startswith(b"421 4.4.2 ")


@pytest.mark.parametrize(
    ("flight", "command_timeout"),
    [
        (b"HELP\r\n" * 100_000, SHORT),
        # These replies fit into the transport's buffer: only the last close meets them.
        (b"HELP\r\n" * 90 + b"QUIT\r\n", LONG),
    ],
    ids=["among many", "before its end"],
)
def test_a_client_that_never_reads_its_replies_is_aborted(
    run, flight, command_timeout, monkeypatch
):
    monkeypatch.setattr("preforkmx.session.wire.LINGER_SECONDS", SHORT)
    recorder = Recorder()

    async def test():
        loop = asyncio.get_running_loop()
        async with running(server) as address:
            with contextlib.closing(socket.socket()) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
                sock.setblocking(False)
                await loop.sock_connect(sock, address)
                await recorder.happened("check_connection")
                (session,) = server._service.sessions
                peer = session.transport.get_extra_info("socket")
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
                sending = asyncio.ensure_future(loop.sock_sendall(sock, flight))
                async with asyncio.timeout(10):
                    await server.wait_closed()
                with contextlib.suppress(ConnectionError):
                    await sending
                said = b""
                with contextlib.suppress(ConnectionError):
                    async with asyncio.timeout(10):
                        while octets := await loop.sock_recv(sock, 65536):
                            said += octets
        return said

    server = Server(command_timeout=command_timeout)
    server.use(recorder)
    # What was not read in time is gone: nothing keeps it for a client that reads again.
    assert b"221" not in run(test())
    (call,) = recorder.of("disconnect")
    assert isinstance(call.arguments[0], TimeoutError) == (command_timeout == SHORT)


def test_a_silent_tls_handshake_ends(run, server_tls, monkeypatch):
    monkeypatch.setattr("preforkmx.session.reception.TLS_HANDSHAKE_SECONDS", 0.1)

    async def dialogue(client):
        # What a server says at its end of a handshake is an alert, if anything.
        return await client.reader.read()

    server = Server(tls=server_tls)
    said = converse(run, server, dialogue, tls="implicit")
    assert not said.startswith(b"4")
    assert server.counters.tls_failures == 1


# --- the hooks' time --------------------------------------------------------------------------------


async def forever(ctx, peer, *arguments):
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("phase", "commands"),
    [
        ("check_connection", []),
        ("check_helo", ["EHLO x"]),
        ("check_sender", ["EHLO x", "MAIL FROM:<>"]),
        ("check_recipient", ["EHLO x", "MAIL FROM:<>", "RCPT TO:<a@example.com>"]),
        ("verify", ["EHLO x", "VRFY a"]),
        ("reset", ["EHLO x", "RSET"]),
    ],
)
def test_a_hook_that_takes_longer_than_the_command_timeout_is_cancelled(
    run, phase, commands, caplog
):
    cancelled = []

    async def hook(ctx, peer, *arguments):
        try:
            await forever(ctx, peer)
        except asyncio.CancelledError:
            cancelled.append(phase)
            raise

    async def dialogue(client):
        for command in commands:
            assert (await client.reply()).code < 400
            await client.send(command.encode() + b"\r\n")
        return await client.reply(), await client.rest()

    server = Server(command_timeout=SHORT)
    server.use(Middleware(**{phase: hook}))
    reply, rest = converse(run, server, dialogue)
    assert (reply.code, rest) == (451, b"")
    assert cancelled == [phase]
    assert "hook took too long" in caplog.text


# --- the handlers' time -------------------------------------------------------------------------------


def test_a_delivery_that_takes_too_long_is_cancelled_and_deferred(run, caplog):
    cancelled = []

    async def deliver(ctx, peer, envelope):
        await envelope.data.read_all(1000)
        try:
            await forever(ctx, peer)
        except asyncio.CancelledError:
            cancelled.append(envelope.id)
            raise

    async def dialogue(client):
        await begin(client)
        reply = await client.command(".")
        # Only the message is deferred: the session goes on.
        assert (await client.command("NOOP")).code == 250
        return reply

    server = Server(handler=deliver, delivery_timeout=SHORT)
    reply = converse(run, server, dialogue)
    assert (reply.code, reply.text[:5]) == (451, "4.3.0")
    assert len(cancelled) == 1
    assert "delivery took too long" in caplog.text


def test_a_delivery_that_takes_too_long_before_it_reads_is_deferred_after_the_message(run):
    async def dialogue(client):
        await client.hello()
        return await client.deliver(b"Hello\r\n" * 50_000)

    server = Server(handler=forever, delivery_timeout=SHORT)
    assert converse(run, server, dialogue).code == 451


def test_the_waits_for_the_client_are_not_the_delivery_s_time(run):
    async def deliver(ctx, peer, envelope):
        await envelope.data.read_all(1000)

    async def dialogue(client):
        await begin(client)
        for _ in range(12):
            await asyncio.sleep(SHORT)
            await client.send(b"slowly\r\n")
        return await client.command(".")

    server = Server(handler=deliver, delivery_timeout=10 * SHORT)
    assert converse(run, server, dialogue).code == 250


def test_a_delivery_s_own_time_adds_up_over_its_reads(run):
    worked = asyncio.Event()

    async def deliver(ctx, peer, envelope):
        async for _ in envelope.data:
            try:
                await asyncio.sleep(0.75 * SHORT)
            finally:
                worked.set()

    async def dialogue(client):
        await begin(client)
        for _ in range(3):
            worked.clear()
            await client.send(b"slowly\r\n")
            await worked.wait()
        return await client.command(".")

    server = Server(handler=deliver, delivery_timeout=2 * SHORT)
    assert converse(run, server, dialogue).code == 451


def test_a_handler_that_gives_up_a_read_still_has_a_deadline(run):
    async def deliver(ctx, peer, envelope):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await envelope.data.read_all(1000)
        await forever(ctx, peer)

    async def dialogue(client):
        await begin(client)
        await deferred.wait()
        return await client.command(".")

    class Deferred(asyncio.Event):
        """Set by the log line: the client does not hear before its message is whole."""

        def filter(self, record):
            if record.message == "delivery took too long":
                self.set()
            return True

    import logging

    deferred = Deferred()
    logger = logging.getLogger("preforkmx.test.deadlines")
    handler = logging.NullHandler()
    logger.addHandler(handler)
    logger.addFilter(lambda record: setattr(record, "message", record.getMessage()) or True)
    logger.addFilter(deferred)
    server = Server(handler=deliver, delivery_timeout=SHORT, logger=logger)
    assert converse(run, server, dialogue).code == 451


def test_a_handler_may_answer_its_cancellation_and_the_session_goes_on(run):
    async def deliver(ctx, peer, envelope):
        await envelope.data.read_all(1000)
        with contextlib.suppress(asyncio.CancelledError):
            await forever(ctx, peer)

    async def dialogue(client):
        await begin(client)
        assert (await client.command(".")).code == 250
        for _ in range(3):
            assert (await client.command("NOOP")).code == 250
        await begin_again(client)
        return await client.command(".")

    async def begin_again(client):
        for command in ("MAIL FROM:<>", "RCPT TO:<b@example.com>", "DATA"):
            await client.command(command)

    server = Server(handler=deliver, delivery_timeout=SHORT)
    assert converse(run, server, dialogue).code == 250
    assert server.counters.messages == 2


def test_a_hook_that_answered_its_cancellation_does_not_make_the_next_one_late(run):
    waiting = asyncio.Event()
    recorder = Recorder()

    async def stubborn(ctx, peer, name):
        with contextlib.suppress(asyncio.CancelledError):
            await forever(ctx, peer)
        # The next hook has more time than this test.
        server._service.command_timeout = LONG

    async def wait(ctx, peer, address):
        waiting.set()
        await forever(ctx, peer)

    async def dialogue(client):
        await client.reply()
        await client.send(b"HELO x\r\nMAIL FROM:<>\r\n")
        await waiting.wait()
        server.abort()
        (call,) = await recorder.happened("disconnect")
        return call.arguments[0]

    server = Server(command_timeout=SHORT)
    server.use(Middleware(check_helo=stubborn, check_sender=wait), recorder)
    assert converse(run, server, dialogue) is None
    assert server.counters.timeouts == 0
