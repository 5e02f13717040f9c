"""Block lists against rbldnsd: real zones, and a real server that is silent or away."""

from __future__ import annotations

import contextlib
import signal
import time
from ipaddress import ip_network

import pytest
import uvloop

from preforkmx import Server
from preforkmx.dns import Resolver
from preforkmx.middleware import RBL, DNSList, Greylist
from preforkmx.testing import Client
from tests.integration.peers.rbldnsd import rbldnsd

pytestmark = pytest.mark.integration

SOA = "$SOA 300 ns.example.org hostmaster.example.org 1 3600 600 86400 60\n"

LISTS = {
    "bl.example.org": (
        "ip4set",
        SOA
        + ":127.0.0.2:Listed, see https://example.org/?q=$\n"
        + "127.0.0.2\n"
        + "192.0.2.0/24\n"
        + "!192.0.2.9\n"
        + "198.51.100.4 :127.0.0.4:Open proxy\n"
        + "198.51.100.10 :127.0.0.10:Dynamic\n"
        + f"198.51.100.99 :127.0.0.2:{'long ' * 45}\n",
    ),
    "bl6.example.org": (
        "ip6trie",
        SOA + ":127.0.0.6:Listed $\n2001:db8:1::/48\n!2001:db8:1:2::/64\n",
    ),
    "dbl.example.org": (
        "dnset",
        SOA + ":127.0.1.2:$ is bad\ntest\n.bad.example.net\n",
    ),
    "wl.example.org": ("ip4set", SOA + ":127.0.5.1:Known\n198.51.100.10\n192.0.2.77\n"),
    "gen.example.org": (
        "generic",
        SOA
        + "1.2.0.192 A 127.0.0.3\n1.2.0.192 A 127.0.0.7\n1.2.0.192 TXT from a generic zone\n"
        + "2.2.0.192 A 203.0.113.80\n",
    ),
    "error.example.org": ("ip4trie", SOA + ":127.255.255.254:Ask me not\n0.0.0.0/0\n"),
    "world.example.org": ("ip4trie", SOA + ":127.0.0.2:Given up\n0.0.0.0/0\n"),
}


@pytest.fixture(scope="module")
def server():
    with rbldnsd(LISTS) as running:
        yield running


@contextlib.asynccontextmanager
async def mx(rbl, *others):
    """A server behind a proxy; gives what opens a session of a client."""
    made = Server(hostname="mx.example.com")
    made.use(rbl.middleware(), *others)
    trusted = (ip_network("127.0.0.1/32"),)
    made.listen("127.0.0.1:0", proxy_protocol=True, proxy_from=trusted)
    async with made:

        @contextlib.asynccontextmanager
        async def session(address):
            family, ours = ("TCP6", "::1") if ":" in address else ("TCP4", "127.0.0.1")
            async with await Client.connect(made.addresses[0]) as smtp:
                await smtp.send(f"PROXY {family} {address} {ours} 40000 25\r\n".encode())
                yield smtp

        yield session


def greetings(server, lists, *clients, **options):
    """Return what each client is greeted with."""

    async def scenario():
        found = []
        async with (
            Resolver([server.address]) as resolver,
            mx(RBL(lists, resolver=resolver, **options)) as session,
        ):
            for client in clients:
                async with session(client) as smtp:
                    reply = await smtp.reply()
                    found.append(reply.text if reply.code == 554 else reply.code)
        return found

    return uvloop.run(scenario())


def test_an_ip4set_lists_networks_less_their_exceptions(server):
    assert greetings(
        server, ["bl.example.org"], "192.0.2.1", "192.0.2.9", "203.0.113.1", "198.51.100.4"
    ) == [
        "192.0.2.1 is listed by bl.example.org: Listed, see https://example.org/?q=192.0.2.1",
        220,
        220,
        "198.51.100.4 is listed by bl.example.org: Open proxy",
    ]


def test_codes_choose_what_of_a_list_counts(server):
    lists = [DNSList(zone="bl.example.org", codes=("127.0.0.2", "127.0.0.4-127.0.0.7"))]
    found = greetings(server, lists, "192.0.2.1", "198.51.100.4", "198.51.100.10")
    assert [type(each) for each in found] == [str, str, int]


def test_an_ip6trie_lists_ipv6_networks(server):
    found = greetings(
        server, ["bl6.example.org"], "2001:db8:1::25", "2001:db8:1:2::25", "2001:db8:2::25"
    )
    assert found == ["2001:db8:1::25 is listed by bl6.example.org: Listed 2001:db8:1::25", 220, 220]


def test_a_generic_zone_has_several_codes_and_what_is_none(server):
    lists = [DNSList(zone="gen.example.org", codes=("127.0.0.7",))]
    assert greetings(server, lists, "192.0.2.1", "192.0.2.2", "192.0.2.3") == [
        "192.0.2.1 is listed by gen.example.org: from a generic zone",
        220,
        220,
    ]


def test_a_dnset_lists_helo_names_and_senders(server):
    async def scenario():
        dbl = DNSList(zone="dbl.example.org", kind="domain", codes=("127.0.1.2-127.0.1.99",))
        async with (
            Resolver([server.address]) as resolver,
            mx(RBL([dbl], resolver=resolver)) as session,
            session("192.0.2.1") as smtp,
        ):
            assert (await smtp.reply()).code == 220
            reply = await smtp.command("EHLO mail.bad.example.net")
            assert reply.code == 554
            assert "mail.bad.example.net is listed by dbl.example.org: bad.example" in reply.text
            assert (await smtp.command("EHLO good.example.net")).code == 250
            assert (await smtp.command("MAIL FROM:<joe@bad.example.net>")).code == 554
            assert (await smtp.command("MAIL FROM:<joe@good.example.net>")).code == 250

    uvloop.run(scenario())


def test_an_allow_list_lifts_a_refusal_and_spares_the_greylist(server):
    async def scenario():
        lists = [
            DNSList(zone="bl.example.org", weight=2),
            DNSList(zone="wl.example.org", weight=-3),
        ]
        async with (
            Resolver([server.address]) as resolver,
            mx(RBL(lists, threshold=2, resolver=resolver), Greylist().middleware()) as session,
        ):
            async with session("192.0.2.77") as smtp:
                await smtp.hello()
                await smtp.command("MAIL FROM:<joe@example.org>")
                assert (await smtp.command("RCPT TO:<ann@example.com>")).code == 250
            async with session("203.0.113.1") as smtp:
                await smtp.hello()
                await smtp.command("MAIL FROM:<joe@example.org>")
                assert (await smtp.command("RCPT TO:<ann@example.com>")).code == 451

    uvloop.run(scenario())


@pytest.mark.parametrize("zone", ["error.example.org", "world.example.org"])
def test_a_list_that_answers_with_an_error_or_lists_everybody_lists_nobody(server, zone, caplog):
    both = [zone, "bl.example.org"]
    found = greetings(server, both, "203.0.113.1", "203.0.113.2", "192.0.2.1")
    assert found[:2] == [220, 220]
    assert "bl.example.org" in found[2]
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert zone in warning.getMessage()


def test_a_long_text_is_shortened(server):
    [text] = greetings(server, ["bl.example.org"], "198.51.100.99")
    assert text.endswith("...")
    assert len(text) < 260


def test_a_list_that_nobody_serves_lists_nobody(server):
    assert greetings(server, ["gone.example.net", "bl.example.org"], "203.0.113.1") == [220]


def test_what_was_answered_is_not_asked_again_for_its_time(server):
    async def scenario():
        async with (
            Resolver([server.address]) as resolver,
            mx(RBL(["bl.example.org", "wl.example.org"], resolver=resolver)) as session,
        ):
            for _ in range(5):
                async with session("203.0.113.1") as smtp:
                    assert (await smtp.reply()).code == 220
            assert resolver.counters.sent == 2

    uvloop.run(scenario())


def test_a_server_of_lists_that_is_stopped_costs_sessions_the_deadline_and_then_nothing():
    async def scenario(running):
        async with (
            Resolver([running.address], timeout=0.5) as resolver,
            mx(RBL(["bl.example.org"], resolver=resolver, deadline=0.5)) as session,
        ):
            async with session("192.0.2.1") as smtp:
                assert (await smtp.reply()).code == 554
            running.signal(signal.SIGSTOP)
            before = resolver.counters.sent
            for number in range(2, 8):
                async with session(f"192.0.2.{number}") as smtp:
                    began = time.monotonic()
                    assert (await smtp.reply()).code == 220
                    assert time.monotonic() - began < 5
                asked, before = resolver.counters.sent - before, resolver.counters.sent
            # About the last of them it was not asked: the list rests.
            assert asked == 0
            running.signal(signal.SIGCONT)

    with rbldnsd({"bl.example.org": LISTS["bl.example.org"]}) as running:
        uvloop.run(scenario(running))


def test_a_server_of_lists_that_is_killed_costs_nothing_and_is_asked_when_it_is_back():
    async def scenario(running):
        async with (
            Resolver([running.address]) as resolver,
            mx(RBL(["bl.example.org"], resolver=resolver)) as session,
        ):
            running.kill()
            async with session("192.0.2.1") as smtp:
                assert (await smtp.reply()).code == 220
            running.start()
            async with session("192.0.2.1") as smtp:
                assert (await smtp.reply()).code == 554

    with rbldnsd({"bl.example.org": LISTS["bl.example.org"]}) as running:
        uvloop.run(scenario(running))
