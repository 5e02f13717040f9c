"""The resolver against NSD: real answers over UDP and TCP, and a real server that fails."""

from __future__ import annotations

import asyncio
import signal
import time
from ipaddress import ip_address

import pytest
import uvloop

from preforkmx.dns import MX, Resolver, list_name
from preforkmx.errors import DNSRefused, DNSTimeout, DNSUnreachable
from tests.integration.peers.nsd import nsd

pytestmark = pytest.mark.integration

LONG = " ".join(f'"{number:04}{"x" * 200}"' for number in range(30))
ZONE = f"""
$ORIGIN example.org.
$TTL 300
@       IN SOA ns hostmaster 1 3600 600 86400 120
@       IN NS ns
@       IN MX 20 mx2
@       IN MX 10 mx
@       IN TXT "v=spf1 " "mx -all"
@       IN TXT "another"
ns      IN A 192.0.2.53
mx      IN A 192.0.2.1
mx      IN AAAA 2001:db8::1
mx2     30 IN CNAME alias
alias   IN CNAME mx
long    IN TXT {LONG}
empty   IN TXT ""
*.many  IN A 127.0.0.2
{list_name(ip_address("2001:db8::1"), "list")} IN A 127.0.0.4
{list_name(ip_address("192.0.2.1"), "reverse")} IN PTR mx
"""


@pytest.fixture(scope="module")
def server():
    with nsd("example.org", ZONE) as running:
        yield running


def test_what_stands_in_a_zone_is_found(server):
    async def scenario():
        async with Resolver([server.address]) as resolver:
            assert await resolver.a("ns.example.org") == (ip_address("192.0.2.53"),)
            assert await resolver.aaaa("mx.example.org") == (ip_address("2001:db8::1"),)
            assert await resolver.mx("example.org") == (
                MX(10, "mx.example.org"),
                MX(20, "mx2.example.org"),
            )
            assert set(await resolver.txt("example.org")) == {b"v=spf1 mx -all", b"another"}
            assert await resolver.txt("empty.example.org") == (b"",)
            chain = await resolver.query("mx2.example.org", "A")
            assert (chain.records, chain.ttl) == ((ip_address("192.0.2.1"),), 30)
            listed = list_name(ip_address("2001:db8::1"), "list.example.org")
            assert await resolver.a(listed) == (ip_address("127.0.0.4"),)
            name = list_name(ip_address("192.0.2.1"), "reverse.example.org")
            assert (await resolver.query(name, "PTR")).records == ("mx.example.org",)
            assert resolver.counters.wrong == resolver.counters.malformed == 0

    uvloop.run(scenario())


def test_what_does_not_stand_there_is_an_answer_with_the_zones_time(server):
    async def scenario():
        async with Resolver([server.address]) as resolver:
            gone = await resolver.query("gone.example.org", "A")
            assert (gone.nxdomain, gone.records, gone.ttl) == (True, (), 120)
            nothing = await resolver.query("ns.example.org", "MX")
            assert (nothing.nxdomain, nothing.records, nothing.ttl) == (False, (), 120)
            # The chain's end has no such record.
            end = await resolver.query("mx2.example.org", "MX")
            assert (end.nxdomain, end.records, end.ttl) == (False, (), 30)
            with pytest.raises(DNSRefused):
                await resolver.query("example.com", "A")

    uvloop.run(scenario())


def test_a_text_too_long_for_a_datagram_comes_over_tcp(server):
    async def scenario():
        async with Resolver([server.address]) as resolver:
            (text,) = await resolver.txt("long.example.org")
            assert len(text) == 30 * 204
            assert resolver.counters.tcp == 1
            assert await resolver.txt("long.example.org") == (text,)
            assert resolver.counters.tcp == 1

    uvloop.run(scenario())


def test_thousands_of_names_at_once_are_all_found(server):
    async def scenario():
        async with Resolver([server.address]) as resolver:
            names = [f"n{number}.many.example.org" for number in range(3000)]
            found = await asyncio.gather(*map(resolver.a, names))
            assert set(found) == {(ip_address("127.0.0.2"),)}
            assert resolver.counters.wrong == resolver.counters.late == 0

    uvloop.run(scenario())


def test_a_server_that_is_stopped_costs_the_deadline_and_another_one_nothing_for_long():
    async def scenario(first, second):
        async with Resolver([first.address], timeout=2) as resolver:
            assert await resolver.a("a.many.example.org")
            first.signal(signal.SIGSTOP)
            began = time.monotonic()
            with pytest.raises(DNSTimeout):
                await resolver.a("b.many.example.org")
            assert 1.99 <= time.monotonic() - began < 4  # uvloop rounds to milliseconds
            # What is known needs nobody.
            assert await resolver.a("a.many.example.org")
            async with Resolver([first.address, second.address], timeout=1) as both:
                for number in range(50):
                    assert await both.a(f"c{number}.many.example.org")
                # Three tries, and one whenever it has rested.
                assert both.counters.timeouts < 10
            first.signal(signal.SIGCONT)
            assert await resolver.a("d.many.example.org")

    with nsd("example.org", ZONE) as first, nsd("example.org", ZONE) as second:
        uvloop.run(scenario(first, second))


def test_a_server_that_is_killed_and_comes_back_is_asked_again():
    async def scenario(server):
        async with Resolver([server.address], timeout=5) as resolver:
            assert await resolver.a("a.many.example.org")
            server.kill()
            began = time.monotonic()
            with pytest.raises(DNSUnreachable):
                await resolver.a("b.many.example.org")
            assert time.monotonic() - began < 2
            await asyncio.to_thread(server.start)
            assert await resolver.a("b.many.example.org")

    with nsd("example.org", ZONE) as server:
        uvloop.run(scenario(server))
