"""Clients of whom a middleware knows already that it refuses them: no session is made for them."""

from __future__ import annotations

import asyncio
import logging
import socket
from ipaddress import ip_address, ip_network

import pytest

from preforkmx import Context, Middleware, Peer, Server, SMTPError
from preforkmx.middleware.rate_limit import rate_limit
from preforkmx.observe.log import AccessLog
from preforkmx.protocol.proxy import V2_SIGNATURE
from preforkmx.state.decisions import Rate
from preforkmx.state.local import LocalStore
from preforkmx.testing import Client, Recorder

REFUSED = SMTPError(421, "Not again", enhanced=(4, 7, 0), limit="connections")
HEADER = b"PROXY TCP4 192.0.2.1 198.51.100.7 40000 25\r\n"
LOCAL = V2_SIGNATURE + bytes.fromhex("20 00 0000")


def server_that_refuses(recorder, lines, address="127.0.0.1"):
    server = Server(access_log=AccessLog(lines.append, "logfmt"))
    refused = ip_address(address)
    server.use(
        recorder, Middleware(blocked=lambda each: REFUSED if each == refused else None, name="wall")
    )
    return server


async def said_to(address, octets=b""):
    """Return all that a client hears which sends `octets` at once."""
    sock = socket.create_connection(address)
    if octets:
        sock.sendall(octets)
    async with Client(*await asyncio.open_connection(sock=sock)) as client:
        return await client.rest()


@pytest.mark.parametrize("early", [b"", b"EHLO early.example\r\n"])
def test_the_client_hears_why_and_no_hook_hears_of_it(run, early):
    recorder, lines = Recorder(), []
    server = server_that_refuses(recorder, lines)

    async def test():
        server.listen("127.0.0.1:0")
        async with server:
            assert await said_to(server.addresses[0], early) == b"421 Not again\r\n"
            assert server.sessions == 0

    run(test())
    assert recorder.calls == []
    assert server.counters.connections == server.counters.connections_refused == 1
    (line,) = lines
    assert "event=refused" in line
    assert "peer=127.0.0.1" in line
    assert "verdict=deferred by=wall limit=connections" in line


def test_behind_a_proxy_it_is_the_client_of_the_header(run):
    recorder, lines = Recorder(), []
    server = server_that_refuses(recorder, lines, "192.0.2.1")
    trusted = (ip_network("127.0.0.0/8"),)

    async def test():
        server.listen("127.0.0.1:0", proxy_protocol=True, proxy_from=trusted)
        async with server:
            address = server.addresses[0]
            assert await said_to(address, HEADER + b"EHLO me\r\n") == b"421 Not again\r\n"
            other = HEADER.replace(b"192.0.2.1", b"192.0.2.2")
            assert (await said_to(address, other + b"QUIT\r\n")).startswith(b"220 ")

    run(test())
    assert "via=127.0.0.1" in lines[0]


def test_the_balancers_own_checks_are_served(run):
    recorder, lines = Recorder(), []
    server = server_that_refuses(recorder, lines)
    trusted = (ip_network("127.0.0.0/8"),)

    async def test():
        server.listen("127.0.0.1:0", proxy_protocol=True, proxy_from=trusted)
        async with server:
            said = await said_to(server.addresses[0], LOCAL + b"QUIT\r\n")
            assert said.startswith(b"220 ")

    run(test())


def test_before_a_tls_handshake_there_is_nothing_to_say(run, server_tls):
    lines = []
    server = Server(access_log=AccessLog(lines.append, "logfmt"), tls=server_tls)
    server.use(Middleware(blocked=lambda _: REFUSED, name="wall"))

    async def test():
        server.listen("127.0.0.1:0", tls="implicit")
        async with server:
            assert await said_to(server.addresses[0]) == b""

    run(test())
    assert server.counters.tls_handshakes == server.counters.tls_failures == 0
    assert server.counters.connections_refused == 1


def test_one_that_fails_refuses_nobody(run, caplog):
    def broken(_address):
        raise RuntimeError("broken")

    server = Server()
    server.use(Middleware(blocked=broken, name="broken"))

    async def test():
        server.listen("127.0.0.1:0")
        async with server:
            assert (await said_to(server.addresses[0], b"QUIT\r\n")).startswith(b"220 ")

    with caplog.at_level(logging.ERROR, logger="preforkmx"):
        run(test())
    assert server.counters.hook_failures == 1
    assert "broken" in caplog.text


def test_a_rate_limit_refuses_without_a_session_whom_it_refused_before(run):
    class Counted(LocalStore):
        asked = 0

        async def open_connection(self, address, limits):
            self.asked += 1
            return await super().open_connection(address, limits)

    store, recorder = Counted(), Recorder()
    server = Server()
    server.use(rate_limit(store, connections=Rate(1, 3600.0, 1)), recorder)

    async def test():
        server.listen("127.0.0.1:0")
        async with server:
            said = [await said_to(server.addresses[0], b"QUIT\r\n") for _ in range(5)]
        assert said[0].startswith(b"220 ")
        assert all(each.startswith(b"421 Too many connections") for each in said[1:])

    run(test())
    assert store.asked == 2
    assert server.counters.connections_refused == 4
    # The first was admitted; the second had a session to be refused in.
    assert len([call for call in recorder.calls if call.phase == "disconnect"]) == 2


def test_whom_a_limit_spares_no_block_of_his_network_meets():
    limited = rate_limit(
        LocalStore(),
        network_connections=Rate(1, 3600.0, 1),
        allow=[ip_network("192.0.2.7/32")],
    )
    peer = Peer(ip_address("192.0.2.1"), 40000, "mx.example.com", "127.0.0.1:25")
    asyncio.run(limited.check_connection(Context(), peer))
    with pytest.raises(SMTPError):
        asyncio.run(limited.check_connection(Context(), peer))
    assert limited.blocked(ip_address("192.0.2.9")).limit == "network_connections"
    assert limited.blocked(ip_address("192.0.2.7")) is None
