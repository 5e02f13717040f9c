"""SPF against NSD: real records, the command, and a name server that stands still."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from ipaddress import ip_address

import pytest
import uvloop

from preforkmx import Server
from preforkmx.dns import Resolver
from preforkmx.middleware import SPF
from preforkmx.middleware.spf_check import check_host
from preforkmx.testing import Client, Recorder, running
from tests.integration.peers.nsd import nsd
from tests.integration.peers.programs import run

pytestmark = pytest.mark.integration

INCLUDES = " ".join(f"include:i{number}.example.org" for number in range(8))
LONG = " ".join(f"ip4:198.51.{number}.0/24" for number in range(100))
ZONE = f"""
$ORIGIN example.org.
$TTL 300
@       IN SOA ns hostmaster 1 3600 600 86400 120
@       IN NS ns
@       IN MX 10 mx
@       IN TXT "v=spf1 mx " "a:away.example.org -all exp=why.%{{d}}"
@       IN TXT "another"
ns      IN A 192.0.2.53
mx      IN A 192.0.2.1
mx      IN AAAA 2001:db8::1
why     IN TXT "%{{i}} is not ours"
pass    IN TXT "v=spf1 ip4:127.0.0.1 -all"
eight   IN TXT "v=spf1 {INCLUDES} ~all"
*.p     IN TXT "v=spf1 include:i7.example.org ip4:192.0.2.7 -all"
tcp     IN TXT "v=spf1 " {" ".join(f'"{LONG[at : at + 200]}"' for at in range(0, len(LONG), 200))} " ip4:192.0.2.9 -all"
""" + "\n".join(f'i{number} IN TXT "v=spf1 ip4:203.0.113.{number} -all"' for number in range(8))


@pytest.fixture(scope="module")
def server():
    with nsd("example.org", ZONE) as running:
        yield running


def check(server, address, sender, helo="mx.example.org"):
    async def scenario():
        async with Resolver([server.address]) as resolver:
            return await check_host(resolver, ip_address(address), helo, sender)

    return uvloop.run(scenario())


@pytest.mark.parametrize(
    ("address", "sender", "expected"),
    [
        ("192.0.2.1", "joe@example.org", ("pass", "mx", "", 1)),
        ("2001:db8::1", "joe@example.org", ("pass", "mx", "", 1)),
        ("192.0.2.2", "joe@example.org", ("fail", "-all", "192.0.2.2 is not ours", 2)),
        ("203.0.113.7", "joe@eight.example.org", ("pass", "include:i7.example.org", "", 8)),
        ("192.0.2.2", "joe@eight.example.org", ("softfail", "~all", "", 8)),
        ("192.0.2.9", "joe@tcp.example.org", ("pass", "ip4:192.0.2.9", "", 0)),
        ("192.0.2.1", "joe@mx.example.org", ("none", "no SPF record", "", 0)),
        ("192.0.2.1", "", ("none", "no SPF record", "", 0)),
    ],
)
def test_real_records_are_evaluated(server, address, sender, expected):
    found = check(server, address, sender)
    assert (found.result, found.reason, found.explanation, found.lookups) == expected


def test_a_name_that_the_server_refuses_is_a_temperror(server):
    assert check(server, "192.0.2.1", "joe@example.net").result == "temperror"


def test_two_hundred_checks_at_once_are_all_right_and_share_their_questions(server):
    async def scenario():
        async with Resolver([server.address]) as resolver:
            found = await asyncio.gather(
                *(
                    check_host(
                        resolver,
                        ip_address(f"192.0.2.{number % 2 + 7}"),
                        "h.example.org",
                        f"joe@n{number}.p.example.org",
                    )
                    for number in range(200)
                )
            )
            assert [each.result for each in found] == ["pass", "fail"] * 100
            assert resolver.counters.wrong == resolver.counters.malformed == 0
            # A name each; the one that all include was asked for once, or known.
            assert resolver.counters.joined + resolver.counters.cached >= 199

    uvloop.run(scenario())


def test_a_name_server_that_stands_still_costs_each_session_its_deadline_and_no_more():
    async def scenario(server):
        async with Resolver([server.address], timeout=1) as resolver:
            mx = Server(hostname="mx.example.com", handler=Recorder())
            mx.use(SPF(resolver, exempt_private=False).middleware())
            async with running(mx) as address:
                await one(address, "pass.example.org", 250)
                server.signal(signal.SIGSTOP)
                began = time.monotonic()
                async with asyncio.TaskGroup() as group:
                    for number in range(50):
                        group.create_task(one(address, f"n{number}.p.example.org", 451))
                    # What is known needs nobody.
                    known = time.monotonic()
                    await one(address, "pass.example.org", 250)
                    assert time.monotonic() - known < 1
                assert time.monotonic() - began < 5
                server.signal(signal.SIGCONT)
                await asyncio.sleep(0)
                await one(address, "eight.example.org", 250)

    async def one(address, domain, code):
        async with await Client.connect(address, seconds=20) as client:
            await client.hello()
            assert (await client.command(f"MAIL FROM:<joe@{domain}>")).code == code

    with nsd("example.org", ZONE) as server:
        uvloop.run(scenario(server))


def test_the_command_asks_the_resolver_of_the_configuration(server, tmp_path):
    path = tmp_path / "preforkmx.toml"
    path.write_text(
        'hostname = "mx.example.com"\ndomains = ["example.com"]\n'
        '[[listener]]\naddress = "127.0.0.1:0"\n[delivery]\nuse = "discard"\n'
        f'[dns]\nservers = ["{server.address}"]\n[[middleware]]\nuse = "spf"\n'
    )
    command = (sys.executable, "-m", "preforkmx", "spf", "192.0.2.2", "mx.example.org")
    shown = run(*command, "joe@example.org", "-c", path)
    assert shown.returncode == 0, shown.stdout
    assert shown.stdout == (
        "fail: -all\n  mailfrom 'example.org' from 192.0.2.2\n  2 of 10 look-ups\n"
        "  explanation: 192.0.2.2 is not ours\n"
    )
    printed = json.loads(run(*command, "joe@eight.example.org", "-c", path, "--json").stdout)
    assert printed["result"] == "softfail"
    assert printed["lookups"] == 8
