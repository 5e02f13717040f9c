"""Greylisting, as a session meets it."""

from __future__ import annotations

import asyncio
import re
from email.utils import parsedate_to_datetime
from ipaddress import ip_address, ip_network

import pytest

from preforkmx import Middleware, Server
from preforkmx.body import whole
from preforkmx.context import Context
from preforkmx.errors import SMTPError, StoreUnavailable
from preforkmx.middleware import check_recipient
from preforkmx.middleware.greylist import ALLOWED_SECONDS, MAX_ALLOWED, Greylist
from preforkmx.middleware.verdicts import ALLOW_LISTED, SPF_PASSED
from preforkmx.model import Envelope, Peer, ProxyInfo
from preforkmx.state.local import LocalStore
from preforkmx.testing import Client, running

SENDER = "joe@example.com"
RECIPIENT = "ann@example.net"
MESSAGE = b"Subject: hello\r\n\r\nhello\r\n"


class Clock:
    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self):
        return self.now


class Counting(LocalStore):
    def __init__(self, clock):
        super().__init__(clock)
        self.asked = 0
        self.away = False

    async def greylist(self, network, sender, recipient, settings):
        self.asked += 1
        if self.away:
            raise StoreUnavailable("away")
        return await super().greylist(network, sender, recipient, settings)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return Counting(clock)


@pytest.fixture
def greylist(store, clock):
    return Greylist(store, delay=300, clock=clock)


def peer(address="192.0.2.1", username=None):
    return Peer(
        address=None if address is None else ip_address(address),
        port=40000,
        server_name="mx.example.com",
        listener="127.0.0.1:25",
        username=username,
    )


PEER = peer()


def rcpt(greylist, address=RECIPIENT, *, sender=SENDER, peer=PEER, ctx=None):
    """RCPT of a transaction; returns the Context that the session goes on with."""
    ctx = (ctx if ctx is not None else Context()).with_sender(sender)
    hook = greylist.middleware().check_recipient
    returned = asyncio.run(hook(ctx, peer, address))
    return returned if returned is not None else ctx


def data(greylist, ctx, *recipients, sender=SENDER, peer=PEER):
    """The message; returns what the delivery behind the greylist reads."""

    async def deliver():
        envelope = Envelope(sender, whole(MESSAGE), list(recipients or (RECIPIENT,)))
        await greylist.middleware().handler(ctx, peer, envelope)
        return await envelope.data.read()

    return asyncio.run(deliver())


def deferred(call, *arguments, **options):
    with pytest.raises(SMTPError) as caught:
        call(*arguments, **options)
    return str(caught.value)


def test_a_stranger_is_told_how_long_to_wait_and_then_passes(greylist, clock):
    assert deferred(rcpt, greylist) == "451 4.7.1 Greylisted, try again in 300 s"
    clock.now += 299.5
    assert deferred(rcpt, greylist) == "451 4.7.1 Greylisted, try again in 1 s"
    clock.now += 0.5
    rcpt(greylist)


def test_the_first_message_that_passes_says_how_long_it_was_delayed(greylist, clock):
    deferred(rcpt, greylist)
    clock.now += 417.4
    message = data(greylist, rcpt(greylist))
    header, rest = message.split(b"\r\n", 1)
    match = re.fullmatch(
        rb"X-Greylist: delayed 417 seconds by mx\.example\.com; (.* \+0000)", header
    )
    assert match
    assert parsedate_to_datetime(match[1].decode())
    assert rest == MESSAGE
    clock.now += ALLOWED_SECONDS
    assert data(greylist, rcpt(greylist)) == MESSAGE


def test_a_message_to_two_recipients_says_the_longer_delay(greylist, clock):
    deferred(rcpt, greylist, "a@example.net")
    clock.now += 100
    deferred(rcpt, greylist, "b@example.net")
    clock.now += 300
    ctx = rcpt(greylist, "a@example.net")
    ctx = rcpt(greylist, "b@example.net", ctx=ctx)
    assert data(greylist, ctx).startswith(b"X-Greylist: delayed 400 seconds")


def test_the_next_message_of_the_session_was_not_delayed(greylist, clock):
    deferred(rcpt, greylist)
    clock.now += 300
    ctx = rcpt(greylist)
    ctx = asyncio.run(greylist.middleware().reset(ctx, peer())) or ctx
    assert data(greylist, ctx) == MESSAGE
    assert asyncio.run(greylist.middleware().reset(ctx, peer())) is None


def test_a_retry_with_another_serial_number_from_a_neighbour_counts(greylist, clock):
    deferred(rcpt, greylist, sender="bounce-17+x@Example.COM")
    clock.now += 300
    rcpt(greylist, "Ann@Example.NET", sender="bounce-18@example.com", peer=peer("192.0.2.99"))


def test_the_null_reverse_path_is_deferred_at_the_message_and_not_at_rcpt(greylist, clock):
    ctx = rcpt(greylist, sender="")
    assert deferred(data, greylist, ctx, sender="") == "451 4.7.1 Greylisted, try again in 300 s"
    clock.now += 300
    message = data(greylist, rcpt(greylist, sender=""), sender="")
    assert message.startswith(b"X-Greylist: delayed 300 seconds")


def test_a_bounce_to_several_recipients_is_one_question(greylist, store, clock):
    recipients = [f"user{n}@example.net" for n in range(100)]
    deferred(data, greylist, Context(), *recipients, sender="")
    assert store.asked == 1
    clock.now += 300
    assert deferred(data, greylist, Context(), *recipients[1:], sender="")
    assert data(greylist, Context(), *reversed(recipients), sender="").endswith(MESSAGE)


@pytest.mark.parametrize(
    "exempt",
    [
        peer(username="joe"),
        peer(None),
        peer("198.51.100.9"),
        peer("::ffff:198.51.100.9"),
        peer("10.0.0.1"),
        peer("127.0.0.1"),
        peer("::1"),
    ],
)
def test_who_is_exempt_is_not_asked_about(store, clock, exempt):
    greylist = Greylist(store, allow=[ip_network("198.51.100.0/24")], clock=clock)
    rcpt(greylist, peer=exempt)
    data(greylist, Context(), sender="", peer=exempt)
    assert store.asked == 0


def test_private_networks_are_greylisted_when_told_to(store, clock):
    greylist = Greylist(store, exempt_private=False, clock=clock)
    assert deferred(rcpt, greylist, peer=peer("127.0.0.1"))


@pytest.mark.parametrize(
    "address", ["abuse@example.net", "Abuse@Example.NET", "any@open.example", "Postmaster"]
)
def test_exempt_recipients_are_not_asked_about(store, clock, address):
    greylist = Greylist(
        store,
        exempt_recipients=["ABUSE@example.net", "@open.example", "postmaster"],
        clock=clock,
    )
    rcpt(greylist, address)
    data(greylist, Context(), address, sender="")
    assert store.asked == 0
    assert deferred(rcpt, greylist, "joe@example.net")
    assert deferred(rcpt, greylist, "joe@not-open.example")


def test_an_exempt_recipient_beside_another_does_not_let_the_bounce_through(store, clock):
    greylist = Greylist(store, exempt_recipients=["abuse@example.net"], clock=clock)
    assert deferred(data, greylist, Context(), "abuse@example.net", RECIPIENT, sender="")


def test_a_verdict_to_allow_is_remembered_for_a_minute(greylist, store, clock):
    deferred(rcpt, greylist)
    clock.now += 300
    rcpt(greylist)
    asked = store.asked
    clock.now += ALLOWED_SECONDS - 1
    rcpt(greylist)
    assert store.asked == asked
    clock.now += 1
    rcpt(greylist)
    assert store.asked == asked + 1


def test_an_allowed_network_is_remembered_whole(greylist, store, clock):
    for n in range(5):
        deferred(rcpt, greylist, sender=f"{'x' * n}@example.com")
        clock.now += 3600
        rcpt(greylist, sender=f"{'x' * n}@example.com")
    rcpt(greylist, sender="stranger@example.com")
    asked = store.asked
    rcpt(greylist, sender="other@example.com", peer=peer("192.0.2.200"))
    assert store.asked == asked


def test_a_verdict_to_defer_is_asked_again(greylist, store):
    deferred(rcpt, greylist)
    deferred(rcpt, greylist)
    assert store.asked == 2


def test_what_is_remembered_is_bounded(greylist, clock):
    clock.now += 1
    for n in range(MAX_ALLOWED + 10):
        greylist._allowed.put(("net", "sender", str(n)), clock.now + 60, clock.now)
    assert len(greylist._allowed) == MAX_ALLOWED


def test_without_the_store_everybody_passes_or_everybody_waits(store, clock):
    store.away = True
    accepting = Greylist(store, clock=clock)
    assert data(accepting, rcpt(accepting)) == MESSAGE
    assert data(accepting, rcpt(accepting, sender=""), sender="") == MESSAGE
    deferring = Greylist(store, on_store_failure="tempfail", clock=clock)
    expected = "451 4.3.2 Greylisting is not available, try again later"
    assert deferred(rcpt, deferring) == expected
    assert deferred(data, deferring, rcpt(deferring, sender=""), sender="") == expected


def test_a_check_may_be_lifted_alone_and_needs_no_store():
    lifted = check_recipient(Greylist(delay=0.001).recipient_check)
    assert lifted.name == "recipient_check"
    with pytest.raises(SMTPError, match="Greylisted"):
        asyncio.run(lifted.check_recipient(Context(sender=SENDER), peer(), RECIPIENT))


def test_durations_that_make_no_sense_are_a_mistake():
    with pytest.raises(ValueError):
        Greylist(delay=600, window=300)


def test_a_balancer_s_health_check_is_not_greylisted(greylist, store):
    check = PEER._replace(proxy=ProxyInfo(2, local=True))
    rcpt(greylist, peer=check)
    assert data(greylist, rcpt(greylist, sender="", peer=check), sender="", peer=check) == MESSAGE
    assert store.asked == 0


def test_who_came_through_a_balancer_is_greylisted(greylist):
    for proxy in (ProxyInfo(1), ProxyInfo(2, source=(ip_address("192.0.2.1"), 40000))):
        assert deferred(rcpt, greylist, peer=PEER._replace(proxy=proxy)).startswith("451 ")


# --- what other middleware found out -------------------------------------------------------------

FAR_AWAY = ("192.0.2.1", "198.51.100.7", "2001:db8::1")


def test_where_spf_passed_a_retry_may_come_from_anywhere(greylist, clock):
    passed = Context().with_value(SPF_PASSED, "example.com")
    first, second, third = map(peer, FAR_AWAY)
    deferred(rcpt, greylist, peer=first, ctx=passed)
    clock.now += 300
    message = data(greylist, rcpt(greylist, peer=second, ctx=passed), peer=second)
    assert message.startswith(b"X-Greylist: delayed 300 seconds")
    rcpt(greylist, peer=third, ctx=passed)
    # Without it, or with another domain's, it is a stranger.
    deferred(rcpt, greylist, peer=second)
    deferred(rcpt, greylist, peer=second, ctx=Context().with_value(SPF_PASSED, "example.net"))


def test_spf_that_passed_no_more_is_no_pass(greylist, clock):
    passed = Context().with_value(SPF_PASSED, "example.com")
    deferred(rcpt, greylist, ctx=passed)
    clock.now += 300
    rcpt(greylist, ctx=passed)
    deferred(rcpt, greylist, ctx=passed.with_value(SPF_PASSED, None))


def test_a_domain_whose_mail_passed_often_is_allowed_wherever_it_comes_from(greylist, clock):
    passed = Context().with_value(SPF_PASSED, "example.com")
    for number in range(5):
        recipient = f"box{'x' * number}@example.net"
        deferred(rcpt, greylist, recipient, ctx=passed, peer=peer(FAR_AWAY[number % 3]))
        clock.now += 3600
        rcpt(greylist, recipient, ctx=passed, peer=peer(FAR_AWAY[(number + 1) % 3]))
    rcpt(greylist, "new@example.net", ctx=passed, peer=peer("203.0.113.1"))
    deferred(rcpt, greylist, "new@example.net", peer=peer("203.0.113.1"))


def test_a_bounce_is_known_by_the_domain_too(greylist, clock):
    passed = Context().with_value(SPF_PASSED, "mx.example.org")
    deferred(data, greylist, passed, sender="", peer=peer(FAR_AWAY[0]))
    clock.now += 300
    data(greylist, passed, sender="", peer=peer(FAR_AWAY[1]))


def test_whom_an_allow_list_vouches_for_is_not_asked_about(greylist, store):
    listed = Context().with_value(ALLOW_LISTED, "list.example")
    rcpt(greylist, ctx=listed)
    assert data(greylist, listed, sender="") == MESSAGE
    assert store.asked == 0


def test_a_hook_in_front_tells_the_greylist(run, store):
    """In a session: SPF at MAIL sets the domain, the greylist reads it at RCPT."""
    networks = []

    class Seen(Counting):
        async def greylist(self, network, sender, recipient, settings):
            networks.append(network)
            return await super().greylist(network, sender, recipient, settings)

    async def spf(ctx, _peer, sender):
        domain = sender.rpartition("@")[2]
        return ctx.with_value(SPF_PASSED, domain if domain == "example.com" else None)

    server = Server()
    server.use(
        Middleware(check_sender=spf),
        Greylist(Seen(Clock()), exempt_private=False).middleware(),
    )

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            for sender in ("joe@example.com", "joe@example.org"):
                await client.command(f"MAIL FROM:<{sender}>")
                assert (await client.command(f"RCPT TO:<{RECIPIENT}>")).code == 451
                await client.command("RSET")

    run(test())
    assert networks == ["example.com", "127.0.0.0/24"]
