"""Clients that speak before it is their turn, and clients that speak something else."""

from __future__ import annotations

import asyncio
from ipaddress import ip_network

import pytest

from preforkmx import ConnectionLost, Middleware, Server, SMTPError
from preforkmx.observe.log import AccessLog
from preforkmx.protocol.proxy import V2_SIGNATURE
from preforkmx.testing import Client, Recorder, running

pytestmark = pytest.mark.usefixtures("sweep_fast")

LONG = 30.0
SHORT = 0.05
LOCAL = V2_SIGNATURE + bytes.fromhex("20 00 0000")
TOO_EARLY = "You sent more before you had the answer"


@pytest.fixture
def recorder():
    return Recorder()


def converse(run, server, dialogue, **options):
    async def test():
        async with (
            running(server, **options) as address,
            await Client.connect(address, tls=options.get("client_tls")) as client,
        ):
            return await dialogue(client)

    return run(test())


# --- before the greeting --------------------------------------------------------------------------


@pytest.mark.parametrize("octets", [b"EHLO x\r\n", b"E", b"\r\n", b"\x16\x03\x01"])
def test_a_client_that_talks_before_the_greeting_gets_554_and_the_end(run, recorder, octets):
    async def dialogue(client):
        await client.send(octets)
        return await client.rest()

    lines = []
    log = AccessLog(lines.append, "logfmt", clock=lambda: 0.0)
    server = Server(handler=recorder, greeting_delay=LONG, access_log=log)
    # In place of the greeting there is no enhanced code.
    assert converse(run, server, dialogue) == f"554 {TOO_EARLY}\r\n".encode()
    assert server.counters.early_talkers == 1
    assert server.counters.connections_refused == 1
    assert recorder.phases == ["check_connection", "disconnect"]
    assert "event=refused" in lines[0]
    assert "by=greeting_delay" in lines[0]


def test_a_silent_client_is_greeted_after_the_delay(run):
    async def dialogue(client):
        began = asyncio.get_running_loop().time()
        assert (await client.hello()).code == 250
        waited = asyncio.get_running_loop().time() - began
        assert (await client.deliver(b"Hello\r\n")).code == 250
        return waited

    server = Server(greeting_delay=SHORT)
    assert converse(run, server, dialogue) >= SHORT
    assert server.counters.early_talkers == 0


def test_a_refused_client_does_not_wait_for_its_refusal(run):
    async def refuse(ctx, peer):
        raise SMTPError(554, "No")

    async def dialogue(client):
        return (await client.reply()).text

    server = Server(greeting_delay=LONG)
    server.use(Middleware(check_connection=refuse))
    assert converse(run, server, dialogue) == "No"
    assert server.counters.early_talkers == 0


def test_a_health_check_is_greeted_at_once(run, recorder):
    async def test():
        networks = (ip_network("127.0.0.0/8"),)
        server.listen("127.0.0.1:0", proxy_protocol=True, proxy_from=networks)
        async with server, await Client.connect(server.addresses[0]) as client:
            await client.send(LOCAL + b"QUIT\r\n")
            return await client.rest()

    server = Server(handler=recorder, greeting_delay=LONG)
    assert run(test()).startswith(b"220 ")
    assert recorder.of("check_connection")[0].peer.is_health_check


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_leaves_before_its_greeting_is_no_early_talker(run, recorder, how):
    async def test():
        async with running(server) as address:
            async with await Client.connect(address) as client:
                await recorder.happened("check_connection")
                if how == "reset":
                    client.reset()
            async with asyncio.timeout(10):
                await server.wait_closed()

    server = Server(handler=recorder, greeting_delay=LONG)
    run(test())
    assert server.counters.early_talkers == 0
    assert isinstance(recorder.of("disconnect")[0].arguments[0], ConnectionLost)


def test_a_drain_does_not_wait_for_the_delay(run, recorder):
    async def dialogue(client):
        await recorder.happened("check_connection")
        await asyncio.sleep(0)
        server.drain()
        return await client.replies(2)

    server = Server(handler=recorder, greeting_delay=LONG)
    assert converse(run, server, dialogue) == [220, 421]


def test_the_delay_comes_after_the_handshake_on_implicit_tls(run, server_tls, client_tls):
    async def test():
        async with (
            running(server, tls="implicit") as address,
            await Client.connect(address, tls=client_tls) as client,
        ):
            await client.send(b"EHLO x\r\n")
            return (await client.reply()).text

    server = Server(tls=server_tls, greeting_delay=LONG)
    assert run(test()) == TOO_EARLY


# --- in one flight --------------------------------------------------------------------------------

BEGIN = b"EHLO x\r\n"
MAIL = b"MAIL FROM:<>\r\nRCPT TO:<b@example.com>\r\n"
FORBIDDEN = {
    "behind EHLO": (b"", b"EHLO x\r\nMAIL FROM:<>\r\n"),
    "without PIPELINING": (b"HELO x\r\n", MAIL),
    "behind NOOP": (BEGIN, b"NOOP\r\nNOOP\r\n"),
    "behind DATA": (BEGIN, MAIL + b"DATA\r\nHello\r\n.\r\n"),
    "behind AUTH": (BEGIN, b"AUTH LOGIN\r\nam9l\r\n"),
    "behind a response": (BEGIN + b"AUTH LOGIN\r\n", b"am9l\r\nc2VjcmV0\r\n"),
    "between chunks": (BEGIN + MAIL + b"BDAT 1\r\nx", b"NOOP\r\nBDAT 1 LAST\r\nx"),
}


@pytest.mark.parametrize(("before", "flight"), FORBIDDEN.values(), ids=list(FORBIDDEN))
def test_a_flight_against_the_rules_ends_the_session(run, before, flight):
    recorder = Recorder(authenticate=True)

    async def dialogue(client):
        await client.reply()
        # Each line of what is before alone, but for the chunk, whose octet belongs to it.
        lines = [line + b"\r\n" for line in before.split(b"\r\n") if line]
        if lines and lines[-1] == b"x\r\n":
            lines[-2:] = [b"BDAT 1\r\nx"]
        for line in lines:
            await client.send(line)
            assert (await client.reply()).code < 400
        await client.send(flight)
        return (await client.rest()).splitlines()

    lines = []
    log = AccessLog(lines.append, "logfmt", clock=lambda: 0.0)
    server = Server(handler=recorder, strict_flights=True, allow_insecure_auth=True, access_log=log)
    last = converse(run, server, dialogue)[-1].decode()
    assert last.startswith("554 ")
    assert last.endswith(TOO_EARLY)
    assert server.counters.early_talkers == 1
    assert 'ended="early talker"' in lines[-1]
    assert recorder.messages == []
    assert recorder.of("authenticate") == []


def test_the_groups_of_rfc_2920_are_allowed(run, recorder):
    async def dialogue(client):
        await client.hello()
        await client.send(MAIL + b"RCPT TO:<c@example.com>\r\nDATA\r\n")
        assert await client.replies(4) == [250, 250, 250, 354]
        await client.send(
            b"Hello\r\n.\r\n"
            + MAIL
            + b"BDAT 5\r\nHelloBDAT 2 LAST\r\n\r\nRSET\r\n"
            + MAIL
            + b"RSET\r\nQUIT\r\n"
        )
        return await client.replies(10), await client.rest()

    server = Server(handler=recorder, strict_flights=True)
    assert converse(run, server, dialogue) == ([250] * 9 + [221], b"")
    assert len(recorder.messages) == 2
    assert server.counters.early_talkers == 0


def test_without_strict_flights_nobody_looks(run, recorder):
    async def dialogue(client):
        await client.reply()
        await client.send(b"EHLO x\r\nNOOP\r\n" + MAIL + b"DATA\r\nHello\r\n.\r\nQUIT\r\n")
        return await client.rest()

    assert b"\r\n221 " in converse(run, Server(handler=recorder), dialogue)
    assert len(recorder.messages) == 1


# --- another protocol -----------------------------------------------------------------------------

FOREIGN = {
    "GET": b"GET / HTTP/1.1\r\nHost: mx.example.com\r\n\r\n",
    "POST": b"POST / HTTP/1.1\r\nHost: x\r\n\r\nEHLO x\r\nMAIL FROM:<evil@example.org>\r\n",
    "CONNECT": b"CONNECT mx.example.com:25 HTTP/1.1\r\n\r\n",
    "lower case": b"get / http/1.1\r\n",
    "a ClientHello": bytes.fromhex("1603010205010002010303") + bytes(500),
}


@pytest.mark.parametrize("hooks", [False, True], ids=["no hooks", "hooks"])
@pytest.mark.parametrize("octets", FOREIGN.values(), ids=list(FOREIGN))
def test_a_client_of_another_protocol_is_closed_silently_and_counted(run, octets, hooks):
    recorder = Recorder()

    async def dialogue(client):
        await client.reply()
        await client.send(octets)
        return await client.rest()

    lines = []
    log = AccessLog(lines.append, "logfmt", clock=lambda: 0.0)
    server = Server(access_log=log)
    if hooks:
        server.use(recorder)
    assert converse(run, server, dialogue) == b""
    assert server.counters.wrong_protocol == 1
    assert server.counters.transactions == 0
    assert 'ended="wrong protocol"' in lines[-1]
    if hooks:
        assert recorder.phases == ["check_connection", "disconnect"]
        assert isinstance(recorder.of("disconnect")[0].arguments[0], ConnectionLost)


@pytest.mark.parametrize("command", ["GET / HTTP/1.1", "POST x"])
def test_in_a_transaction_it_is_an_unknown_command(run, command):
    async def dialogue(client):
        await client.hello()
        await client.command("MAIL FROM:<>")
        return (await client.command(command)).code, (await client.command("NOOP")).code

    server = Server()
    assert converse(run, server, dialogue) == (500, 250)
    assert server.counters.wrong_protocol == 0
