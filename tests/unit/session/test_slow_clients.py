"""Clients that hold a place with as little as they can: each phase has its end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tracemalloc
from ipaddress import ip_network

import pytest

from preforkmx import MessageAborted, Server
from preforkmx.protocol.framing import LINE_LIMIT, SKIP_LIMIT
from preforkmx.session.wire import HIGH_WATER
from preforkmx.testing import Client, Recorder, running

pytestmark = pytest.mark.usefixtures("sweep_fast")

# Many octets come in that time, each well within it.
TIMEOUT = 0.2
DRIP = 0.01
PROXY = {"proxy_protocol": True, "proxy_from": (ip_network("127.0.0.0/8"),)}


async def drip(client, octets=b"x" * 1000):
    """Send octet by octet until the server speaks or closes; return what it said."""
    answer = asyncio.create_task(client.rest())
    for octet in octets:
        await asyncio.wait({answer}, timeout=DRIP)
        if answer.done():
            break
        # uvloop says RuntimeError of a transport that is closed.
        with contextlib.suppress(ConnectionError, RuntimeError):
            await client.send(bytes([octet]))
    else:
        answer.cancel()
        raise AssertionError("a client that drips is served for ever")
    return await answer


def converse(run, server, dialogue, **options):
    async def test():
        server.listen("127.0.0.1:0", **options)
        async with server, await Client.connect(server.addresses[0]) as client:
            return await dialogue(client)

    return run(test())


# --- one octet now and then ------------------------------------------------------------------------

PHASES = {
    "before HELO": [],
    "a command": ["EHLO x"],
    "in a transaction": ["EHLO x", "MAIL FROM:<>"],
    "a response of AUTH": ["EHLO x", "AUTH LOGIN"],
    "the second response of AUTH": ["EHLO x", "AUTH LOGIN", "am9l"],
    "between chunks": ["EHLO x", "MAIL FROM:<>", "RCPT TO:<b@example.com>", "BDAT 0"],
}


@pytest.mark.parametrize("hooks", [False, True], ids=["no hooks", "hooks"])
@pytest.mark.parametrize("commands", PHASES.values(), ids=list(PHASES))
def test_a_dripped_line_has_its_time_as_a_whole(run, commands, hooks):
    async def dialogue(client):
        await client.reply()
        for command in commands:
            await client.command(command)
        return await drip(client)

    recorder = Recorder(authenticate=True)
    server = Server(command_timeout=TIMEOUT, allow_insecure_auth=True, handler=recorder.handler)
    if hooks:
        server.use(recorder)
    else:
        server.use(Recorder(authenticate=True))
    said = converse(run, server, dialogue)
    assert said.startswith(b"421 4.4.2 " if commands else b"421 Timeout")
    assert server.counters.timeouts == 1
    assert server.counters.messages == 0


def test_between_chunks_a_complete_command_starts_the_time_again(run):
    async def dialogue(client):
        await client.hello()
        await client.command("MAIL FROM:<>")
        await client.command("RCPT TO:<b@example.com>")
        loop = asyncio.get_running_loop()
        began = loop.time()
        while loop.time() - began < 2 * TIMEOUT:
            await client.send(b"BDAT 1\r\nx")
            assert (await client.reply()).code == 250
            await asyncio.sleep(TIMEOUT / 4)
            assert (await client.command("NOOP")).code == 250
            await asyncio.sleep(TIMEOUT / 4)
        return (await client.command("BDAT 0 LAST")).code

    assert converse(run, Server(command_timeout=TIMEOUT), dialogue) == 250


@pytest.mark.parametrize("how", ["DATA", "BDAT 100000"])
def test_a_dripped_message_ends_with_the_least_rate(run, monkeypatch, how):
    monkeypatch.setattr("preforkmx.session.incoming.RATE_WINDOW_SECONDS", TIMEOUT)
    errors = []

    async def deliver(ctx, peer, envelope):
        try:
            await envelope.data.read()
        except MessageAborted as error:
            errors.append(error)
            raise

    async def dialogue(client):
        await client.hello()
        await client.command("MAIL FROM:<>")
        await client.command("RCPT TO:<b@example.com>")
        await client.send(how.encode() + b"\r\n")
        if how == "DATA":
            await client.reply()
        return await drip(client)

    server = Server(handler=deliver, minimum_rate=500, command_timeout=30.0)
    assert converse(run, server, dialogue).startswith(b"421 4.4.2 ")
    assert len(errors) == 1


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize("proxied", [False, True])
def test_a_dripped_handshake_has_its_time_as_a_whole(run, monkeypatch, server_tls, tls, proxied):
    for module in ("reception", "session"):
        monkeypatch.setattr(f"preforkmx.session.{module}.TLS_HANDSHAKE_SECONDS", TIMEOUT)
        monkeypatch.setattr(f"preforkmx.session.{module}.TLS_SHUTDOWN_SECONDS", 0.1)
    monkeypatch.setattr("preforkmx.session.wire.LINGER_SECONDS", 0.1)

    async def dialogue(client):
        if proxied:
            await client.send(b"PROXY UNKNOWN\r\n")
        if tls == "starttls":
            await client.hello()
            await client.command("STARTTLS")
        # A record that is announced with 16 KiB, of a ClientHello.
        with contextlib.suppress(ConnectionResetError):
            assert await drip(client, bytes.fromhex("1603014000010003fc0303") + bytes(500)) == b""

    server = Server(tls=server_tls)
    converse(run, server, dialogue, tls=tls, **(PROXY if proxied else {}))
    assert server.counters.tls_failures == 1
    assert server.sessions == 0


def test_a_dripped_header_has_its_time_as_a_whole(run, monkeypatch):
    monkeypatch.setattr("preforkmx.session.reception.PROXY_HEADER_SECONDS", TIMEOUT)

    async def dialogue(client):
        with contextlib.suppress(ConnectionResetError):
            assert await drip(client, b"PROXY UNKNOWN " + b"x" * 90) == b""

    server = Server()
    converse(run, server, dialogue, **PROXY)
    assert server.counters.proxy_failures == 1


# --- endless lines, and replies that nobody reads ---------------------------------------------------


@pytest.mark.parametrize(
    "commands", [["EHLO x"], PHASES["between chunks"]], ids=["command", "chunks"]
)
def test_an_endless_line_ends_the_session_and_costs_no_memory(run, commands):
    async def dialogue(client):
        await client.reply()
        for command in commands:
            await client.command(command)
        tracemalloc.start()
        sent = 0
        try:
            while not client.reader._buffer and sent < 64_000_000:
                client.writer.write(b"x" * 10_000)
                sent += 10_000
                await asyncio.sleep(0)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        return (await client.reply()).code, sent, peak

    server = Server()
    code, sent, peak = converse(run, server, dialogue)
    assert code == 500
    assert sent < LINE_LIMIT + SKIP_LIMIT + HIGH_WATER + 512 * 1024
    assert peak < 2_000_000


def test_a_client_that_never_reads_the_answers_to_its_chunks_is_aborted(run):
    errors = []

    async def deliver(ctx, peer, envelope):
        try:
            await envelope.data.read()
        except MessageAborted as error:
            errors.append(error)
            raise

    async def dialogue(client):
        await client.hello()
        await client.command("MAIL FROM:<>")
        await client.command("RCPT TO:<b@example.com>")
        (session,) = server._service.sessions
        # Else the kernel takes megabytes of replies before anybody notices.
        ours = client.writer.get_extra_info("socket")
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        theirs = session.transport.get_extra_info("socket")
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        # The stream's own buffer would go on reading.
        client.writer.transport.pause_reading()
        client.writer.write(b"BDAT 1\r\nx" * 200_000)
        async with asyncio.timeout(20):
            while server.sessions:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.01)
        client.writer.transport.abort()

    server = Server(handler=deliver, command_timeout=TIMEOUT)
    converse(run, server, dialogue)
    assert len(errors) == 1
    assert server.counters.messages == 0


# --- a nearly full worker --------------------------------------------------------------------------


async def connect(address, count, stack):
    clients = []
    for _ in range(count):
        client = await stack.enter_async_context(await Client.connect(address))
        await client.hello()
        clients.append(client)
    return clients


@pytest.mark.parametrize(("sessions", "ends"), [(8, False), (9, True)])
def test_a_nearly_full_worker_waits_less_for_a_command(run, monkeypatch, sessions, ends):
    monkeypatch.setattr("preforkmx.session.reception.CROWDED_SECONDS", 0.1)

    async def test():
        async with running(server) as address, contextlib.AsyncExitStack() as stack:
            clients = await connect(address, sessions, stack)
            await asyncio.sleep(0.3)
            if not ends:
                assert server.sessions == sessions
                return [(await client.command("NOOP")).code for client in clients]
            return [(await clients[0].reply()).code]

    server = Server(max_sessions=10, command_timeout=30.0)
    codes = run(test())
    assert codes == ([421] if ends else [250] * sessions)
    assert (server.counters.timeouts > 0) is ends


def test_a_crowd_does_not_end_who_speaks_or_sends_a_message(run, monkeypatch):
    monkeypatch.setattr("preforkmx.session.reception.CROWDED_SECONDS", 0.15)

    async def test():
        async with running(server) as address, contextlib.AsyncExitStack() as stack:
            speaks, sends = await connect(address, 2, stack)
            await sends.command("MAIL FROM:<>")
            await sends.command("RCPT TO:<b@example.com>")
            await sends.command("DATA")
            for _ in range(10):
                assert (await speaks.command("NOOP")).code == 250
                await asyncio.sleep(0.04)
            await sends.send(b"Hello\r\n.\r\n")
            return (await sends.reply()).code

    server = Server(max_sessions=2, command_timeout=30.0)
    assert run(test()) == 250
    assert server.counters.timeouts == 0


def test_a_command_that_has_just_come_saves_its_client_from_the_crowd(run, monkeypatch, until):
    """The sweep may come between the command's octets and the turn of its session's task."""
    monkeypatch.setattr("preforkmx.session.reception.CROWDED_SECONDS", -1000.0)
    monkeypatch.setattr("preforkmx.session.reception.SWEEP_SECONDS", 1000.0)

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            (session,) = server._service.sessions
            await until(lambda: session._between_commands)
            session.data_received(b"EHLO again.example\r\n")
            server._reception.expire_late(session.now())
            assert (await client.reply()).code == 250
            # Had nothing come it would have ended.
            await until(lambda: session.deadline < float("inf"))
            server._reception.expire_late(session.now())
            return (await client.reply()).code

    server = Server(max_sessions=1, command_timeout=30.0)
    assert run(test()) == 421
