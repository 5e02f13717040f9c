"""Listeners that expect a PROXY header."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from preforkmx import Server
from preforkmx.observe.log import AccessLog
from preforkmx.protocol.proxy import V2_SIGNATURE
from preforkmx.testing import Client, Recorder

TRUSTED = (ip_network("127.0.0.0/8"),)
STRANGERS = (ip_network("192.0.2.0/24"),)
LINE = b"PROXY TCP4 192.0.2.1 198.51.100.7 40000 25\r\n"
BINARY = V2_SIGNATURE + bytes.fromhex("21 11 000c c0000201 c6336407 9c40 0019")
BINARY_6 = V2_SIGNATURE + bytes.fromhex(
    "21 21 0024 20010db8000000000000000000000001 20010db8000000000000000000000002 9c40 0019"
)
TLVS = V2_SIGNATURE + bytes.fromhex(
    "21 11 0023 c0000201 c6336407 9c40 0019"
    # AUTHORITY, UNIQUE_ID, AWS.
    "02 000a 6d782e6578616d706c65 05 0002 6964 ea 0002 0178"
)
MAPPED = b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.7 40000 25\r\n"
MAPPED_BINARY = V2_SIGNATURE + bytes.fromhex(
    "21 21 0024 00000000000000000000ffffc0000201 00000000000000000000ffffc6336407 9c40 0019"
)
LOCAL = V2_SIGNATURE + bytes.fromhex("20 00 0000")
UNKNOWN = b"PROXY UNKNOWN\r\n"
# LOCAL may carry addresses, which mean nothing.
LOCAL_WITH_ADDRESSES = V2_SIGNATURE + bytes.fromhex("20 11 000c c0000201 c6336407 9c40 0019")


@pytest.fixture
def recorder():
    return Recorder()


@contextlib.asynccontextmanager
async def listening(server, *, proxy_from=TRUSTED, address="127.0.0.1:0", **options):
    server.listen(address, proxy_protocol=True, proxy_from=proxy_from, **options)
    async with server:
        yield server.addresses[0]
        async with asyncio.timeout(10):
            await server.wait_closed()


def converse(run, server, dialogue, *, header=b"", **options):
    async def test():
        async with (
            listening(server, **options) as address,
            await Client.connect(address) as client,
        ):
            if header:
                await client.send(header)
            return await dialogue(client)

    return run(test())


def open_sockets():
    """How many sockets this process has open."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += str(link.readlink()).startswith("socket:")
    return count


# --- whom the header names --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "host", "port", "server_address"),
    [
        (LINE, "192.0.2.1", 40000, "198.51.100.7"),
        (BINARY, "192.0.2.1", 40000, "198.51.100.7"),
        (BINARY_6, "2001:db8::1", 40000, "2001:db8::2"),
        (MAPPED, "192.0.2.1", 40000, "198.51.100.7"),
        (MAPPED_BINARY, "192.0.2.1", 40000, "198.51.100.7"),
    ],
    ids=["v1", "v2", "v2 IPv6", "v1 mapped", "v2 mapped"],
)
def test_hooks_see_the_client_and_not_the_proxy(run, recorder, header, host, port, server_address):
    async def dialogue(client):
        await client.hello()
        assert (await client.deliver(b"Hello\r\n")).code == 250
        await client.command("QUIT")

    lines = []
    log = AccessLog(lines.append, "logfmt", clock=lambda: 0.0)
    server = Server(handler=recorder, access_log=log)
    converse(run, server, dialogue, header=header)
    for phase in ("check_connection", "check_sender", "disconnect"):
        (call,) = recorder.of(phase)
        peer = call.peer
        assert (peer.address, peer.port) == (ip_address(host), port)
        assert (peer.server_address, peer.server_port) == (ip_address(server_address), 25)
        assert peer.proxy.source == (ip_address(host), port)
        assert not peer.is_health_check
    for line in lines:
        assert f"peer={host} " in line or f'peer="{host}" ' in line
        assert "via=127.0.0.1" in line
    assert server.counters.proxy_failures == 0


@pytest.mark.parametrize(
    ("header", "local"),
    [
        (LOCAL, True),
        (LOCAL_WITH_ADDRESSES, True),
        (UNKNOWN, False),
        (UNKNOWN[:-2] + b" x\r\n", False),
    ],
)
def test_without_addresses_the_socket_s_own_hold(run, recorder, header, local):
    async def dialogue(client):
        return (await client.hello()).code, client.writer.get_extra_info("sockname")

    code, (host, port) = converse(run, Server(handler=recorder), dialogue, header=header)
    assert code == 250
    peer = recorder.of("check_connection")[0].peer
    assert (peer.host, peer.port) == (host, port)
    assert (peer.server_address, peer.is_health_check) == (None, local)
    assert peer.proxy.local is local


def test_what_the_header_said_besides_stands_on_the_peer(run, recorder):
    async def dialogue(client):
        await client.hello()

    converse(run, Server(handler=recorder), dialogue, header=TLVS)
    proxy = recorder.of("check_connection")[0].peer.proxy
    assert (proxy.version, proxy.authority, proxy.unique_id) == (2, "mx.example", b"id")
    assert (0xEA, b"\x01x") in proxy.tlvs


def test_on_a_listener_without_the_protocol_there_is_no_proxy(run, recorder):
    async def test():
        server.listen("127.0.0.1:0")
        async with server, await Client.connect(server.addresses[0]) as client:
            await client.reply()
            return (await client.command(LINE.decode().rstrip())).code

    server = Server(handler=recorder)
    assert run(test()) == 500
    assert recorder.of("check_connection")[0].peer.proxy is None
    assert recorder.of("check_connection")[0].peer.host == "127.0.0.1"


def test_a_unix_socket_s_proxy_is_believed(run, recorder, tmp_path):
    async def test():
        async with (
            listening(server, proxy_from=(), address=f"unix:{tmp_path}/s") as (path, _),
            Client(*await asyncio.open_unix_connection(path)) as client,
        ):
            await client.send(LINE)
            await client.hello()

    lines = []
    server = Server(handler=recorder, access_log=AccessLog(lines.append, "logfmt"))
    run(test())
    assert recorder.of("check_connection")[0].peer.host == "192.0.2.1"
    assert "via=unix" in lines[-1]


# --- octets around it ------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [LINE, BINARY, TLVS, LOCAL, UNKNOWN])
def test_what_follows_in_the_same_segment_is_the_session_s(run, recorder, header):
    async def dialogue(client):
        return await client.rest()

    flight = b"EHLO client.example\r\nMAIL FROM:<>\r\nQUIT\r\n"
    said = converse(run, Server(handler=recorder), dialogue, header=header + flight)
    assert said.startswith(b"220 ")
    assert said.endswith(b"221 2.0.0 Bye\r\n")
    assert len(recorder.of("check_sender")) == 1


@pytest.mark.parametrize("header", [LINE, TLVS])
@pytest.mark.parametrize("cut", ["one segment", "header first", "octet by octet"])
def test_a_tls_handshake_follows_the_header(run, recorder, server_tls, client_tls, header, cut):
    def client(address):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client_tls.wrap_bio(incoming, outgoing, server_hostname="localhost")
        with socket.create_connection(address, timeout=10) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
            hello = outgoing.read()
            pieces = {
                "one segment": [header + hello],
                "header first": [header, hello],
                "octet by octet": [bytes([octet]) for octet in header + hello],
            }[cut]
            for piece in pieces:
                sock.sendall(piece)
            said = b""
            tls_write = [b"EHLO client.example\r\n", b"QUIT\r\n"]
            while b"221 " not in said:
                try:
                    said += tls.read(1000)
                    if tls_write and said.endswith(b"\r\n"):
                        tls.write(tls_write.pop(0))
                except ssl.SSLWantReadError:
                    pass
                if answer := outgoing.read():
                    sock.sendall(answer)
                elif b"221 " not in said:
                    incoming.write(sock.recv(65536))
            return said

    async def test():
        async with listening(server, tls="implicit") as address:
            async with asyncio.timeout(10):
                return await asyncio.to_thread(client, address)

    server = Server(handler=recorder, tls=server_tls)
    said = run(test())
    assert said.startswith(b"220 ")
    assert b"STARTTLS" not in said
    peer = recorder.of("check_helo")[0].peer
    assert (peer.host, peer.protocol) == ("192.0.2.1", "ESMTPS")
    assert server.counters.tls_handshakes == 1
    assert (server.counters.tls_failures, server.counters.proxy_failures) == (0, 0)


def test_starttls_on_a_proxied_connection(run, recorder, server_tls, client_tls):
    async def dialogue(client):
        await client.hello()
        await client.starttls(client_tls)
        await client.command("EHLO client.example")
        await client.command("MAIL FROM:<>")

    converse(run, Server(handler=recorder, tls=server_tls), dialogue, header=LINE)
    peer = recorder.of("check_sender")[0].peer
    assert (peer.host, peer.protocol) == ("192.0.2.1", "ESMTPS")
    assert peer.proxy is not None


@pytest.mark.parametrize("second", [LINE.replace(b"192.0.2.1", b"203.0.113.9"), BINARY_6, LOCAL])
@pytest.mark.parametrize("first", [LINE, BINARY])
def test_a_second_header_is_no_command_and_not_believed(run, recorder, first, second):
    async def dialogue(client):
        assert (await client.reply()).code == 220
        await client.send(b"QUIT\r\n")
        return await client.rest()

    server = Server(handler=recorder)
    said = converse(run, server, dialogue, header=first + second)
    assert said.startswith(b"500 ")
    assert {call.peer.host for call in recorder.calls} == {"192.0.2.1"}
    assert not any(call.peer.is_health_check for call in recorder.calls)


# --- no header that can be believed ------------------------------------------------------------------

BAD = {
    "SMTP": b"EHLO client.example\r\n",
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "a ClientHello": bytes.fromhex("1603010205010002010303"),
    "TCP4 with IPv6": b"PROXY TCP4 2001:db8::1 2001:db8::2 40000 25\r\n",
    "port 0123": b"PROXY TCP4 192.0.2.1 198.51.100.7 40000 0123\r\n",
    "no CRLF": b"PROXY UNKNOWN " + b"x" * 200,
    "bare LF": LINE.replace(b"\r\n", b"\n"),
    "lower case": LINE.lower(),
    "v2 length FFFF": V2_SIGNATURE + bytes.fromhex("21 11 ffff"),
    "v2 UDP": BINARY[:13] + b"\x12" + BINARY[14:],
}


@pytest.mark.parametrize("octets", BAD.values(), ids=list(BAD))
@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_anything_else_closes_without_a_word_and_is_counted(
    run, recorder, caplog, octets, tls, server_tls
):
    async def dialogue(client):
        with contextlib.suppress(ConnectionResetError):
            assert await client.rest() == b""

    server = Server(handler=recorder, tls=server_tls)
    converse(run, server, dialogue, header=octets, tls=tls)
    assert (server.counters.proxy_failures, server.counters.tls_failures) == (1, 0)
    assert recorder.calls == []
    (record,) = caplog.records
    assert (record.getMessage(), record.peer) == ("no PROXY header", "127.0.0.1")
    assert "x" * 20 not in record.error


def test_a_header_from_a_stranger_is_not_read(run, recorder, caplog):
    async def dialogue(client):
        with contextlib.suppress(ConnectionResetError):
            assert await client.rest() == b""

    server = Server(handler=recorder)
    converse(run, server, dialogue, header=LINE, proxy_from=STRANGERS)
    assert server.counters.proxy_failures == 1
    assert recorder.calls == []
    assert "not believed" in caplog.records[0].error


@pytest.mark.parametrize("octets", [b"", LINE[:10], BINARY[:14]])
def test_a_balancer_that_only_looks_is_counted_and_not_logged(run, recorder, caplog, octets, until):
    async def dialogue(client):
        client.writer.write_eof()
        assert await client.rest() == b""

    server = Server(handler=recorder)
    converse(run, server, dialogue, header=octets)
    assert server.counters.proxy_failures == 1
    assert caplog.records == []
    assert recorder.calls == []


@pytest.mark.parametrize("octets", [b"", LINE[:-1], BINARY[:12], BINARY[:20]])
@pytest.mark.usefixtures("sweep_fast")
def test_a_header_that_does_not_come_in_time_ends_the_connection(
    run, recorder, caplog, monkeypatch, octets
):
    monkeypatch.setattr("preforkmx.session.reception.PROXY_HEADER_SECONDS", 0.05)

    async def dialogue(client):
        with contextlib.suppress(ConnectionResetError):
            assert await client.rest() == b""

    server = Server(handler=recorder)
    converse(run, server, dialogue, header=octets)
    assert server.counters.proxy_failures == 1
    assert caplog.records[0].error == "no PROXY header in time"
    assert recorder.calls == []


@pytest.mark.usefixtures("sweep_fast")
def test_a_dripped_header_has_its_time_as_a_whole(run, monkeypatch):
    monkeypatch.setattr("preforkmx.session.reception.PROXY_HEADER_SECONDS", 0.1)
    loops = 0

    async def dialogue(client):
        nonlocal loops
        # uvloop says RuntimeError of a transport that is closed.
        with contextlib.suppress(ConnectionError, RuntimeError):
            for octet in V2_SIGNATURE + bytes.fromhex("2000 4000") + bytes(0x4000):
                await client.send(bytes([octet]))
                await asyncio.sleep(0.01)
                loops += 1
                if client.reader.at_eof():
                    break

    server = Server()
    converse(run, server, dialogue)
    assert server.counters.proxy_failures == 1
    assert loops < 200


# --- the end of the server ---------------------------------------------------------------------------


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize("octets", [b"", LINE[:10], BINARY[:14]])
def test_abort_while_a_header_is_awaited_leaves_nothing(
    run, recorder, caplog, until, server_tls, tls, octets
):
    async def test():
        before = open_sockets()
        server.listen("127.0.0.1:0", proxy_protocol=True, proxy_from=TRUSTED, tls=tls)
        async with server:
            clients = [await Client.connect(server.addresses[0]) for _ in range(5)]
            for client in clients:
                await client.send(octets or b"")
            await until(lambda: server.sessions == 5)
            await asyncio.sleep(0)
            server.abort()
            async with asyncio.timeout(10):
                await server.wait_closed()
            for client in clients:
                with contextlib.suppress(ConnectionResetError):
                    assert await client.rest() == b""
                await client.close()
        assert open_sockets() <= before

    server = Server(handler=recorder, tls=server_tls)
    run(test())
    assert server.sessions == 0
    # Nobody failed: the server stopped.
    assert server.counters.proxy_failures == 0
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert recorder.calls == []


def test_shutdown_waits_for_a_header_at_most_until_its_deadline(run, until):
    async def test():
        server.listen("127.0.0.1:0", proxy_protocol=True, proxy_from=TRUSTED)
        async with server:
            silent = await Client.connect(server.addresses[0])
            speaks = await Client.connect(server.addresses[0])
            await until(lambda: server.sessions == 2)
            stopping = asyncio.create_task(server.shutdown(30))
            await asyncio.sleep(0)
            await speaks.send(LINE)
            # It was accepted, and hears the server's last word.
            assert (await speaks.reply()).code == 220
            assert (await speaks.reply()).code == 421
            await speaks.close()
            for session in server._service.sessions:
                session.deadline = 0.0
            async with asyncio.timeout(10):
                await stopping
            with contextlib.suppress(ConnectionResetError):
                assert await silent.rest() == b""
            await silent.close()

    server = Server()
    run(test())
    assert server.sessions == 0


def test_a_full_server_turns_a_proxied_connection_away(run, until):
    async def test():
        async with listening(server) as address, await Client.connect(address) as first:
            await first.send(LINE)
            await first.hello()
            async with await Client.connect(address) as second:
                await second.send(LINE)
                assert (await second.reply()).code == 421
                assert await second.rest() == b""

    server = Server(max_sessions=1)
    run(test())
    assert server.counters.connections_refused == 1
