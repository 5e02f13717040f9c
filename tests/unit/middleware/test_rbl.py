"""Block lists, as a session meets them; the lists are scripted."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from scripted_lists import ScriptedLists

from preforkmx import Server
from preforkmx.body import whole
from preforkmx.context import Context
from preforkmx.errors import DNSBusy, DNSError, DNSNameError, DNSServerFailure, SMTPError
from preforkmx.middleware import RBL, DNSList, Greylist, check_connection, rbl_listings
from preforkmx.middleware.rbl_health import ERROR_SECONDS, MAX_FAILED, REST_SECONDS
from preforkmx.middleware.rbl_lookup import MAX_CODES, MAX_TEXT, harmless
from preforkmx.middleware.verdicts import ALLOW_LISTED
from preforkmx.model import Envelope, Peer, ProxyInfo
from preforkmx.testing import Client, Recorder, running

ZEN, OTHER, ALLOW, NAMES = "zen.example.org", "bl.example.net", "wl.example.org", "dbl.example.org"
CLIENT = "192.0.2.1"
MESSAGE = b"Subject: hello\r\n\r\nhello\r\n"


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def lists():
    return ScriptedLists()


@pytest.fixture
def clock():
    return Clock()


def peer(address=CLIENT, **more):
    return Peer(
        address=None if address is None else ip_address(address),
        port=40000,
        server_name="mx.example.com",
        listener="127.0.0.1:25",
        **more,
    )


PEER = peer()


def refused(run, check, *arguments):
    with pytest.raises(SMTPError) as caught:
        run(check(*arguments))
    return str(caught.value)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def block(zone=ZEN, **more):
    return DNSList(zone=zone, **more)


def domains(zone=NAMES, **more):
    return DNSList(zone=zone, kind="domain", **more)


# --- one list ---------------------------------------------------------------------------------


def test_a_listed_client_is_refused_with_the_lists_name_and_text(run, lists):
    rbl = RBL([ZEN], resolver=lists)
    lists.lists(CLIENT, ZEN)
    lists.texts["1.2.0.192.zen.example.org"] = (b"https://example.org/?q=192.0.2.1", b"second")
    assert refused(run, rbl.connection_check, Context(), PEER) == (
        "554 5.7.1 192.0.2.1 is listed by zen.example.org: https://example.org/?q=192.0.2.1"
    )


def test_a_client_that_no_list_knows_passes_and_no_text_is_asked_for(run, lists):
    rbl = RBL([ZEN, OTHER], resolver=lists)
    ctx = run(rbl.connection_check(Context(), PEER))
    assert rbl_listings(ctx) == ()
    assert sorted(lists.asked) == ["1.2.0.192.bl.example.net", "1.2.0.192.zen.example.org"]


def test_an_ipv6_client_is_looked_for_by_its_nibbles_and_a_mapped_one_as_ipv4(run, lists):
    rbl = RBL([ZEN], resolver=lists)
    lists.lists("2001:db8::1", ZEN)
    assert refused(run, rbl.connection_check, Context(), peer("2001:db8::1")).startswith(
        "554 5.7.1 2001:db8::1 is listed"
    )
    assert lists.asked[0] == "1" + ".0" * 23 + ".8.b.d.0.1.0.0.2.zen.example.org"
    lists.lists(CLIENT, ZEN)
    assert "5.7.1 192.0.2.1 is" in refused(
        run, rbl.connection_check, Context(), peer("::ffff:192.0.2.1")
    )


@pytest.mark.parametrize(
    ("answer", "counts"),
    [
        (("127.0.0.2",), True),
        (("127.0.0.5",), True),
        (("127.0.0.3", "127.0.0.7"), True),
        (("127.0.0.3",), False),
        (("127.0.0.8",), False),
        (("192.0.2.2",), False),
        (("203.0.113.5", "127.0.0.2"), True),
    ],
)
def test_only_the_configured_codes_count(run, lists, answer, counts):
    rbl = RBL([block(codes=("127.0.0.2", "127.0.0.4-127.0.0.7"))], resolver=lists)
    lists.lists(CLIENT, ZEN, *answer)
    if counts:
        refused(run, rbl.connection_check, Context(), PEER)
    else:
        assert rbl_listings(run(rbl.connection_check(Context(), PEER))) == ()


def test_the_codes_of_one_zone_may_have_weights_of_their_own(run, lists):
    hard, soft = block(codes=("127.0.0.2",), weight=3), block(codes=("127.0.0.10",))
    rbl = RBL([hard, soft], threshold=2, resolver=lists)
    lists.lists(CLIENT, ZEN, "127.0.0.10")
    lists.lists("192.0.2.2", ZEN, "127.0.0.2")
    ctx = run(rbl.connection_check(Context(), PEER))
    assert [(each.codes, each.weight) for each in rbl_listings(ctx)] == [
        ((IPv4Address("127.0.0.10"),), 1)
    ]
    assert lists.asked.count("1.2.0.192.zen.example.org") == 1
    refused(run, rbl.connection_check, Context(), peer("192.0.2.2"))


def test_an_answer_with_hundreds_of_codes_is_looked_at_in_part(run, lists):
    rbl = RBL([ZEN], threshold=1, on_fail="mark", resolver=lists)
    lists.lists(CLIENT, ZEN, *(f"127.0.1.{n}" for n in range(250)))
    ctx = run(rbl.connection_check(Context(), PEER))
    [listing] = rbl_listings(ctx)
    assert len(listing.codes) == MAX_CODES


# --- the text of a refusal ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b"", ""),
        (b" \t listed  here ", "listed here"),
        (b"one\r\n250 2.0.0 two\x00\x7f\x1b[31m", "one 250 2.0.0 two [31m"),
        (b"caf\xc3\xa9 \xe2\x80\xae", "caf?? ???"),
        (b"x" * 200, "x" * 200),
        (b"x" * 201, "x" * 197 + "..."),
        (b"x" * 16_000, "x" * 197 + "..."),
        (b" " * 16_000, ""),
    ],
)
def test_a_lists_text_becomes_one_short_line_of_ascii(text, shown):
    assert harmless(text) == shown
    assert len(harmless(text)) <= MAX_TEXT


@pytest.mark.parametrize("text", [(), (b"\r\n",), DNSServerFailure("no"), None])
def test_without_a_text_the_refusal_names_the_list(run, lists, text):
    rbl = RBL([ZEN], resolver=lists, deadline=0.05)
    lists.lists(CLIENT, ZEN)
    lists.texts["1.2.0.192.zen.example.org"] = asyncio.Event() if text is None else text
    assert refused(run, rbl.connection_check, Context(), PEER) == (
        "554 5.7.1 192.0.2.1 is listed by zen.example.org"
    )


def test_a_reason_of_the_sites_own_is_told_without_asking_and_a_name_hides_the_zone(run, lists):
    keyed = block("s3cret.zen.example.org", name="zen", reason="see https://example.com/{address}")
    rbl = RBL([keyed], resolver=lists)
    lists.lists(CLIENT, keyed.zone)
    assert refused(run, rbl.connection_check, Context(), PEER) == (
        "554 5.7.1 192.0.2.1 is listed by zen: see https://example.com/192.0.2.1"
    )
    assert not [name for name in lists.asked if name.startswith("TXT")]


def test_braces_in_a_reason_are_no_format(run, lists):
    rbl = RBL([block(reason="{0} {address.__class__} {")], resolver=lists)
    lists.lists(CLIENT, ZEN)
    assert refused(run, rbl.connection_check, Context(), PEER).endswith(
        ": {0} {address.__class__} {"
    )


def test_the_list_that_weighs_most_is_named(run, lists):
    rbl = RBL([block(), block(OTHER, weight=2)], threshold=3, resolver=lists)
    lists.lists(CLIENT, ZEN)
    lists.lists(CLIENT, OTHER)
    assert "listed by bl.example.net" in refused(run, rbl.connection_check, Context(), PEER)


# --- several lists -------------------------------------------------------------------------------


def test_weights_add_up_to_the_threshold(run, lists):
    rbl = RBL([block(weight=2), block(OTHER, weight=2)], threshold=3, resolver=lists)
    lists.lists(CLIENT, ZEN)
    lists.lists("192.0.2.2", ZEN)
    lists.lists("192.0.2.2", OTHER)
    run(rbl.connection_check(Context(), PEER))
    refused(run, rbl.connection_check, Context(), peer("192.0.2.2"))


def test_an_allow_list_outweighs_a_block_list(run, lists):
    rbl = RBL([block(), DNSList(zone=ALLOW, weight=-1)], resolver=lists)
    lists.lists(CLIENT, ZEN)
    lists.lists(CLIENT, ALLOW)
    assert run(rbl.connection_check(Context(), PEER)) is not None


def test_all_lists_are_asked_at_once(run, lists):
    async def scenario():
        rbl = RBL([ZEN, OTHER], threshold=2, resolver=lists)
        first, second = lists.holds(CLIENT, ZEN), lists.holds(CLIENT, OTHER)
        check = asyncio.create_task(rbl.connection_check(Context(), PEER))
        await lists.heard("1.2.0.192.zen.example.org")
        await lists.heard("1.2.0.192.bl.example.net")
        assert not check.done()
        first.set()
        second.set()
        assert await check

    run(scenario())


def test_what_cannot_cross_the_threshold_any_more_is_not_waited_for(run, lists):
    """The allow list cannot lift a refusal of three, and two block lists reach two together."""

    async def scenario():
        rbl = RBL([block(weight=5), DNSList(zone=ALLOW, weight=-1)], resolver=lists)
        lists.lists(CLIENT, ZEN)
        lists.never_answers(CLIENT, ALLOW)
        with pytest.raises(SMTPError):
            await rbl.connection_check(Context(), PEER)
        rbl = RBL([block(weight=2), block(OTHER)], threshold=2, resolver=lists)
        lists.never_answers("192.0.2.9", OTHER)
        assert await rbl.connection_check(Context(), peer("192.0.2.9"))

    began = time.monotonic()
    run(scenario())
    assert time.monotonic() - began < 3


def test_an_allow_list_that_may_lift_a_refusal_is_waited_for(run, lists):
    async def scenario():
        rbl = RBL([block(), DNSList(zone=ALLOW, weight=-1)], resolver=lists)
        lists.lists(CLIENT, ZEN)
        held = lists.holds(CLIENT, ALLOW, "127.0.0.2")
        check = asyncio.create_task(rbl.connection_check(Context(), PEER))
        await lists.heard("1.0.0.127.zen.example.org")
        await asyncio.sleep(0.01)
        assert not check.done()
        held.set()
        assert await check

    run(scenario())


def test_a_session_that_ends_while_lists_are_asked_leaves_nothing_behind(run, lists):
    async def scenario():
        rbl = RBL([ZEN, OTHER], resolver=lists)
        lists.never_answers(CLIENT, ZEN)
        lists.never_answers(CLIENT, OTHER)
        check = asyncio.create_task(rbl.connection_check(Context(), PEER))
        await lists.heard("1.2.0.192.bl.example.net")
        check.cancel()
        with pytest.raises(asyncio.CancelledError):
            await check

    run(scenario())


# --- lists that fail, lie and are silent ---------------------------------------------------------


@pytest.mark.parametrize(
    "error", [DNSServerFailure("SERVFAIL"), DNSBusy("busy"), DNSNameError("no name")]
)
def test_a_list_that_fails_lists_nobody_and_the_others_count(run, lists, error):
    rbl = RBL([ZEN, OTHER], resolver=lists)
    lists.fails(CLIENT, ZEN, error)
    assert run(rbl.connection_check(Context(), PEER))
    lists.lists(CLIENT, OTHER)
    assert "bl.example.net" in refused(run, rbl.connection_check, Context(), PEER)


def test_a_silent_list_costs_the_deadline_once_and_is_left_alone_after_a_few(
    run, lists, clock, caplog
):
    async def scenario():
        rbl = RBL([ZEN, OTHER], resolver=lists, deadline=0.05, clock=clock)
        for number in range(MAX_FAILED):
            client = f"192.0.2.{number + 1}"
            lists.never_answers(client, ZEN)
            began = time.monotonic()
            assert await rbl.connection_check(Context(), peer(client))
            assert 0.04 <= time.monotonic() - began < 2
        lists.never_answers("192.0.2.99", ZEN)
        assert await rbl.connection_check(Context(), peer("192.0.2.99"))
        assert lists.zones("192.0.2.99", ZEN, OTHER) == [OTHER]
        # One finds out whether it is back, and others are not kept by it.
        clock.now += REST_SECONDS
        held = lists.holds("192.0.2.100", ZEN)
        probe = asyncio.create_task(rbl.connection_check(Context(), peer("192.0.2.100")))
        await lists.heard("100.2.0.192.zen.example.org")
        assert await rbl.connection_check(Context(), peer("192.0.2.101"))
        assert lists.zones("192.0.2.101", ZEN, OTHER) == [OTHER]
        held.set()
        assert await probe
        lists.lists("192.0.2.102", ZEN)
        with pytest.raises(SMTPError):
            await rbl.connection_check(Context(), peer("192.0.2.102"))

    run(scenario())
    first, second = warnings(caplog)
    assert first == (
        "list zen.example.org does not answer (it is silent): it lists nobody, and is asked again "
        "in 30 s"
    )
    assert second == "list zen.example.org answers again"


def test_what_the_resolver_remembers_says_nothing_of_a_silent_list(run, lists, clock):
    async def scenario():
        rbl = RBL([ZEN], resolver=lists, deadline=0.01, clock=clock)
        await rbl.connection_check(Context(), peer("192.0.2.200"))
        for number in range(MAX_FAILED):
            client = f"192.0.2.{number + 1}"
            lists.never_answers(client, ZEN)
            await rbl.connection_check(Context(), peer(client))
            # Known from before.
            await rbl.connection_check(Context(), peer("192.0.2.200"))
        await rbl.connection_check(Context(), peer("192.0.2.99"))
        assert lists.zones("192.0.2.99", ZEN) == []

    run(scenario())


def test_a_failure_that_the_resolver_remembers_is_counted_once(run, lists):
    async def scenario():
        rbl = RBL([ZEN], resolver=lists)
        lists.fails(CLIENT, ZEN, DNSServerFailure("SERVFAIL"))
        for _ in range(2 * MAX_FAILED):
            await rbl.connection_check(Context(), PEER)
        await rbl.connection_check(Context(), peer("192.0.2.99"))
        assert lists.zones("192.0.2.99", ZEN) == [ZEN]

    run(scenario())


def test_an_early_end_says_nothing_of_the_lists_that_were_not_waited_for(run, lists, clock):
    async def scenario():
        rbl = RBL([block(weight=5), DNSList(zone=ALLOW, weight=-1)], resolver=lists, clock=clock)
        for number in range(2 * MAX_FAILED):
            client = f"192.0.2.{number + 1}"
            lists.lists(client, ZEN)
            lists.never_answers(client, ALLOW)
            with pytest.raises(SMTPError):
                await rbl.connection_check(Context(), peer(client))
            assert lists.zones(client, ALLOW) == [ALLOW]

    run(scenario())


def test_a_list_that_answers_with_its_error_is_not_asked_for_ten_minutes(run, lists, clock, caplog):
    async def scenario():
        rbl = RBL([ZEN], resolver=lists, clock=clock)
        lists.lists(CLIENT, ZEN, "127.0.0.2", "127.255.255.254")
        assert rbl_listings(await rbl.connection_check(Context(), PEER)) == ()
        clock.now += ERROR_SECONDS - 1
        lists.lists("192.0.2.2", ZEN)
        await rbl.connection_check(Context(), peer("192.0.2.2"))
        assert lists.zones("192.0.2.2", ZEN) == []
        clock.now += 1
        lists.lists("192.0.2.3", ZEN, "127.255.255.255")
        await rbl.connection_check(Context(), peer("192.0.2.3"))
        assert lists.zones("192.0.2.3", ZEN) == [ZEN]
        await rbl.connection_check(Context(), peer("192.0.2.2"))
        assert lists.zones("192.0.2.2", ZEN) == []
        clock.now += ERROR_SECONDS
        with pytest.raises(SMTPError):
            await rbl.connection_check(Context(), peer("192.0.2.2"))

    run(scenario())
    first, second = warnings(caplog)
    assert first == (
        "list zen.example.org answers with the error 127.255.255.254: it lists nobody, and is "
        "asked again in 600 s"
    )
    assert second == "list zen.example.org answers again"


@pytest.mark.parametrize("kind", ["ip", "domain"])
def test_a_list_that_lists_everybody_lists_nobody(run, lists, kind, caplog):
    """RFC 5782 section 5: no list has 127.0.0.1, and no list of domains INVALID."""
    rbl = RBL([DNSList(zone=ZEN, kind=kind)], resolver=lists)
    for subject in (CLIENT, "127.0.0.1", "client.example.net", "invalid"):
        lists.lists(subject, ZEN)
    assert run(rbl.helo_check(Context(), peer(helo_name="client.example.net")))
    assert "lists everybody" in caplog.text


def test_that_a_list_does_not_list_everybody_is_looked_at_once_an_hour(run, lists, clock):
    async def scenario():
        rbl = RBL([ZEN], resolver=lists, clock=clock)
        for number in range(3):
            lists.lists(f"192.0.2.{number}", ZEN)
            with pytest.raises(SMTPError):
                await rbl.connection_check(Context(), peer(f"192.0.2.{number}"))
        assert lists.asked.count("1.0.0.127.zen.example.org") == 1
        clock.now += 3600
        with pytest.raises(SMTPError):
            await rbl.connection_check(Context(), peer("192.0.2.0"))
        assert lists.asked.count("1.0.0.127.zen.example.org") == 2

    run(scenario())


# --- who is not asked about ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "client",
    [
        peer(None),
        peer("10.1.2.3"),
        peer("::1"),
        peer("fd00::1"),
        peer("198.51.100.7"),
        peer(username="joe"),
        peer(proxy=ProxyInfo(version=2, local=True)),
    ],
    ids=["unix", "private", "loopback", "fd00", "allow", "authenticated", "health check"],
)
def test_who_is_exempt_is_not_asked_about(run, lists, client):
    rbl = RBL([ZEN], resolver=lists, allow=[ip_network("198.51.100.0/24")])
    assert run(rbl.connection_check(Context(), client)) is None
    assert run(rbl.sender_check(Context(), client, "joe@example.org")) is None
    assert lists.asked == []


def test_private_networks_are_asked_about_when_told_to(run, lists):
    rbl = RBL([ZEN], resolver=lists, exempt_private=False)
    lists.lists("10.1.2.3", ZEN)
    refused(run, rbl.connection_check, Context(), peer("10.1.2.3"))


# --- names ----------------------------------------------------------------------------------------


def test_the_helo_name_and_the_senders_domain_are_looked_for_in_lists_of_domains(run, lists):
    rbl = RBL([domains()], resolver=lists)
    lists.lists("bad.example.net", NAMES, "127.0.1.2")
    assert "554 5.7.1 bad.example.net is listed by dbl.example.org" in refused(
        run, rbl.helo_check, Context(), peer(helo_name="BAD.example.net.")
    )
    good = peer(helo_name="good.example.net")
    ctx = run(rbl.helo_check(Context(), good))
    assert "bad.example.net is" in refused(run, rbl.sender_check, ctx, good, "joe@Bad.Example.Net")
    assert run(rbl.sender_check(ctx, good, "")) is None


@pytest.mark.parametrize(
    "name",
    ["", "localhost", "[192.0.2.1]", "192.0.2.1", "[IPv6:2001:db8::1]", "a..b", "a b.example", "-"],
)
def test_what_is_no_name_of_anybody_is_not_looked_for(run, lists, name):
    rbl = RBL([domains()], resolver=lists)
    run(rbl.helo_check(Context(), peer(helo_name=name)))
    assert lists.asked == []


def test_international_domains_are_looked_for_as_a_labels(run, lists):
    rbl = RBL([domains()], resolver=lists)
    run(rbl.sender_check(Context(), PEER, "joe@BÜCHER.example"))
    assert lists.asked == ["xn--bcher-kva.example.dbl.example.org"]


def test_what_lists_say_of_names_is_added_to_what_they_say_of_the_address(run, lists):
    rbl = RBL([block(), domains()], threshold=2, resolver=lists)
    lists.lists(CLIENT, ZEN)
    lists.lists("bad.example.net", NAMES)
    ctx = run(rbl.connection_check(Context(), PEER))
    helo = peer(helo_name="good.example.net")
    ctx = run(rbl.helo_check(ctx, helo))
    assert "554" in refused(run, rbl.sender_check, ctx, helo, "joe@bad.example.net")
    assert lists.asked.count("1.2.0.192.zen.example.org") == 1
    # Another transaction is another sender's.
    assert run(rbl.sender_check(ctx, helo, "joe@good.example.net")) is None


def test_a_list_of_domains_counts_once_for_several_names(run, lists):
    rbl = RBL([block(), domains()], threshold=2, resolver=lists)
    lists.lists("bad.example.net", NAMES)
    lists.lists("worse.example.net", NAMES)
    helo = peer(helo_name="bad.example.net")
    ctx = run(rbl.sender_check(Context(), helo, "joe@worse.example.net"))
    assert len(rbl_listings(ctx)) == 1


# --- who vouches ---------------------------------------------------------------------------------


def test_whom_an_allow_list_knows_is_allow_listed_from_mail_on(run, lists):
    rbl = RBL([block(), DNSList(zone=ALLOW, weight=-2, name="wl")], resolver=lists)
    lists.lists(CLIENT, ALLOW, "127.0.5.1")
    ctx = run(rbl.connection_check(Context(), PEER))
    ctx = run(rbl.sender_check(ctx, PEER, "joe@example.org"))
    assert ctx.value(ALLOW_LISTED) == "wl"
    lists.lists("192.0.2.2", ALLOW, "127.0.5.1")
    lists.lists("192.0.2.2", ZEN)
    both = RBL([block(weight=2), DNSList(zone=ALLOW, weight=-2)], threshold=2, resolver=lists)
    ctx = run(both.sender_check(Context(), peer("192.0.2.2"), "joe@example.org"))
    assert ctx.value(ALLOW_LISTED) is None


def test_another_client_of_the_session_is_not_vouched_for_by_the_first_ones_list(run, lists):
    """XCLIENT: the session's Context is that of the proxy's connection."""
    rbl = RBL([DNSList(zone=ALLOW, weight=-1)], resolver=lists)
    lists.lists(CLIENT, ALLOW)
    ctx = run(rbl.sender_check(Context(), PEER, "joe@example.org"))
    assert ctx.value(ALLOW_LISTED) == ALLOW
    for other in (peer("192.0.2.2"), peer("10.0.0.1")):
        after = run(rbl.connection_check(ctx, other))
        assert after.value(ALLOW_LISTED) is None
        assert rbl_listings(after) == ()


def test_what_somebody_else_said_since_is_not_taken_back(run, lists):
    rbl = RBL([DNSList(zone=ALLOW, weight=-1)], resolver=lists)
    lists.lists(CLIENT, ALLOW)
    ctx = run(rbl.sender_check(Context(), PEER, "joe@example.org"))
    ctx = ctx.with_value(ALLOW_LISTED, "somebody")
    ctx = run(rbl.connection_check(ctx, peer("192.0.2.2")))
    assert ctx.value(ALLOW_LISTED) == "somebody"


def test_what_another_middleware_said_of_who_vouches_stays(run, lists):
    rbl = RBL([ZEN], resolver=lists)
    ctx = Context().with_value(ALLOW_LISTED, "somebody")
    ctx = run(rbl.sender_check(ctx, PEER, "joe@example.org"))
    assert ctx.value(ALLOW_LISTED) == "somebody"


def test_an_allow_list_is_waited_for_at_mail_and_not_at_the_connection(run, lists):
    async def scenario():
        rbl = RBL([block(), DNSList(zone=ALLOW, weight=-1)], resolver=lists)
        held = lists.holds(CLIENT, ALLOW, "127.0.0.2")
        ctx = await rbl.connection_check(Context(), PEER)
        check = asyncio.create_task(rbl.sender_check(ctx, PEER, "joe@example.org"))
        await asyncio.sleep(0.01)
        assert not check.done()
        held.set()
        assert (await check).value(ALLOW_LISTED) == ALLOW

    run(scenario())


# --- marks ----------------------------------------------------------------------------------------


def marked(run, rbl, client=PEER, sender="joe@example.org"):
    async def scenario():
        middleware = rbl.middleware()
        ctx = await middleware.check_sender(Context(), client, sender)
        envelope = Envelope(sender, whole(MESSAGE), ["ann@example.com"])
        ctx = await middleware.handler(ctx or Context(), client, envelope) or ctx
        return ctx, await envelope.data.read()

    return run(scenario())


def test_a_marked_message_says_which_lists_know_the_client_and_the_score(run, lists):
    rbl = RBL([block(weight=2), domains(), OTHER], on_fail="mark", resolver=lists)
    lists.lists(CLIENT, ZEN, "127.0.0.2", "127.0.0.4")
    lists.lists("example.org", NAMES, "127.0.1.2")
    ctx, message = marked(run, rbl)
    assert (
        message
        == (
            b"X-RBL: score=3 by mx.example.com;\r\n"
            b"\tzen.example.org (127.0.0.2,127.0.0.4) 192.0.2.1 +2;\r\n"
            b"\tdbl.example.org (127.0.1.2) example.org +1\r\n"
        )
        + MESSAGE
    )
    assert sum(each.weight for each in rbl_listings(ctx)) == 3


def test_below_the_threshold_nothing_is_marked_and_the_listings_are_there_for_others(run, lists):
    rbl = RBL([ZEN, OTHER], threshold=2, on_fail="mark", resolver=lists)
    lists.lists(CLIENT, ZEN)
    ctx, message = marked(run, rbl)
    assert message == MESSAGE
    assert [each.list for each in rbl_listings(ctx)] == [ZEN]


def test_a_client_that_is_marked_is_told_of_once(run, lists, caplog):
    caplog.set_level(logging.INFO)
    lists.lists(CLIENT, ZEN)
    marked(run, RBL([ZEN], on_fail="mark", resolver=lists))
    assert told(caplog) == [
        "rbl marked: score 1 of 1: zen.example.org (127.0.0.2) 192.0.2.1 +1",
    ]


def test_who_authenticated_after_he_was_found_is_not_marked(run, lists):
    rbl = RBL([ZEN], on_fail="mark", resolver=lists)
    lists.lists(CLIENT, ZEN)

    async def scenario():
        ctx = await rbl.sender_check(Context(), PEER, "joe@example.org")
        envelope = Envelope("joe@example.org", whole(MESSAGE), ["ann@example.com"])
        await rbl.data_check(ctx, PEER._replace(username="joe"), envelope)
        return await envelope.data.read()

    assert run(scenario()) == MESSAGE


# --- the phases of a Middleware ------------------------------------------------------------------


def hooks(rbl):
    middleware = rbl.middleware()
    names = ("connection", "helo", "sender", "recipient")
    found = [name for name in names if getattr(middleware, f"check_{name}") is not None]
    return found + ["handler"] * (middleware.handler is not None)


@pytest.mark.parametrize(
    ("lists_", "options", "expected"),
    [
        ([block()], {}, ["connection"]),
        ([block(), DNSList(zone=ALLOW, weight=-1)], {}, ["connection", "sender"]),
        ([block(), domains()], {}, ["connection", "helo", "sender"]),
        ([domains()], {}, ["helo", "sender"]),
        ([block(), domains()], {"at": "mail"}, ["sender"]),
        ([block(), domains()], {"at": "rcpt"}, ["recipient"]),
        ([block(), domains()], {"on_fail": "mark"}, ["sender", "handler"]),
    ],
)
def test_only_the_phases_that_can_find_anything_have_a_hook(lists, lists_, options, expected):
    assert hooks(RBL(lists_, resolver=lists, **options)) == expected


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"lists": []}, "1 to 32 lists"),
        ({"lists": [ZEN] * 33}, "1 to 32 lists"),
        ({"lists": [ZEN], "threshold": 0}, "below 1"),
        ({"lists": [ZEN, OTHER], "threshold": 3}, "weigh 2, and never reach 3"),
    ],
)
def test_an_rbl_that_makes_no_sense_is_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        RBL(**arguments)


def test_one_zone_without_a_list_around_it_is_a_mistake():
    with pytest.raises(TypeError, match="one for each letter"):
        RBL(ZEN)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"zone": "zen..org"}, "is no zone"),
        ({"zone": "zen.example.org\r\n"}, "is no zone"),
        ({"zone": "zén.example.org"}, "is no zone"),
        ({"zone": ZEN, "kind": "name"}, "of kind"),
        ({"zone": ZEN, "weight": 0}, "without weight"),
        ({"zone": ZEN, "kind": "domain", "weight": -1}, "vouches for nobody"),
        ({"zone": ZEN, "name": "two\nlines"}, "name has"),
        ({"zone": ZEN, "reason": "a\r\nb"}, "reason has"),
        ({"zone": ZEN, "codes": ("10.0.0.1",)}, "not in 127"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        DNSList(**arguments)


# --- the log and the library ----------------------------------------------------------------------


def told(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "preforkmx" and r.levelno == 20]


def test_the_log_tells_lists_codes_and_score(run, lists, caplog):
    caplog.set_level(logging.INFO)
    rbl = RBL([block(weight=2), block(OTHER)], threshold=3, resolver=lists, name="rbl 2")
    lists.lists(CLIENT, ZEN, "127.0.0.4")
    lists.lists(CLIENT, OTHER)
    refused(run, rbl.connection_check, Context(), PEER)
    [line] = told(caplog)
    assert line == (
        "rbl 2 refused: score 3 of 3: zen.example.org (127.0.0.4) 192.0.2.1 +2; "
        "bl.example.net (127.0.0.2) 192.0.2.1 +1"
    )


def test_a_check_of_one_phase_can_be_lifted(run, lists):
    rbl = RBL([ZEN], resolver=lists)
    lists.lists(CLIENT, ZEN)
    hook = check_connection(rbl.connection_check).check_connection
    refused(run, hook, Context(), PEER)


# --- sessions --------------------------------------------------------------------------------------


@asynccontextmanager
async def session(*middleware, client=CLIENT, handler=None):
    """A session from `client`, as a proxy in front names it."""
    server = Server(hostname="mx.example.com", handler=handler)
    server.use(*middleware)
    trusted = (ip_network("127.0.0.1/32"),)
    server.listen("127.0.0.1:0", proxy_protocol=True, proxy_from=trusted)
    async with server, await Client.connect(server.addresses[0]) as smtp:
        await smtp.send(f"PROXY TCP4 {client} 127.0.0.1 40000 25\r\n".encode())
        yield smtp


def test_a_listed_client_gets_554_instead_of_the_greeting(run, lists):
    async def scenario():
        lists.lists(CLIENT, ZEN)
        lists.texts["1.2.0.192.zen.example.org"] = (b"see\r\n220 welcome",)
        async with session(RBL([ZEN], resolver=lists).middleware()) as smtp:
            reply = await smtp.reply()
            assert reply == (554, ("192.0.2.1 is listed by zen.example.org: see 220 welcome",))
            with pytest.raises(EOFError):
                await smtp.reply()

    run(scenario())


def test_a_listed_sender_is_refused_at_mail_and_the_session_goes_on(run, lists):
    async def scenario():
        lists.lists("bad.example.net", NAMES)
        async with session(RBL([ZEN, domains()], resolver=lists).middleware()) as smtp:
            await smtp.hello()
            reply = await smtp.command("MAIL FROM:<joe@bad.example.net>")
            assert reply == (554, ("5.7.1 bad.example.net is listed by dbl.example.org",))
            assert (await smtp.command("MAIL FROM:<joe@good.example.net>")).code == 250
            assert (await smtp.command("EHLO bad.example.net")).code == 554

    run(scenario())


def test_a_client_whom_an_allow_list_knows_is_not_greylisted_in_its_session(run, lists):
    async def scenario(client):
        rbl = RBL([block(), DNSList(zone=ALLOW, weight=-1)], resolver=lists)
        async with session(rbl.middleware(), Greylist().middleware(), client=client) as smtp:
            await smtp.hello()
            await smtp.command("MAIL FROM:<joe@example.org>")
            return (await smtp.command("RCPT TO:<ann@example.com>")).code

    lists.lists(CLIENT, ALLOW)
    assert run(scenario(CLIENT)) == 250
    assert run(scenario("192.0.2.2")) == 451


def test_a_message_is_marked_in_front_of_what_its_sender_wrote(run, lists):
    async def scenario():
        recorder = Recorder()
        rbl = RBL([ZEN], on_fail="mark", resolver=lists)
        lists.lists(CLIENT, ZEN)
        async with session(rbl.middleware(), handler=recorder) as smtp:
            await smtp.hello()
            assert (await smtp.deliver(MESSAGE)).code == 250
        [message] = recorder.messages
        assert message.octets.startswith(b"X-RBL: score=1 by mx.example.com;\r\n\tzen")
        assert message.octets.endswith(MESSAGE)

    run(scenario())


def test_a_list_that_never_answers_costs_a_session_its_deadline_and_others_nothing(run, lists):
    async def scenario():
        rbl = RBL([ZEN], resolver=lists, deadline=0.3)
        lists.never_answers(CLIENT, ZEN)
        middleware = rbl.middleware()
        async with session(middleware) as slow:
            await lists.heard("1.2.0.192.zen.example.org")
            async with session(middleware, client="192.0.2.2") as fast:
                assert (await fast.reply()).code == 220
            assert (await slow.reply()).code == 220

    run(scenario())


def test_an_rbl_without_a_resolver_makes_one_in_each_loop_and_closes_it(run):
    """Nobody is asked about a client that is exempt: this machine's resolver is left alone."""

    async def scenario():
        rbl = RBL([ZEN])
        for _ in range(2):
            async with running(_server(rbl)) as address, await Client.connect(address) as smtp:
                assert (await smtp.reply()).code == 220
                resolver = rbl._look_ups._resolver
                assert resolver.servers
            with pytest.raises(DNSError, match="closed"):
                await resolver.a("example.org")

    run(scenario())


def _server(rbl):
    server = Server(hostname="mx.example.com")
    server.use(rbl.middleware())
    return server
