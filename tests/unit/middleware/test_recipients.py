"""Recipients, as a session meets them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_network

import pytest

from preforkmx import Server
from preforkmx.context import Context
from preforkmx.errors import SMTPError, StoreUnavailable
from preforkmx.middleware.addresses import Recipient
from preforkmx.middleware.harvest import Harvest
from preforkmx.middleware.recipients import recipients
from preforkmx.middleware.recipients_map import RecipientMap
from preforkmx.middleware.recipients_set import RecipientSet
from preforkmx.middleware.recipients_source import Found
from preforkmx.model import Peer, ProxyInfo
from preforkmx.state.decisions import Rate
from preforkmx.state.local import LocalStore
from preforkmx.testing import Client, Recorder, running

MESSAGE = b"Subject: hello\r\n\r\nhello\r\n"
HERE = RecipientMap(
    {
        "joe@example.com": (),
        "ann@example.com": (),
        "info@example.com": ("joe@example.com", "ann@example.com"),
        "sales@example.com": ("ann@example.com",),
        "@example.net": (),
        "postmaster@mx.example.com": ("joe@example.com",),
    }
)
PEER = Peer(ip_address("192.0.2.1"), 40000, "mx.example.com", "127.0.0.1:25")


class Clock:
    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self):
        return self.now


class Away:
    """A directory that does not answer."""

    async def look_up(self, recipient):
        raise SMTPError(451, "Away", enhanced=(4, 4, 3))


class Counted:
    def __init__(self, source):
        self.source = source
        self.asked = []

    async def look_up(self, recipient):
        self.asked.append(recipient.name)
        return await self.source.look_up(recipient)


def told(address, *sources, peer=PEER, **options):
    """RCPT outside of a session; return the reply's codes, or None where it is accepted."""
    middleware = recipients(sources, hostname="mx.example.com", **options)
    return asyncio.run(asked(middleware, address, peer))


async def asked(middleware, address, peer=PEER):
    try:
        await middleware.check_recipient(Context(), peer, address)
    except SMTPError as error:
        return error.code, error.enhanced
    return None


UNKNOWN = (550, (5, 1, 1))
AWAY = (451, (4, 4, 3))


# --- who is there -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "reply"),
    [
        ("joe@example.com", None),
        ("JOE@Example.COM", None),
        ('"joe"@example.com', None),
        ("joe+lists@example.com", None),
        ("info@example.com", None),
        ("anybody@example.net", None),
        ("jo@example.com", UNKNOWN),
        ("joe-lists@example.com", UNKNOWN),
        ("joe@example.org", UNKNOWN),
        ("postmaster", None),
        ("Postmaster@example.com", None),
        ('"postmaster"@example.org', None),
        ("postmaster@mx.example.com", None),
        ("postmaster2@example.com", UNKNOWN),
    ],
)
def test_who_is_there_is_taken_and_who_is_not_is_refused(address, reply):
    assert told(address, HERE) == reply


def test_recipients_of_domains_that_it_does_not_answer_for_pass():
    for address in ("jo@example.org", "postmaster@example.org"):
        assert told(address, HERE, domains=["Example.com"]) is None
    assert told("jo@example.COM", HERE, domains=["Example.com"]) == UNKNOWN
    assert told("jo@example.org", HERE, domains=["*"]) == UNKNOWN
    assert told("jo@xn--bcher-kva.example", HERE, domains=["bücher.example"]) == UNKNOWN


def test_the_sources_are_asked_in_their_order_until_one_knows():
    first, second = Counted(HERE), Counted(RecipientMap({"eve@example.com": ()}))
    assert told("joe@example.com", first, second) is None
    assert (first.asked, second.asked) == (["joe@example.com"], [])
    assert told("eve@example.com", first, second) is None
    assert told("jo@example.com", first, second) == UNKNOWN


def test_a_source_that_cannot_say_is_answered_with_451_unless_another_knows():
    assert told("joe@example.com", Away(), HERE) is None
    assert told("joe@example.com", HERE, Away()) is None
    assert told("jo@example.com", Away(), HERE) == AWAY
    assert told("jo@example.com", HERE, Away()) == AWAY
    # Whether he is an alias is not known either.
    assert told("postmaster@example.org", Away()) == AWAY


def test_a_mailbox_that_takes_no_mail_is_refused_whatever_others_know():
    class Full:
        async def look_up(self, _recipient):
            raise SMTPError(550, "Disabled", enhanced=(5, 2, 1))

    assert told("joe@example.com", Full(), HERE) == (550, (5, 2, 1))


def test_options_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="somebody"):
        recipients([], hostname="mx.example.com")
    for separator in ("++", "@", '"'):
        with pytest.raises(ValueError, match="separator"):
            recipients([HERE], hostname="mx.example.com", separator=separator)


# --- whose mail goes to whom --------------------------------------------------------------------


@asynccontextmanager
async def served(*middleware, handler, **options):
    server = Server(hostname="mx.example.com", handler=handler, **options)
    server.use(*middleware)
    async with running(server) as address, await Client.connect(address) as client:
        await client.hello()
        yield client


def delivered(*addresses, handler=None, **options):
    """Send one message; return the reply, the delivery's recipients, and those that hooks see."""
    recorder = handler or Recorder()
    seen = Recorder()

    async def scenario():
        middleware = recipients([HERE], hostname="mx.example.com", **options)
        async with served(middleware, seen, handler=recorder) as client:
            return await client.deliver(MESSAGE, recipients=addresses)

    reply = asyncio.run(scenario())
    messages = [message.recipients for message in recorder.messages]
    given = [call.arguments[0] for call in seen.calls if call.phase == "check_recipient"]
    asked = [call.arguments[0] for call in recorder.calls if call.phase == "check_recipient"]
    return reply, messages, given, asked


def test_the_delivery_has_the_targets_of_an_alias_and_everybody_else_sees_the_alias():
    reply, messages, given, asked = delivered("Info@example.com", "eve@example.net")
    assert reply.code == 250
    assert given == ["Info@example.com", "eve@example.net"]
    assert messages == [("joe@example.com", "ann@example.com", "eve@example.net")]
    # A delivery that asks its next hop at RCPT asks for the targets.
    assert asked == ["joe@example.com", "ann@example.com", "eve@example.net"]


def test_nobody_has_a_message_twice():
    _, messages, _, _ = delivered("info@example.com", "JOE@example.com", "sales@example.com")
    assert messages == [("joe@example.com", "ann@example.com")]


def test_postmaster_without_a_domain_may_be_an_alias():
    middleware = recipients([HERE], hostname="mx.example.com", domains=["example.com"])
    recorder = Recorder()

    async def scenario():
        async with served(middleware, handler=recorder) as client:
            await client.deliver(MESSAGE, recipients=["Postmaster"])

    asyncio.run(scenario())
    assert recorder.messages[0].recipients == ("joe@example.com",)


def test_extensions_are_kept_or_dropped_where_the_mailbox_is_there_without():
    addresses = ["Joe+a@example.com", "eve+b@example.net", "sales+c@example.com"]
    _, messages, _, _ = delivered(*addresses)
    assert messages == [("Joe+a@example.com", "eve+b@example.net", "ann@example.com")]
    _, messages, _, _ = delivered(*addresses, extension="drop")
    # In a domain where everybody is there, so is the address with its extension.
    assert messages == [("Joe@example.com", "eve+b@example.net", "ann@example.com")]


def test_aliases_of_one_transaction_are_none_of_the_next():
    recorder = Recorder()

    async def scenario():
        async with served(recipients([HERE], hostname="x"), handler=recorder) as client:
            await client.deliver(MESSAGE, recipients=["sales@example.com"])
            await client.deliver(MESSAGE, recipients=["eve@example.net"])

    asyncio.run(scenario())
    assert [each.recipients for each in recorder.messages] == [
        ("ann@example.com",),
        ("eve@example.net",),
    ]


# --- VRFY ---------------------------------------------------------------------------------------


def verified(*texts, **options):
    async def scenario():
        middleware = recipients([HERE], hostname="mx.example.com", vrfy=True, **options)
        async with served(middleware, handler=Recorder()) as client:
            return [(await client.command(f"VRFY {text}")).text for text in texts]

    return asyncio.run(scenario())


def test_vrfy_is_answered_from_the_same_sources():
    texts = ["joe@example.com", "<Info@example.com>", "jo@example.com", "joe", "joe@"]
    replies = verified(*texts)
    assert replies[0] == "2.1.5 <joe@example.com>"
    assert replies[1] == "2.1.5 <Info@example.com>"
    assert replies[2].startswith("5.1.1 ")
    assert all(reply.startswith("2.5.0 Cannot VRFY") for reply in replies[3:])


def test_vrfy_says_nothing_of_others_domains():
    (reply,) = verified("joe@example.org", domains=["example.com"])
    assert not reply.startswith("5.")
    assert "joe" not in reply


def test_vrfy_is_off_unless_it_is_wanted():
    assert recipients([HERE], hostname="x").verify is None


# --- the limit on unknown recipients --------------------------------------------------------------


class Counting(LocalStore):
    def __init__(self, clock):
        super().__init__(clock)
        self.asked = 0
        self.away = False

    async def take(self, limit, key, cost=1):
        self.asked += 1
        if self.away:
            raise StoreUnavailable("away")
        return await super().take(limit, key, cost)


def limited(clock, store, source=HERE, **options):
    harvest = Harvest(Rate(3, 3600, 3), store, name="recipients", clock=clock, **options)
    return recipients([source], hostname="mx.example.com", unknown=harvest)


TOO_MANY = (450, (4, 7, 1))


def test_beyond_the_limit_every_recipient_of_the_host_is_deferred_without_a_look():
    clock = Clock()
    store, source = Counting(clock), Counted(HERE)
    middleware = limited(clock, store, source)

    async def scenario():
        for _ in range(3):
            assert await asked(middleware, "jo@example.com") == UNKNOWN
        assert await asked(middleware, "joe@example.com") is None
        assert await asked(middleware, "jo@example.com") == TOO_MANY
        before = (len(source.asked), store.asked)
        assert await asked(middleware, "joe@example.com") == TOO_MANY
        assert await asked(middleware, "jo@example.com") == TOO_MANY
        assert (len(source.asked), store.asked) == before
        # Postmaster is reached in any case, and others are.
        assert await asked(middleware, "postmaster@example.com") is None
        other = PEER._replace(address=ip_address("192.0.2.2"))
        assert await asked(middleware, "joe@example.com", other) is None
        # One is earned every 20 minutes.
        clock.now += 1200
        assert await asked(middleware, "joe@example.com") is None
        assert await asked(middleware, "jo@example.com") == UNKNOWN
        assert await asked(middleware, "jo@example.com") == TOO_MANY

    asyncio.run(scenario())


def test_the_refusal_names_the_limit_and_the_wait():
    clock = Clock()
    middleware = limited(clock, Counting(clock))

    async def scenario():
        for _ in range(4):
            with pytest.raises(SMTPError) as caught:
                await middleware.check_recipient(Context(), PEER, "jo@example.com")
        return caught.value

    error = asyncio.run(scenario())
    assert error.limit == "unknown"
    assert error.message == (
        "Too many unknown recipients from your address (limit: unknown), try again in 1200 s"
    )
    assert not error.close


def test_two_workers_share_the_count_and_an_ipv6_network_is_one_host():
    clock = Clock()
    store = Counting(clock)
    workers = [limited(clock, store), limited(clock, store)]

    async def scenario():
        for number in range(3):
            peer = PEER._replace(address=ip_address(f"2001:db8::{number}"))
            assert await asked(workers[number % 2], "jo@example.com", peer) == UNKNOWN
        for number, worker in enumerate(workers):
            peer = PEER._replace(address=ip_address(f"2001:db8::{number}:9"))
            assert await asked(worker, "jo@example.com", peer) == TOO_MANY

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "peer",
    [
        PEER._replace(address=None),
        PEER._replace(proxy=ProxyInfo(version=2, local=True)),
        PEER._replace(address=ip_address("198.51.100.7")),
    ],
)
def test_some_are_not_limited(peer):
    clock = Clock()
    middleware = limited(clock, Counting(clock), allow=[ip_network("198.51.100.0/24")])

    async def scenario():
        for _ in range(9):
            assert await asked(middleware, "jo@example.com", peer) == UNKNOWN

    asyncio.run(scenario())


def test_while_the_store_is_away_unknown_recipients_are_unknown():
    clock = Clock()
    store = Counting(clock)
    store.away = True
    middleware = limited(clock, store)

    async def scenario():
        for _ in range(9):
            assert await asked(middleware, "jo@example.com") == UNKNOWN

    asyncio.run(scenario())


def test_recipients_that_nobody_can_look_up_count_for_nothing():
    clock = Clock()
    store = Counting(clock)
    middleware = limited(clock, store, Away())

    async def scenario():
        for _ in range(9):
            assert await asked(middleware, "jo@example.com") == AWAY

    asyncio.run(scenario())
    assert store.asked == 0


def test_vrfy_is_within_the_limit():
    clock = Clock()
    harvest = Harvest(Rate(2, 3600, 2), Counting(clock), name="x", clock=clock)
    replies = verified(*["jo@example.com"] * 3, "joe@example.com", unknown=harvest)
    assert [reply[:5] for reply in replies] == ["5.1.1", "5.1.1", "4.7.1", "4.7.1"]


# --- a set ------------------------------------------------------------------------------------------


class Sets:
    def __init__(self, *members):
        self.members = members
        self.asked = []
        self.away = False

    async def contains(self, key, members):
        self.asked.append((key, tuple(members)))
        if self.away:
            raise StoreUnavailable("away")
        return [member in self.members for member in members]


def test_a_set_is_asked_once_for_the_address_its_base_and_its_domain():
    sets = Sets("joe@example.com")
    source = RecipientSet(sets, "mail:recipients")
    assert told("Joe+x@Example.com", source) is None
    assert sets.asked == [
        ("mail:recipients", ("joe+x@example.com", "joe@example.com", "@example.com"))
    ]
    assert told("jo@example.com", source) == UNKNOWN
    assert told("anybody@example.org", RecipientSet(Sets("@example.org"), "k")) is None


def test_a_set_that_is_away_is_451_and_said_once_a_minute(caplog):
    sets, clock = Sets(), Clock()
    sets.away = True
    source = RecipientSet(sets, "mail:recipients", clock=clock)
    for _ in range(3):
        assert told("joe@example.com", source) == AWAY
    assert len(caplog.records) == 1
    clock.now += 61
    assert told("joe@example.com", source) == AWAY
    assert [record.getMessage() for record in caplog.records] == [
        "the set of recipients 'mail:recipients' cannot be asked: away"
    ] * 2


def test_what_a_set_has_without_the_extension_is_extended():
    source = RecipientSet(Sets("joe@example.com", "@example.org"), "k")

    def look(address):
        return asyncio.run(source.look_up(Recipient.of(address, "+")))

    assert look("joe+x@example.com") == Found(extended=True)
    assert look("joe@example.com") == Found()
    assert look("joe+x@example.org") == Found()
