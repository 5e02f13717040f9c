"""Block lists whose name server is slow, lies, truncates or never answers: octets and sockets."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from ipaddress import ip_network

import pytest
from name_server import NameServer, soa

from preforkmx import Server
from preforkmx.dns import Resolver
from preforkmx.middleware import RBL, DNSList
from preforkmx.testing import Client

ZEN = "zen.example.org"
LISTED = f"1.2.0.192.{ZEN}"


@asynccontextmanager
async def mx(answer, *, timeout=0.3, lists=(ZEN,)):
    """Gives the name server that answers so, and what returns a client's greeting."""
    async with (
        NameServer(answer) as dns,
        Resolver([dns.address], timeout=timeout) as resolver,
    ):
        server = Server(hostname="mx.example.com")
        server.use(RBL(lists, resolver=resolver, deadline=timeout).middleware())
        trusted = (ip_network("127.0.0.1/32"),)
        server.listen("127.0.0.1:0", proxy_protocol=True, proxy_from=trusted)
        async with server:

            async def greeting(client="192.0.2.1"):
                async with await Client.connect(server.addresses[0]) as smtp:
                    await smtp.send(f"PROXY TCP4 {client} 127.0.0.1 40000 25\r\n".encode())
                    return await smtp.reply()

            yield dns, greeting


def nothing(query):
    return query.response(rcode="NXDOMAIN", authority=[soa(ZEN)])


def listed(query, rdtype="A", data="127.0.0.2"):
    """Answer the one question, and others with nothing."""
    if (query.name, query.rdtype) != (LISTED, rdtype):
        return nothing(query)
    return query.response(f"{LISTED}. 300 IN {rdtype} {data}")


def test_a_list_that_never_answers_costs_the_deadline_and_nothing_else(run):
    async def scenario():
        async with mx(lambda query: None) as (dns, greeting):
            began = time.monotonic()
            assert (await greeting()).code == 220
            assert 0.19 <= time.monotonic() - began < 3  # uvloop rounds to milliseconds
            assert LISTED in dns.names

    run(scenario())


@pytest.mark.parametrize(
    "answer",
    [
        lambda query: query.response(rcode="SERVFAIL"),
        lambda query: query.response(rcode="REFUSED"),
        lambda query: query.wire,
        lambda query: b"",
        lambda query: query.wire[:2] + b"\xff" * 400,
        lambda query: query.response(f"{LISTED}. 300 IN A 127.0.0.2")[:-3],
        lambda query: query.response(f"other.{ZEN}. 300 IN A 127.0.0.2"),
        lambda query: query.response(f"{LISTED}. 300 IN CNAME {LISTED}."),
        lambda query: query.response(f"{LISTED}. 300 IN A 127.0.0.2", name=f"2.2.0.192.{ZEN}"),
        lambda query: query.response(f"{LISTED}. 300 IN TXT listed"),
        lambda query: query.response(truncated=True),
        lambda query: query.response(
            *(f"{LISTED}. 300 IN A 127.0.{n // 250}.{n % 250}" for n in range(400))
        ),
    ],
    ids=[
        "SERVFAIL",
        "REFUSED",
        "its own question",
        "nothing",
        "noise",
        "cut off",
        "another name's record",
        "a circle",
        "another question",
        "another type",
        "truncated over TCP too",
        "too many records",
    ],
)
def test_what_is_no_answer_lists_nobody(run, answer):
    async def scenario():
        async with mx(answer) as (_, greeting):
            assert (await greeting()).code == 220

    run(scenario())


def test_a_truncated_answer_is_asked_for_over_tcp(run):
    def answer(query):
        if query.rdtype == "TXT" and not query.tcp:
            return query.response(truncated=True)
        if query.rdtype == "TXT":
            return listed(query, "TXT", " ".join(f'"{"long " * 50}"' for _ in range(20)))
        return listed(query)

    async def scenario():
        async with mx(answer, timeout=5) as (dns, greeting):
            reply = await greeting()
            assert reply.code == 554
            assert reply.text.endswith("...")
            assert len(reply.text) < 300
            assert [query.tcp for query in dns.queries if query.rdtype == "TXT"] == [False, True]

    run(scenario())


def test_a_text_that_never_comes_delays_the_refusal_by_the_deadline_at_most(run):
    def answer(query):
        return None if query.rdtype == "TXT" else listed(query)

    async def scenario():
        async with mx(answer) as (_, greeting):
            began = time.monotonic()
            assert (await greeting()) == (554, (f"192.0.2.1 is listed by {ZEN}",))
            assert time.monotonic() - began < 3

    run(scenario())


def test_a_text_of_control_characters_is_one_line(run):
    def answer(query):
        return (
            listed(query, "TXT", r'"a\013\010250 ok\000\200\255" "b"')
            if (query.rdtype == "TXT")
            else listed(query)
        )

    async def scenario():
        async with mx(answer, timeout=5) as (_, greeting):
            assert (await greeting()) == (554, (f"192.0.2.1 is listed by {ZEN}: a 250 ok ??b",))

    run(scenario())


def test_one_list_that_is_silent_does_not_keep_another_from_refusing(run):
    other = "bl.example.net"

    def answer(query):
        return None if query.name.endswith(other) else listed(query)

    async def scenario():
        async with mx(answer, timeout=5, lists=(other, ZEN)) as (_, greeting):
            began = time.monotonic()
            assert (await greeting()).code == 554
            assert time.monotonic() - began < 4

    run(scenario())


def test_a_server_that_answers_every_name_with_a_code_lists_nobody(run):
    """A domain that was bought, or a list that is given up."""

    def answer(query):
        return query.response(f"{query.name}. 300 IN A 127.0.0.2")

    async def scenario():
        lists = (DNSList(zone=ZEN), DNSList(zone="wl.example.org", weight=-1))
        async with mx(answer, timeout=5, lists=lists) as (dns, greeting):
            assert (await greeting()).code == 220
            asked = len(dns.queries)
            assert (await greeting("192.0.2.2")).code == 220
            assert len(dns.queries) == asked

    run(scenario())
