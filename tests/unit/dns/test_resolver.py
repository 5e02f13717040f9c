"""Looking names up: answers, the cache, queries joined, places and their bounds."""

from __future__ import annotations

import asyncio
import time
from ipaddress import ip_address

import pytest
from name_server import NameServer, soa

from preforkmx.dns import MX, Resolver, list_name, reverse_name
from preforkmx.dns.resolver import FAILURE_TTL, MAX_NEGATIVE_TTL, MAX_TTL
from preforkmx.errors import (
    DNSBusy,
    DNSError,
    DNSNameError,
    DNSRefused,
    DNSServerFailure,
    DNSTimeout,
    DNSUnreachable,
)


def test_each_type_has_its_own_kind_of_record(run):
    async def scenario():
        async with NameServer() as server, Resolver([server.address]) as resolver:
            server.add(
                "example.org. 300 IN A 192.0.2.1",
                "example.org. 300 IN A 192.0.2.2",
                "example.org. 300 IN AAAA 2001:db8::1",
                "example.org. 300 IN MX 20 b.example.org.",
                "example.org. 300 IN MX 10 A.example.org.",
                'example.org. 300 IN TXT "v=spf1 " "-all"',
                "example.org. 300 IN NS ns.example.org.",
                "1.2.0.192.in-addr.arpa. 300 IN PTR mx.example.org.",
            )
            a = await resolver.query("example.org", "A")
            assert a.records == (ip_address("192.0.2.1"), ip_address("192.0.2.2"))
            assert (a.name, a.rdtype, a.ttl, a.nxdomain) == ("example.org", "A", 300, False)
            assert await resolver.a("example.org") == a.records
            assert await resolver.aaaa("example.org") == (ip_address("2001:db8::1"),)
            assert await resolver.mx("example.org") == (
                MX(10, "A.example.org"),
                MX(20, "b.example.org"),
            )
            assert await resolver.txt("example.org") == (b"v=spf1 -all",)
            assert (await resolver.query("example.org", "NS")).records == ("ns.example.org",)
            assert await resolver.ptr(ip_address("192.0.2.1")) == ("mx.example.org",)

    run(scenario())


def test_a_domain_that_takes_no_mail_has_a_dot_as_its_exchanger(run):
    async def scenario():
        async with NameServer() as server, Resolver([server.address]) as resolver:
            server.add("example.org. 300 IN MX 0 .")
            assert await resolver.mx("example.org") == (MX(0, "."),)

    run(scenario())


def test_the_names_of_addresses_are_reversed():
    four, six = ip_address("192.0.2.99"), ip_address("2001:db8:1:2:3:4:567:89ab")
    assert reverse_name(four) == "99.2.0.192.in-addr.arpa"
    assert list_name(four, "bad.example.com") == "99.2.0.192.bad.example.com"
    nibbles = "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2"
    # RFC 5782 section 2.4 has this very example.
    assert list_name(six, "ugly.example.com") == f"{nibbles}.ugly.example.com"
    assert reverse_name(six) == f"{nibbles}.ip6.arpa"
    assert reverse_name(ip_address("::ffff:192.0.2.99")) == "99.2.0.192.in-addr.arpa"


def test_that_there_is_nothing_is_an_answer(run):
    async def scenario():
        async with NameServer() as server, Resolver([server.address]) as resolver:
            server.add("example.org. 300 IN A 192.0.2.1")
            gone = await resolver.query("gone.example.org", "A")
            assert (gone.records, gone.nxdomain, gone.ttl) == ((), True, 600)
            server.answer = lambda query: query.response(authority=[soa("example.org", 60)])
            nothing = await resolver.query("example.org", "MX")
            assert (nothing.records, nothing.nxdomain, nothing.ttl) == ((), False, 60)

    run(scenario())


def test_names_are_the_same_in_any_case_and_with_a_dot_at_the_end(run):
    async def scenario():
        async with NameServer() as server, Resolver([server.address]) as resolver:
            server.add("example.org. 300 IN A 192.0.2.1")
            server.answer = lambda query: query.response(*server.records["example.org", "A"])
            first = await resolver.query("Example.ORG.", "A")
            assert first.name == "example.org"
            assert await resolver.query("example.org", "A") is first
            assert len(server.queries) == 1

    run(scenario())


@pytest.mark.parametrize(
    "name", ["", ".", "a..b", ".a", "a" * 64 + ".org", "a." * 127 + "org", "exämple.org", "\udc80"]
)
def test_what_is_no_name_is_not_asked_for(run, name):
    async def scenario():
        async with NameServer() as server, Resolver([server.address]) as resolver:
            with pytest.raises(DNSNameError):
                await resolver.query(name, "A")
            assert not server.queries
            assert resolver.counters.sent == 0

    run(scenario())


def test_nothing_but_a_dot_is_special_in_a_name(run):
    async def scenario():
        async with NameServer() as server, Resolver([server.address]) as resolver:
            await resolver.query("a\\.b\\046 c\0d@.example.org", "A")
            labels = server.queries[0].message.question[0].name.labels
            assert labels == (b"a\\", b"b\\046 c\0d@", b"example", b"org", b"")

    run(scenario())


def test_an_answer_is_kept_for_its_time(run, clock):
    async def scenario():
        async with NameServer() as server, Resolver([server.address], clock=clock) as resolver:
            server.add("example.org. 300 IN A 192.0.2.1", "example.org. 30 IN A 192.0.2.2")
            server.answer = lambda query: query.response(*server.records["example.org", "A"])
            answer = await resolver.query("example.org", "A")
            assert answer.ttl == 30
            clock.advance(29.9)
            assert await resolver.query("example.org", "A") is answer
            clock.advance(0.2)
            assert await resolver.query("example.org", "A") is not answer
            assert len(server.queries) == 2
            assert resolver.counters.cached == 1

    run(scenario())


@pytest.mark.parametrize(
    ("ttl", "minimum", "kept"), [(900, 60, 60), (60, 900, 60), (10**6, 10**6, MAX_NEGATIVE_TTL)]
)
def test_that_there_is_nothing_is_kept_as_long_as_the_zone_says(run, clock, ttl, minimum, kept):
    async def scenario():
        async with NameServer() as server, Resolver([server.address], clock=clock) as resolver:
            server.answer = lambda query: query.response(
                rcode="NXDOMAIN", authority=[soa("example.org", ttl, minimum)]
            )
            answer = await resolver.query("gone.example.org", "A")
            assert answer.ttl == kept
            clock.advance(kept - 0.1)
            assert await resolver.query("gone.example.org", "A") is answer
            clock.advance(0.2)
            await resolver.query("gone.example.org", "A")
            assert len(server.queries) == 2

    run(scenario())


@pytest.mark.parametrize("authority", [(), (soa("example.com"),)])
def test_that_there_is_nothing_is_not_kept_without_the_word_of_its_zone(run, authority):
    async def scenario():
        async with NameServer() as server, Resolver([server.address]) as resolver:
            server.answer = lambda query: query.response(rcode="NXDOMAIN", authority=authority)
            for _ in range(2):
                answer = await resolver.query("gone.example.org", "A")
                assert (answer.nxdomain, answer.ttl) == (True, 0)
            assert len(server.queries) == 2

    run(scenario())


@pytest.mark.parametrize(("ttl", "kept"), [(10**9, MAX_TTL), (0, 0), (1 << 31, 0)])
def test_no_answer_is_kept_for_longer_than_a_day(run, ttl, kept):
    def answer(query):
        wire = bytearray(query.response("example.org. 77 IN A 192.0.2.1"))
        at = wire.index((77).to_bytes(4))
        wire[at : at + 4] = ttl.to_bytes(4)
        return bytes(wire)

    async def scenario():
        async with NameServer(answer) as server, Resolver([server.address]) as resolver:
            assert (await resolver.query("example.org", "A")).ttl == kept

    run(scenario())


def test_the_cache_has_a_bound(run):
    async def scenario():
        async with NameServer() as server, Resolver([server.address], entries=50) as resolver:
            server.answer = lambda query: query.response(f"{query.name}. 300 IN A 192.0.2.1")
            for number in range(200):
                await resolver.query(f"n{number}.example.org", "A")
            assert len(resolver._cache) == 50

    run(scenario())


def test_large_answers_push_no_small_ones_out_of_the_cache(run):
    async def scenario():
        async with NameServer() as server, Resolver([server.address], entries=50) as resolver:
            server.add("example.org. 300 IN A 192.0.2.1")
            await resolver.query("example.org", "A")
            text = '"' + "x" * 250 + '" '
            server.answer = lambda query: query.response(f"{query.name}. 300 IN TXT {text * 4}")
            for number in range(200):
                await resolver.query(f"n{number}.example.org", "TXT")
            assert len(resolver._cache) == 51
            await resolver.query("example.org", "A")
            assert len(server.queries) == 201

    run(scenario())


def test_those_who_ask_for_the_same_wait_for_one_answer(run):
    async def scenario():
        async with NameServer(lambda _: None) as server, Resolver([server.address]) as resolver:
            async with asyncio.TaskGroup() as group:
                waiting = [group.create_task(resolver.a("example.org")) for _ in range(50)]
                query = await server.heard(1)
                query.respond(query.response("example.org. 0 IN A 192.0.2.1"))
            assert {task.result() for task in waiting} == {(ip_address("192.0.2.1"),)}
            assert len(server.queries) == 1
            assert resolver.counters.joined == 49

    run(scenario())


def test_who_goes_away_does_not_take_the_answer_of_others_with_him(run):
    async def scenario():
        async with NameServer(lambda _: None) as server, Resolver([server.address]) as resolver:
            first = asyncio.create_task(resolver.a("example.org"))
            query = await server.heard(1)
            second = asyncio.create_task(resolver.a("example.org"))
            await asyncio.sleep(0)
            first.cancel()
            query.respond(query.response("example.org. 300 IN A 192.0.2.1"))
            assert await second == (ip_address("192.0.2.1"),)
            assert first.cancelled()

    run(scenario())


def test_an_answer_that_nobody_waits_for_is_kept_but_not_asked_for_again(run, until):
    async def scenario():
        async with (
            NameServer(lambda _: None) as server,
            Resolver([server.address], timeout=0.4, tries=4) as resolver,
        ):
            for name in ("example.org", "silent.example.org"):
                task = asyncio.create_task(resolver.a(name))
                query = await server.heard(len(server.queries) + 1)
                task.cancel()
                if name == "example.org":
                    query.respond(query.response("example.org. 300 IN A 192.0.2.1"))
                await until(lambda: not resolver._flights)
            assert await resolver.a("example.org")
            assert server.names == ["example.org", "silent.example.org"]

    run(scenario())


def test_so_many_are_asked_and_so_many_wait_for_their_turn(run):
    async def scenario():
        async with (
            NameServer(lambda _: None) as server,
            Resolver([server.address], asked=2, queued=2) as resolver,
        ):
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(resolver.a(f"n{n}.example.org")) for n in range(4)]
                await server.heard(2)
                with pytest.raises(DNSBusy):
                    await resolver.a("n4.example.org")
                # Who goes away leaves the queue.
                tasks[2].cancel()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                tasks.append(group.create_task(resolver.a("n5.example.org")))
                for first in (0, 2):
                    await server.heard(first + 2)
                    for query in server.queries[first:]:
                        query.respond(query.response(f"{query.name}. 60 IN A 192.0.2.1"))
            assert sorted(server.names) == [f"n{number}.example.org" for number in (0, 1, 3, 5)]
            assert resolver.counters.busy == 1

    run(scenario())


def test_the_time_of_a_look_up_passes_while_it_waits_for_its_turn(run):
    async def scenario():
        async with (
            NameServer(lambda _: None) as server,
            Resolver([server.address], asked=1, timeout=0.2, tries=1) as resolver,
        ):
            names = [f"n{number}.example.org" for number in range(20)]
            began = time.monotonic()
            found = await asyncio.gather(*map(resolver.a, names), return_exceptions=True)
            assert time.monotonic() - began < 2
            assert {type(error) for error in found} == {DNSTimeout}
            assert len(server.queries) < 10

    run(scenario())


def test_a_failure_is_remembered_for_a_few_seconds(run, clock):
    async def scenario():
        async with NameServer() as server, Resolver([server.address], clock=clock) as resolver:
            server.answer = lambda query: query.response(rcode="SERVFAIL")
            for _ in range(2):
                with pytest.raises(DNSServerFailure, match=r"127\.0\.0\.1:\d+: .*SERVFAIL"):
                    await resolver.a("example.org")
            assert len(server.queries) == 1
            clock.advance(FAILURE_TTL + 0.1)
            server.answer = lambda query: query.response("example.org. 300 IN A 192.0.2.1")
            assert await resolver.a("example.org")

    run(scenario())


def test_a_server_that_refuses_says_so(run):
    async def scenario():
        async with NameServer() as server, Resolver([server.address]) as resolver:
            server.answer = lambda query: query.response(rcode="REFUSED")
            with pytest.raises(DNSRefused):
                await resolver.a("example.org")

    run(scenario())


def test_where_nobody_listens_a_look_up_fails_at_once_and_is_not_remembered(run):
    async def scenario():
        async with NameServer() as server:
            address = server.address
        async with Resolver([address]) as resolver:
            began = time.monotonic()
            for _ in range(5):
                with pytest.raises(DNSUnreachable, match=address):
                    await resolver.a("example.org")
            assert time.monotonic() - began < 1
            assert resolver.counters.cached == 0

    run(scenario())


def test_a_closed_resolver_says_so_and_holds_nothing(run):
    async def scenario():
        async with NameServer(lambda _: None) as server:
            async with Resolver([server.address]) as resolver:
                task = asyncio.create_task(resolver.a("example.org"))
                await server.heard(1)
            with pytest.raises(DNSError, match="closed"):
                await task
            with pytest.raises(DNSError, match="closed"):
                await resolver.a("example.org")
            assert sum(upstream.ports.count for upstream in resolver._upstreams) == 0

    run(scenario())


def test_a_resolver_may_be_made_before_the_loop_and_started_again(run):
    resolver = Resolver(["127.0.0.1:53"])

    async def scenario():
        async with resolver:
            with pytest.raises(RuntimeError):
                await resolver.start()
        async with resolver.lifespan():
            assert resolver.servers == ("127.0.0.1:53",)

    run(scenario())


def test_every_caller_gets_an_error_of_his_own(run):
    async def scenario():
        async with NameServer() as server, Resolver([server.address]) as resolver:
            server.answer = lambda query: query.response(rcode="SERVFAIL")
            errors = await asyncio.gather(
                *(resolver.a("example.org") for _ in range(3)), return_exceptions=True
            )
            assert len({id(error) for error in errors}) == 3

    run(scenario())


def test_so_many_wait_for_one_answer(run, monkeypatch):
    monkeypatch.setattr("preforkmx.dns.resolver.MAX_JOINED", 2)

    async def scenario():
        async with NameServer(lambda _: None) as server, Resolver([server.address]) as resolver:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(resolver.a("example.org")) for _ in range(2)]
                query = await server.heard(1)
                with pytest.raises(DNSBusy):
                    await resolver.a("example.org")
                query.respond(query.response("example.org. 300 IN A 192.0.2.1"))
            assert [len(task.result()) for task in tasks] == [1, 1]

    run(scenario())


def test_questions_leave_no_faster_than_a_servers_buffer_takes_them(run, monkeypatch):
    monkeypatch.setattr("preforkmx.dns.resolver.BURST", 10)
    monkeypatch.setattr("preforkmx.dns.resolver.WINDOW", 0.05)

    async def scenario():
        async with NameServer(lambda _: None) as server, Resolver([server.address]) as resolver:
            began = time.monotonic()
            tasks = [asyncio.create_task(resolver.a(f"n{n}.example.org")) for n in range(45)]
            await asyncio.sleep(0)
            assert resolver.counters.sent == 10
            # Who goes away is not asked for.
            await resolver.close()
            given_up = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(error, DNSError) for error in given_up), given_up
            await resolver.start()
            tasks = [asyncio.create_task(resolver.a(f"m{n}.example.org")) for n in range(45)]
            await server.heard(55)
            assert time.monotonic() - began >= 4 * 0.05 - 0.01  # uvloop rounds to milliseconds
            for query in server.queries:
                query.respond(query.response(f"{query.name}. 300 IN A 192.0.2.1"))
            assert len(await asyncio.gather(*tasks)) == 45

    run(scenario())


def test_what_is_known_is_told_without_waiting_and_what_failed_is_not(run):
    def answer(query):
        if query.name == "bad.example.org":
            return query.response(rcode="SERVFAIL")
        return query.response("example.org. 300 IN A 192.0.2.1")

    async def scenario():
        async with NameServer(answer) as server, Resolver([server.address]) as resolver:
            assert resolver.known("example.org", "A") is None
            found = await resolver.query("example.org", "A")
            assert resolver.known("Example.ORG.", "A") is found
            assert resolver.known("example.org", "MX") is None
            with pytest.raises(DNSServerFailure):
                await resolver.query("bad.example.org", "A")
            assert resolver.known("bad.example.org", "A") is None
            assert resolver.counters.cached == 1

    run(scenario())


def test_who_learns_of_an_answer_does_not_take_the_next_question_for_it_out_of_the_queue(run):
    async def scenario():
        async with (
            NameServer() as server,
            Resolver([server.address], asked=1, timeout=2) as resolver,
        ):
            # Nothing is kept: each question is a new one.
            server.add("a.example. 0 IN A 192.0.2.1", "b.example. 0 IN A 192.0.2.2")

            async def caller(then):
                await resolver.a("a.example")
                return await resolver.a(then)

            # The first takes the only place, the second waits for its turn, and behind them the
            # others learn of the answer to what was asked before.
            names = ["b.example", *["a.example"] * 3]
            async with asyncio.timeout(3):
                found = await asyncio.gather(*map(caller, names))
            a, b = (ip_address("192.0.2.1"),), (ip_address("192.0.2.2"),)
            assert found == [b, a, a, a]
            assert not resolver._flights
            assert not resolver._queue

    run(scenario())


def test_a_look_up_that_ends_while_it_is_sent_again_is_over(run, monkeypatch):
    async def scenario():
        async with (
            NameServer() as server,
            Resolver([server.address], timeout=0.2, tries=2) as resolver,
        ):
            server.answer = lambda _: None
            (upstream,) = resolver._upstreams
            send, places = upstream.ports.send, []

            def ends_it(flight, *, edns):
                if len(places) == 1:
                    flight.refused(upstream, "refused")
                places.append(send(flight, edns=edns))
                return places[-1]

            monkeypatch.setattr(upstream.ports, "send", ends_it)
            with pytest.raises(DNSUnreachable):
                await resolver.a("example.org")
            assert len(places) == 2
            assert not any(place._port.is_waited_at for place in places)
            assert not resolver._flights
            assert resolver._asked == 0
            server.answer = lambda query: query.response()
            assert await resolver.a("other.example.org") == ()

    run(scenario())
