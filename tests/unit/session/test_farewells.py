"""A full server: who is turned away hears why, and a balancer's checks are served all the same."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from ipaddress import ip_network

import pytest

from preforkmx import Server
from preforkmx.protocol.proxy import V2_SIGNATURE
from preforkmx.session import farewells, reception
from preforkmx.session.farewells import Farewells
from preforkmx.testing import Client

TRUSTED = (ip_network("127.0.0.0/8"),)
HEADER = b"PROXY TCP4 192.0.2.1 198.51.100.7 40000 25\r\n"
LOCAL = V2_SIGNATURE + bytes.fromhex("20 00 0000")
TURNED_AWAY = b"421 Too many connections, try again later\r\n"


@contextlib.asynccontextmanager
async def full(server, *, proxied=False, **options):
    """Serve, with every session taken by a client that has been greeted."""
    if proxied:
        options |= {"proxy_protocol": True, "proxy_from": TRUSTED}
    server.listen("127.0.0.1:0", **options)
    async with server, contextlib.AsyncExitStack() as stack:
        address = server.addresses[0]
        for _ in range(server._service.max_sessions):
            client = await stack.enter_async_context(await Client.connect(address))
            if proxied:
                await client.send(HEADER)
            await client.hello()
        yield address


async def early(address, octets):
    """Connect with octets that are there before the server has a turn to accept."""
    sock = socket.create_connection(address)
    sock.sendall(octets)
    return Client(*await asyncio.open_connection(sock=sock))


async def beyond(server, octets, **options):
    """Return what a client hears that speaks first and finds the server full; no reset."""
    async with full(server, **options) as address, await early(address, octets) as client:
        said = await client.rest()
        # Its last words are no reason for a reset either.
        await client.send(b"QUIT\r\n")
        return said


@pytest.mark.parametrize("octets", [b"EHLO early.example\r\n", b"x" * 100_000])
def test_who_speaks_first_to_a_full_server_gets_421_and_no_reset(run, octets):
    server = Server(max_sessions=1)
    assert run(beyond(server, octets)) == TURNED_AWAY
    assert server.counters.connections_refused == 1


@pytest.mark.parametrize("max_sessions", [1, 3])
def test_a_proxied_client_of_a_full_server_gets_421_and_no_reset(run, max_sessions):
    server = Server(max_sessions=max_sessions)
    said = run(beyond(server, HEADER + b"EHLO early.example\r\n", proxied=True))
    assert said == TURNED_AWAY
    assert server.counters.connections_refused == 1
    assert server.counters.proxy_failures == 0


def test_a_full_server_serves_a_balancer_s_checks(run):
    async def test():
        async with full(server, proxied=True) as address, await early(address, LOCAL) as check:
            assert (await check.hello()).code == 250
            assert (await check.command("QUIT")).code == 221

    server = Server(max_sessions=1)
    run(test())
    assert server.counters.connections_refused == 0


def test_room_that_is_made_while_the_header_is_on_its_way_is_for_the_client(run, until):
    async def test():
        server.listen("127.0.0.1:0", proxy_protocol=True, proxy_from=TRUSTED)
        async with server:
            address = server.addresses[0]
            async with await Client.connect(address) as first:
                await first.send(HEADER)
                await first.hello()
                async with await Client.connect(address) as second:
                    await until(lambda: server.sessions == 2)
                    await first.command("QUIT")
                    await first.rest()
                    await until(lambda: server.sessions == 1)
                    await second.send(HEADER)
                    return (await second.reply()).code

    server = Server(max_sessions=1)
    assert run(test()) == 220


def test_silent_connections_on_a_full_proxied_listener_are_bounded(run, until, monkeypatch):
    monkeypatch.setattr(reception, "SPARE_SESSIONS", 2)

    async def test():
        async with full(server, proxied=True) as address, contextlib.AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(await Client.connect(address))
            await until(lambda: server.sessions == 3)
            async with await early(address, LOCAL) as one_more:
                said = await one_more.rest()
            assert server.sessions == 3
            return said

    server = Server(max_sessions=1)
    assert run(test()) == TURNED_AWAY


def test_a_client_that_was_turned_away_and_stays_is_closed_in_the_end(
    run, until, sweep_fast, monkeypatch
):
    monkeypatch.setattr(farewells, "LINGER_SECONDS", 0.05)

    async def test():
        async with full(server) as address:
            # Asyncio's own client would close when it reads the end.
            with socket.create_connection(address) as sock:
                sock.setblocking(False)
                loop = asyncio.get_running_loop()
                async with asyncio.timeout(10):
                    assert await loop.sock_recv(sock, 200) == TURNED_AWAY
                    assert await loop.sock_recv(sock, 200) == b""
                    await until(lambda: not server._reception._farewells)
                    # Nobody is there any more: what is sent now is answered with a reset.
                    with pytest.raises((BrokenPipeError, ConnectionResetError)):
                        while True:
                            await loop.sock_sendall(sock, b"x")
                            await asyncio.sleep(0)

    server = Server(max_sessions=1)
    run(test())


def test_a_server_is_closed_only_when_the_last_farewell_was_heard(run, until):
    async def test():
        server.listen("127.0.0.1:0")
        async with server, await Client.connect(server.addresses[0]) as first:
            await first.hello()
            with socket.create_connection(server.addresses[0]) as sock:
                await until(lambda: server.counters.connections_refused == 1)
                await first.command("QUIT")
                await first.rest()
                await until(lambda: server.sessions == 0)
                closed = asyncio.ensure_future(server.wait_closed())
                await asyncio.sleep(0)
                assert not closed.done()
                assert sock.recv(200) == TURNED_AWAY
            async with asyncio.timeout(10):
                await closed

    server = Server(max_sessions=1)
    run(test())


def test_farewells_are_bounded_and_the_oldest_goes_first(run, monkeypatch):
    monkeypatch.setattr(farewells, "LINGERING", 2)

    async def test():
        ended = []
        words = Farewells(lambda: ended.append(True))
        pairs = [socket.socketpair() for _ in range(3)]
        for ours, _ in pairs:
            ours.setblocking(False)
            words.say(ours, b"421 x\r\n")
        assert len(words) == 2
        assert [ours.fileno() >= 0 for ours, _ in pairs] == [False, True, True]
        assert ended == []
        words.close()
        assert (len(words), ended) == (0, [True])
        for _, theirs in pairs:
            assert theirs.recv(100) == b"421 x\r\n"
            theirs.close()

    run(test())


def test_nobody_is_waited_for_who_is_gone_already(run):
    async def test():
        words = Farewells(lambda: None)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.close()
        words.say(ours, b"421 x\r\n")
        assert len(words) == 0
        assert ours.fileno() == -1

    run(test())
