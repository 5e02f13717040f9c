"""Servers that are slow, lie, truncate, are away, or never answer; and several of them."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from ipaddress import ip_address

import pytest
from name_server import NameServer, response, soa

from preforkmx.dns import Resolver, ports, tcp, upstream
from preforkmx.dns import resolver as resolver_module
from preforkmx.dns.counters import DNSCounters
from preforkmx.dns.servers import parse_server, system_servers
from preforkmx.errors import DNSServerFailure, DNSTimeout, DNSUnreachable

HERE = (ip_address("192.0.2.1"),)
RECORD = "example.org. 300 IN A 192.0.2.1"


def found(query):
    return query.response(f"{query.name}. 300 IN A 192.0.2.1")


def silent(_query):
    return None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_server_may_have_an_address_of_either_kind(run, host):
    async def scenario():
        async with NameServer(found, host) as server, Resolver([server.address]) as resolver:
            assert resolver.servers == (server.address,)
            assert await resolver.a("example.org") == HERE

    run(scenario())


@pytest.mark.parametrize(
    "text",
    ["", ":53", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:x",
     "127.0.0.1:-1", "::1", "::1:53", "[::1]", "[127.0.0.1]:53", "ns.example.org:53", "[::1]:٥٣"],
)  # fmt: skip
def test_a_server_is_an_address_and_a_port(text):
    with pytest.raises(ValueError, match="is no address"):
        parse_server(text)


def test_the_systems_servers_stand_in_resolv_conf(tmp_path):
    file = tmp_path / "resolv.conf"
    file.write_text(
        "# nameserver 192.0.2.9\nsearch example.org\nnameserver 192.0.2.1\n"
        "nameserver  2001:db8::1 \nnameserver fe80::1%lo\nnameserver ns.example.org\nnameserver\n"
    )
    assert [server.text for server in system_servers(file)] == [
        "192.0.2.1:53",
        "[2001:db8::1]:53",
        "[fe80::1%lo]:53",
    ]


@pytest.mark.parametrize("content", [None, "", "options ndots:1\n", b"\xff\xfe\0nameserver"])
def test_without_a_server_in_resolv_conf_the_machines_own_is_asked(tmp_path, content):
    file = tmp_path / "resolv.conf"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert [server.text for server in system_servers(file)] == ["127.0.0.1:53"]


def test_at_most_eight_servers_are_used(tmp_path):
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 192.0.2.1\n" * 20)
    assert len(system_servers(file)) == 8
    with pytest.raises(ValueError, match="at most 8"):
        Resolver(["127.0.0.1:53"] * 9)


def test_a_server_that_never_answers_costs_the_deadline(run):
    async def scenario():
        async with (
            NameServer(silent) as server,
            Resolver([server.address], timeout=0.4) as resolver,
        ):
            began = time.monotonic()
            with pytest.raises(DNSTimeout, match=rf"no answer from {server.address} within 0\.4 s"):
                await resolver.a("example.org")
            assert 0.39 <= time.monotonic() - began < 2  # uvloop rounds to milliseconds
            assert len(server.queries) == 2
            assert resolver.counters.timeouts == 2

    run(scenario())


def test_many_who_are_never_answered_cost_their_deadline_and_nobody_else(run):
    async def scenario():
        async with NameServer() as server, Resolver([server.address], timeout=2) as resolver:
            server.answer = lambda query: None if query.name.startswith("x") else found(query)
            began = time.monotonic()
            slow = [asyncio.create_task(resolver.a(f"x{n}.example.org")) for n in range(200)]
            for number in range(100):
                assert await resolver.a(f"n{number}.example.org") == HERE
            assert not any(task.done() for task in slow)
            results = await asyncio.gather(*slow, return_exceptions=True)
            assert {type(result) for result in results} == {DNSTimeout}
            assert time.monotonic() - began < 4
            assert not resolver._flights
            assert not resolver._outbox
            assert sum(each.ports.count for each in resolver._upstreams) <= ports.PORTS

    run(scenario())


def test_a_lost_datagram_is_sent_again(run):
    async def scenario():
        async with NameServer() as server, Resolver([server.address], timeout=0.6) as resolver:
            server.answer = lambda query: found(query) if len(server.queries) == 2 else None
            assert await resolver.a("example.org") == HERE
            first, second = server.queries
            assert first.wire != second.wire

    run(scenario())


def test_a_late_answer_to_the_first_try_counts_while_the_second_goes_on(run):
    async def scenario():
        async with NameServer(silent) as server, Resolver([server.address], timeout=2) as resolver:
            task = asyncio.create_task(resolver.a("example.org"))
            await server.heard(2)
            server.queries[0].respond(found(server.queries[0]))
            assert await task == HERE

    run(scenario())


def test_an_answer_that_comes_after_the_deadline_is_late_and_does_no_harm(run, until):
    async def scenario():
        async with (
            NameServer(silent) as server,
            Resolver([server.address], timeout=0.1) as resolver,
        ):
            with pytest.raises(DNSTimeout):
                await resolver.a("example.org")
            for query in server.queries:
                query.respond(found(query))
            await until(lambda: resolver.counters.late == 2)
            assert resolver.counters.wrong == 0

    run(scenario())


def wrong_id(query):
    wire = found(query)
    return bytes([wire[0] ^ 1]) + wire[1:]


def wrong_name(query):
    return response(query.wire, RECORD, name="example.com")


def wrong_type(query):
    wire = bytearray(found(query))
    at = wire.index(b"\0\0\1\0\1") + 2
    wire[at] = 28
    return bytes(wire)


def a_query(query):
    return query.wire


def without_a_question(query):
    wire = found(query)
    return wire[:4] + b"\0\0" + wire[6:12] + wire[len(query.wire) - 11 :]


@pytest.mark.parametrize(
    "forged",
    [
        wrong_id, wrong_name, wrong_type, a_query, without_a_question,
        lambda query: query.wire[:1], lambda query: query.wire[:11],
    ],
)  # fmt: skip
def test_an_answer_to_what_was_not_asked_is_counted_and_not_taken(run, forged):
    async def scenario():
        async with NameServer(silent) as server, Resolver([server.address]) as resolver:
            server.answer = lambda query: [forged(query), found(query)]
            assert await resolver.a("example.org") == HERE
            assert resolver.counters.wrong == 1

    run(scenario())


def test_an_answer_from_elsewhere_does_not_arrive(run):
    async def scenario():
        async with (
            NameServer(silent) as server,
            NameServer(silent) as other,
            Resolver([server.address], timeout=5) as resolver,
        ):
            task = asyncio.create_task(resolver.a("example.org"))
            query = await server.heard(1)
            other._transport.sendto(
                query.response("example.org. 300 IN A 198.51.100.66"), query.source
            )
            await asyncio.sleep(0.05)
            query.respond(found(query))
            assert await task == HERE
            assert resolver.counters.wrong == 0

    run(scenario())


def test_where_somebody_guesses_answers_the_question_goes_over_tcp(run):
    async def scenario():
        async with NameServer() as server, Resolver([server.address]) as resolver:

            def guess(query):
                if query.tcp:
                    return found(query)
                lie = query.response("example.org. 300 IN A 198.51.100.66")
                used = int.from_bytes(lie[:2])
                return [
                    ((used + 1 + number) % 65536).to_bytes(2) + lie[2:]
                    for number in range(ports.MAX_WRONG)
                ]

            server.answer = guess
            assert await resolver.a("example.org") == HERE
            assert [query.tcp for query in server.queries] == [False, True]
            assert resolver.counters.wrong == ports.MAX_WRONG
            # That port is closed.
            assert resolver._upstreams[0].ports.count == 0

    run(scenario())


def test_ids_and_ports_are_drawn_at_random_and_ports_do_not_stay(run):
    async def scenario():
        async with NameServer(found) as server, Resolver([server.address]) as resolver:
            for number in range(1000):
                await resolver.a(f"n{number}.example.org")
            ids = [int.from_bytes(query.wire[:2]) for query in server.queries]
            sources = [query.source[1] for query in server.queries]
            assert len(set(ids)) > 950
            assert max(ids) - min(ids) > 60_000
            # No id is twice on one port.
            assert len(set(zip(ids, sources, strict=True))) == 1000
            assert len(set(sources[:50])) > 4
            assert max(sources.count(source) for source in set(sources)) <= ports.MAX_QUESTIONS
            assert resolver.counters.ports >= 1000 / ports.MAX_QUESTIONS
            assert sum(each.ports.count for each in resolver._upstreams) <= ports.PORTS

    run(scenario())


def test_a_replaced_port_goes_on_waiting_for_its_answers_within_a_bound(run, monkeypatch):
    monkeypatch.setattr(ports, "MAX_QUESTIONS", 2)

    async def scenario():
        async with NameServer(silent) as server, Resolver([server.address]) as resolver:
            tasks = [asyncio.create_task(resolver.a(f"n{n}.example.org")) for n in range(150)]
            await server.heard(150)
            there = resolver._upstreams[0].ports
            assert there.count == ports.PORTS + ports.MAX_RETIRED
            for query in server.queries:
                query.respond(found(query))
            assert {await task for task in tasks} == {HERE}
            assert there.count <= ports.PORTS

    run(scenario())


def test_a_port_is_replaced_after_its_time(run, monkeypatch):
    monkeypatch.setattr(ports, "MAX_AGE", 0)

    async def scenario():
        async with NameServer(found) as server, Resolver([server.address]) as resolver:
            for number in range(20):
                await resolver.a(f"n{number}.example.org")
            assert len({query.source for query in server.queries}) == 20

    run(scenario())


def test_a_truncated_answer_is_asked_for_over_tcp(run):
    async def scenario():
        async with NameServer() as server, Resolver([server.address]) as resolver:
            text = "".join(f' "{n:03}{"x" * 200}"' for n in range(40))

            def answer(query):
                if not query.tcp:
                    return query.response(truncated=True)
                return query.response(f"example.org. 300 IN TXT {text}")

            server.answer = answer
            (record,) = await resolver.txt("example.org")
            assert len(record) == 40 * 203
            assert [query.tcp for query in server.queries] == [False, True]
            assert resolver.counters.tcp == 1

    run(scenario())


def _giant(query):
    if not query.tcp:
        return query.response(truncated=True)
    return query.response(*(f'example.org. 300 IN TXT "{n:03}{"x" * 250}"' for n in range(70)))


def _half(query):
    if query.tcp:
        raise ConnectionResetError
    return query.response(truncated=True)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (_giant, "too long"),
        (_half, "over TCP"),
        (lambda query: query.response(truncated=True), "truncated over TCP"),
        (lambda q: wrong_id(q) if q.tcp else q.response(truncated=True), "something else"),
        (lambda q: wrong_name(q) if q.tcp else q.response(truncated=True), "something else"),
    ],
)  # fmt: skip
def test_what_is_wrong_over_tcp_is_a_failure(run, until, answer, reason):
    async def scenario():
        async with NameServer(answer) as server, Resolver([server.address]) as resolver:
            with pytest.raises(DNSServerFailure, match=reason):
                await resolver.txt("example.org")
            await until(lambda: not resolver._tasks)

    run(scenario())


def test_a_server_that_is_silent_over_tcp_costs_the_deadline_and_leaves_no_connection(
    run, until, monkeypatch
):
    open_now, most, ask = 0, 0, tcp.ask

    async def counted(*arguments):
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        try:
            return await ask(*arguments)
        finally:
            open_now -= 1

    monkeypatch.setattr(tcp, "ask", counted)

    async def scenario():
        async with (
            NameServer(lambda q: None if q.tcp else q.response(truncated=True)) as server,
            Resolver([server.address], timeout=0.4) as resolver,
        ):
            began = time.monotonic()
            results = await asyncio.gather(
                *(resolver.txt(f"n{n}.example.org") for n in range(200)), return_exceptions=True
            )
            assert {type(result) for result in results} == {DNSTimeout}
            assert time.monotonic() - began < 2
            assert most == resolver_module.MAX_TCP
            await until(lambda: not resolver._tasks)
            assert open_now == 0

    run(scenario())


def test_edns_is_asked_for_and_left_out_for_a_server_that_does_not_know_it(run):
    async def scenario():
        async with NameServer() as server, Resolver([server.address]) as resolver:
            server.answer = lambda q: q.response(rcode="FORMERR") if q.edns else found(q)
            for name in ("example.org", "example.com"):
                assert await resolver.a(name) == HERE
            assert [query.edns for query in server.queries] == [True, False, False]
            assert server.queries[0].message.payload == 1232

    run(scenario())


def test_an_old_servers_error_need_not_repeat_the_question(run):
    async def scenario():
        async with NameServer() as server, Resolver([server.address]) as resolver:
            server.answer = lambda q: q.wire[:2] + b"\x81\x81" + bytes(8) if q.edns else found(q)
            assert await resolver.a("example.org") == HERE

    run(scenario())


def test_a_server_that_never_knows_the_format_is_not_asked_for_ever(run):
    async def scenario():
        async with NameServer() as server, Resolver([server.address]) as resolver:
            server.answer = lambda query: query.response(rcode="FORMERR")
            with pytest.raises(DNSServerFailure, match="FORMERR"):
                await resolver.a("example.org")
            assert len(server.queries) == 2

    run(scenario())


def _with_upper_bits(query, lower):
    """A response whose error stands in the OPT record, too (RFC 6891 section 6.1.3)."""
    wire = query.response(rcode=lower)
    at = wire.rindex(b"\0\0\x29") + 5
    return wire[:at] + b"\1" + wire[at + 1 :]


def test_the_upper_bits_of_an_error_are_seen(run):
    async def scenario():
        async with NameServer() as server, Resolver([server.address]) as resolver:
            # RFC 6891 section 9: BADVERS, whose lower bits are those of NOERROR.
            server.answer = lambda q: _with_upper_bits(q, "NOERROR") if q.edns else found(q)
            assert await resolver.a("example.org") == HERE
            assert [query.edns for query in server.queries] == [True, False]
        async with NameServer() as server, Resolver([server.address]) as resolver:
            server.answer = lambda query: _with_upper_bits(query, "NXDOMAIN")
            with pytest.raises(DNSServerFailure, match="RCODE 19"):
                await resolver.a("example.org")

    run(scenario())


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED", "NOTIMP", "NXRRSET"])
def test_another_server_is_asked_at_once_after_an_error(run, rcode):
    async def scenario():
        async with NameServer() as bad, NameServer(found) as good:
            bad.answer = lambda query: query.response(rcode=rcode)
            async with Resolver([bad.address, good.address], tries=1) as resolver:
                assert await resolver.a("example.org") == HERE
                assert resolver.counters.timeouts == 0

    run(scenario())


def test_another_server_is_asked_where_nobody_listens(run):
    async def scenario():
        async with NameServer() as away, NameServer() as also_away:
            addresses = [away.address, also_away.address]
        async with AsyncExitStack() as stack:
            good = await stack.enter_async_context(NameServer(found))
            servers = [*addresses, good.address]
            resolver = await stack.enter_async_context(Resolver(servers, tries=1))
            assert await resolver.a("example.org") == HERE
            assert resolver.counters.timeouts == 0

    run(scenario())


def test_a_server_that_does_not_answer_is_left_out_for_a_while(run, monkeypatch, caplog):
    monkeypatch.setattr(upstream, "FIRST_REST", 60)
    monkeypatch.setattr(upstream, "LONGEST_REST", 60)

    async def scenario():
        async with NameServer(silent) as first, NameServer(found) as second:
            servers = [first.address, second.address]
            async with Resolver(servers, timeout=0.4) as resolver:
                for number in range(10):
                    assert await resolver.a(f"n{number}.example.org") == HERE
            assert len(first.queries) == upstream.MAX_MISSED
            assert len(second.queries) == 10
            return first.address

    with caplog.at_level(logging.WARNING):
        address = run(scenario())
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"DNS server {address} does not answer"]


def test_the_rest_of_a_server_grows_and_one_question_finds_out_whether_it_is_back(caplog):
    caplog.set_level(logging.WARNING)
    server = upstream.Upstream(parse_server("192.0.2.1:53"), DNSCounters())
    for number in range(2):
        server.missed(number, number + 0.5)
        assert server.resting_until == 0
    # What it answered after it was asked shows that it is there.
    server.answered(3.0)
    server.missed(2.9, 4.0)
    now = 10.0
    for _ in range(2):
        server.missed(now, now)
    rests = []
    for _ in range(7):
        server.missed(now, now)
        rests.append(server.resting_until - now)
        now = server.resting_until
        # The one that finds out keeps the others away as long.
        server.chosen(now)
        assert server.resting_until - now == rests[-1]
    assert rests == [1, 2, 4, 8, 16, 30, 30]
    server.answered(now)
    assert server.resting_until == 0
    assert [record.getMessage() for record in caplog.records] == [
        "DNS server 192.0.2.1:53 does not answer",
        "DNS server 192.0.2.1:53 answers again",
    ]


def test_names_that_nobody_answers_do_not_make_a_server_a_bad_one(run):
    async def scenario():
        async with NameServer() as first, NameServer(silent) as second:
            first.answer = lambda query: None if query.name.startswith("x") else found(query)
            addresses = [first.address, second.address]
            async with Resolver(addresses, timeout=0.2, tries=1) as resolver:
                for number in range(6):
                    slow = asyncio.create_task(resolver.a(f"x{number}.example.org"))
                    await asyncio.sleep(0.01)
                    assert await resolver.a(f"n{number}.example.org") == HERE
                    with pytest.raises(DNSTimeout):
                        await slow
                assert not second.queries

    run(scenario())


def test_a_malformed_answer_is_a_failure_of_that_server(run):
    async def scenario():
        async with NameServer() as bad, NameServer(found) as good:
            bad.answer = lambda query: found(query)[:-1]
            async with Resolver([bad.address, good.address]) as resolver:
                assert await resolver.a("example.org") == HERE
                assert resolver.counters.malformed == 1
            async with Resolver([bad.address]) as resolver:
                with pytest.raises(DNSServerFailure):
                    await resolver.a("example.org")

    run(scenario())


def test_a_server_that_starts_again_is_asked_again(run):
    async def scenario():
        async with NameServer(found) as server:
            resolver = Resolver([server.address])
            await resolver.start()
            assert await resolver.a("a.example.org") == HERE
        for number in range(20):
            with pytest.raises(DNSUnreachable):
                await resolver.a(f"b{number}.example.org")
        async with NameServer(found, port=server.port):
            assert await resolver.a("b0.example.org") == HERE
            await resolver.close()

    run(scenario())


def test_nothing_of_a_negative_answer_is_taken_for_a_record(run):
    async def scenario():
        async with NameServer() as server, Resolver([server.address]) as resolver:
            server.answer = lambda query: query.response(
                RECORD, rcode="NXDOMAIN", authority=[soa("example.org")]
            )
            answer = await resolver.query("example.org", "A")
            assert (answer.records, answer.nxdomain) == ((), True)

    run(scenario())


def test_a_late_error_of_one_server_does_not_end_the_try_with_another(run):
    async def scenario():
        async with NameServer(silent) as first, NameServer(silent) as second:
            servers = [first.address, second.address]
            async with Resolver(servers, timeout=2) as resolver:
                task = asyncio.create_task(resolver.a("example.org"))
                late = await first.heard(1)
                query = await second.heard(1)
                late.respond(late.response(rcode="SERVFAIL"))
                await asyncio.sleep(0.05)
                assert not task.done()
                assert len(second.queries) == 1
                query.respond(found(query))
                assert await task == HERE

    run(scenario())
