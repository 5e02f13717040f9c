"""What a host may spend over all its sessions, and the rates of addresses, as hooks meet them."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address, ip_network
from math import ceil

import pytest

from preforkmx import SMTPError, StoreUnavailable
from preforkmx.context import Context, SessionInfo
from preforkmx.middleware.allowance import OCTETS_UNIT, RECHECK_SECONDS
from preforkmx.middleware.rate_limit import rate_limit
from preforkmx.model import Peer, ProxyInfo
from preforkmx.protocol.core import Core
from preforkmx.protocol.settings import Settings
from preforkmx.state.decisions import Rate
from preforkmx.state.local import LocalStore


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Watched(LocalStore):
    """A store that writes down what it is asked, and may be away."""

    def __init__(self, clock):
        super().__init__(clock)
        self.asked = []
        self.keys = []
        self.away = False

    def _ask(self, operation):
        self.asked.append(operation)
        if self.away:
            raise StoreUnavailable("away")

    async def open_connection(self, address, limits):
        self._ask("open")
        return await super().open_connection(address, limits)

    async def settle(self, lease, spent, want):
        self._ask("settle")
        return await super().settle(lease, spent, want)

    async def close_connection(self, lease, spent):
        self._ask("close")
        return await super().close_connection(lease, spent)

    async def take(self, limit, key, cost=1):
        self._ask("take")
        self.keys.append(key)
        return await super().take(limit, key, cost)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return Watched(clock)


class Caller:
    """One session's hooks, and what it spends."""

    def __init__(self, limited, address="192.0.2.1", *, username=None, proxy=None):
        self.limited = limited
        self.core = Core(Settings(hostname="mx.example.com"))
        self.info = SessionInfo("s1", core=self.core)
        self.context = Context().bind(self.info)
        self.peer = Peer(
            address=None if address is None else ip_address(address),
            port=40000,
            server_name="mx.example.com",
            listener="127.0.0.1:25",
            username=username,
            proxy=proxy,
        )
        self._run(limited.check_connection)

    def _run(self, hook, *arguments):
        context = asyncio.run(hook(self.context, self.peer, *arguments)) if hook else None
        if context is not None:
            self.context = context

    def mail(self, sender="joe@example.org"):
        self._run(self.limited.check_sender, sender)

    def rcpt(self, recipient="ann@example.com"):
        self._run(self.limited.check_recipient, recipient)
        self.core.recipients += 1

    def auth(self, *, fails):
        self._run(self.limited.check_auth)
        self.core.authentication.failures += fails

    def message(self, recipients=1, octets=0):
        self.mail()
        for _ in range(recipients):
            self.rcpt()
        self.info.messages += 1
        self.info.octets += octets

    def error(self):
        self.core.patience.faults += 1

    def forward(self, address):
        """XCLIENT names another client."""
        self.peer = self.peer._replace(address=ip_address(address))
        self._run(self.limited.check_connection)

    def end(self):
        if self.limited.disconnect:
            asyncio.run(self.limited.disconnect(self.context, self.peer, None))


def refusal(call, *arguments, **options):
    with pytest.raises(SMTPError) as caught:
        call(*arguments, **options)
    return caught.value


def many(caller, most=1000):
    """Send messages until one is refused; return how many were not."""
    for count in range(most):
        try:
            caller.message()
        except SMTPError:
            return count
    return most


def test_who_is_let_in_keeps_no_failure_from_the_others_of_his_office(store, clock):
    limited = rate_limit(store, auth_failures=Rate(10, 3600.0, 10), clock=clock)
    callers = []
    for _ in range(30):
        caller = Caller(limited)
        caller.auth(fails=0)
        caller.message()
        caller.message()
        callers.append(caller)
    # One that fails is counted all the same, and the places of the others are no failures.
    for _ in range(10):
        Caller(limited).auth(fails=1)
    assert "auth_failures" in refusal(Caller, limited).message
    for caller in callers:
        caller.end()
    assert "auth_failures" in refusal(Caller, limited).message


# --- messages and recipients -------------------------------------------------------------------


def test_a_connection_with_one_message_costs_two_questions(store, clock):
    limited = rate_limit(
        store,
        connections=Rate(60, 60.0, 60),
        network_connections=Rate(60, 60.0, 60),
        concurrent=10,
        messages=Rate(600, 3600.0, 600),
        recipients=Rate(600, 3600.0, 600),
        auth_failures=Rate(10, 3600.0, 10),
        octets=Rate(10**9, 3600.0, 10**9),
        errors=Rate(100, 3600.0, 100),
        clock=clock,
    )
    caller = Caller(limited)
    caller.message(octets=5000)
    caller.error()
    caller.end()
    assert store.asked == ["open", "close"]


def test_the_message_above_the_limit_is_refused_at_mail_with_limit_and_wait(store, clock):
    limited = rate_limit(store, messages=Rate(4, 400.0, 4), clock=clock)
    caller = Caller(limited)
    for _ in range(4):
        caller.message()
    error = refusal(caller.mail)
    assert str(error) == (
        "450 4.7.1 Too many messages from your address (limit: messages), try again in 100 s"
    )
    assert (error.limit, error.close) == ("messages", False)
    clock.now += 100
    caller.message()
    refusal(caller.mail)


def test_a_message_that_was_not_accepted_is_not_counted(store, clock):
    limited = rate_limit(store, messages=Rate(1, 1000.0, 1), clock=clock)
    caller = Caller(limited)
    for _ in range(5):
        caller.mail()
    caller.message()
    refusal(caller.mail)


def test_what_was_spent_stays_spent_and_the_rest_is_given_back(store, clock):
    limited = rate_limit(store, messages=Rate(10, 1e6, 10), clock=clock)
    first = Caller(limited)
    for _ in range(3):
        first.message()
    first.end()
    assert many(Caller(limited)) == 7


@pytest.mark.parametrize("limit", [1, 2, 7, 100])
def test_sessions_at_once_send_exactly_what_the_limit_says(store, clock, limit):
    limited = rate_limit(store, messages=Rate(limit, 1e6, limit), clock=clock)
    callers = []
    for _ in range(50):
        try:
            callers.append(Caller(limited))
        except SMTPError:
            break
    sent = 0
    while callers:
        for caller in callers[:]:
            try:
                caller.message()
            except SMTPError:
                callers.remove(caller)
                caller.end()
            else:
                sent += 1
    assert sent == limit


def test_a_long_session_asks_seldom(store, clock):
    limited = rate_limit(store, messages=Rate(10**6, 3600.0, 10**6), clock=clock)
    caller = Caller(limited)
    assert many(caller, 1000) == 1000
    # 1 + 2 + 4 + … + 64, then 64 each.
    assert store.asked.count("settle") == 20


def test_recipients_are_refused_at_rcpt_and_the_message_goes_on_without(store, clock):
    limited = rate_limit(store, recipients=Rate(5, 500.0, 5), clock=clock)
    caller = Caller(limited)
    caller.mail()
    for _ in range(5):
        caller.rcpt()
    error = refusal(caller.rcpt)
    assert str(error) == (
        "450 4.7.1 Too many recipients from your address (limit: recipients), try again in 100 s"
    )


def test_a_message_with_many_recipients_asks_seldom(store, clock):
    limited = rate_limit(store, recipients=Rate(10**5, 3600.0, 10**5), clock=clock)
    caller = Caller(limited)
    caller.message(recipients=1000)
    # 1 + 8 + 16 + … + 256, then 256 each.
    assert store.asked.count("settle") == 8


def test_a_second_message_and_its_recipient_are_one_question(store, clock):
    limited = rate_limit(
        store, messages=Rate(100, 3600.0, 100), recipients=Rate(100, 3600.0, 100), clock=clock
    )
    caller = Caller(limited)
    caller.message()
    caller.message()
    caller.end()
    assert store.asked == ["open", "settle", "close"]


def test_a_recipient_that_is_reserved_needs_no_other_one(store, clock):
    limited = rate_limit(
        store, messages=Rate(100, 3600.0, 100), recipients=Rate(2, 1e6, 2), clock=clock
    )
    caller = Caller(limited)
    caller.message()
    caller.mail()
    caller.rcpt()
    assert refusal(caller.rcpt).limit == "recipients"


# --- booked afterwards -------------------------------------------------------------------------


def test_octets_are_refused_at_the_next_mail(store, clock):
    limited = rate_limit(
        store, octets=Rate(100 * OCTETS_UNIT, 100.0, 100 * OCTETS_UNIT), clock=clock
    )
    caller = Caller(limited)
    caller.message(octets=60 * OCTETS_UNIT)
    caller.message(octets=60 * OCTETS_UNIT)
    error = refusal(caller.mail)
    assert str(error) == (
        "450 4.7.1 Too many octets from your address (limit: octets), try again in 21 s"
    )
    clock.now += 21
    caller.mail()


def test_small_messages_add_up_to_whole_units(store, clock):
    limited = rate_limit(store, octets=Rate(10 * OCTETS_UNIT, 1e6, 10 * OCTETS_UNIT), clock=clock)
    caller = Caller(limited)
    for _ in range(1000):
        try:
            caller.message(octets=100)
        except SMTPError:
            break
    assert caller.info.octets // OCTETS_UNIT == 10


@pytest.mark.parametrize("gibibytes", [1, 10, 100])
def test_a_high_rate_of_octets_is_kept_as_it_is(store, clock, gibibytes):
    octets = gibibytes * 2**30
    limited = rate_limit(store, octets=Rate(octets, 3600.0, 2**20), clock=clock)
    caller = Caller(limited)
    caller.message(octets=2**20)
    refusal(caller.mail)
    clock.now += 3.6  # a thousandth of an hour
    caller.message(octets=0)
    # All of it, but for the rounding to whole microseconds, at most the burst.
    earned = min(octets / 1000, 2**20)
    caller.message(octets=int(earned * 0.9))
    caller.mail()


def test_errors_are_refused_at_rcpt_too(store, clock):
    limited = rate_limit(store, errors=Rate(3, 300.0, 3), clock=clock)
    caller = Caller(limited)
    caller.mail()
    for _ in range(3):
        caller.rcpt()
        caller.error()
    error = refusal(caller.rcpt)
    assert str(error) == (
        "450 4.7.1 Too many errors from your address (limit: errors), try again in 100 s"
    )
    assert refusal(caller.mail).limit == "errors"
    assert store.asked.count("settle") == 1


def test_what_a_session_did_is_seen_by_the_next_connection(store, clock):
    limited = rate_limit(store, errors=Rate(3, 300.0, 3), clock=clock)
    caller = Caller(limited)
    for _ in range(4):
        caller.error()
    caller.end()
    error = refusal(Caller, limited)
    assert str(error) == (
        "421 4.7.0 Too many errors from your address (limit: errors), try again in 200 s"
    )
    Caller(limited, "192.0.2.2")


# --- failed authentications --------------------------------------------------------------------


def test_failures_are_refused_at_auth_before_the_credentials_are_looked_at(store, clock):
    limited = rate_limit(store, auth_failures=Rate(3, 300.0, 3), clock=clock)
    caller = Caller(limited)
    for _ in range(3):
        caller.auth(fails=True)
    error = refusal(caller.auth, fails=True)
    assert str(error) == (
        "421 4.7.0 Too many failed authentications from your address (limit: auth_failures), "
        "try again in 100 s"
    )
    assert error.close


def test_a_success_costs_nothing(store, clock):
    limited = rate_limit(store, auth_failures=Rate(1, 1e6, 1), clock=clock)
    for _ in range(5):
        caller = Caller(limited)
        caller.auth(fails=False)
        caller.end()


def test_guesses_in_sessions_at_once_keep_the_limit(store, clock):
    limited = rate_limit(store, auth_failures=Rate(3, 1e6, 3), clock=clock)
    callers = [Caller(limited) for _ in range(10)]
    for caller in callers[:3]:
        caller.auth(fails=False)  # their answers are not there yet
    for caller in callers[3:]:
        assert refusal(caller.auth, fails=True).limit == "auth_failures"


# --- networks ----------------------------------------------------------------------------------


def test_a_network_has_a_limit_of_its_own_and_one_block_is_for_all_its_hosts(store, clock):
    limited = rate_limit(store, network_connections=Rate(2, 200.0, 2), clock=clock)
    Caller(limited, "192.0.2.1")
    Caller(limited, "192.0.2.2")
    error = refusal(Caller, limited, "192.0.2.3")
    assert str(error) == (
        "421 4.7.0 Too many connections from your network (limit: network_connections), "
        "try again in 100 s"
    )
    asked = len(store.asked)
    for host in range(256):
        refusal(Caller, limited, f"192.0.2.{host}")
    assert len(store.asked) == asked
    Caller(limited, "192.0.3.1")


def test_a_network_of_ipv6_is_a_48(store, clock):
    limited = rate_limit(store, network_connections=Rate(1, 200.0, 1), clock=clock)
    Caller(limited, "2001:db8:1:1::1")
    refusal(Caller, limited, "2001:db8:1:2::1")
    Caller(limited, "2001:db8:2:1::1")


# --- who is blocked ----------------------------------------------------------------------------


def test_a_host_whose_budget_is_exhausted_is_blocked_without_a_question(store, clock):
    limited = rate_limit(store, errors=Rate(1, 1e6, 1), clock=clock)
    caller = Caller(limited)
    caller.error()
    refusal(caller.mail)
    asked = len(store.asked)
    for _ in range(1000):
        clock.now += 1
        refusal(caller.mail)
        refusal(Caller, limited)
    assert len(store.asked) == asked


def test_an_exhausted_reservation_is_asked_about_again_after_seconds(store, clock):
    """Another worker's session may have given back what it did not spend."""
    limited = rate_limit(store, messages=Rate(2, 2000.0, 2), clock=clock)
    elsewhere = rate_limit(store, messages=Rate(2, 2000.0, 2), clock=clock)
    holder = Caller(elsewhere)
    caller = Caller(limited)
    caller.message()
    assert refusal(caller.mail).limit == "messages"
    holder.end()
    asked = len(store.asked)
    for _ in range(100):
        clock.now += RECHECK_SECONDS / 200
        # The wait is told as the store said it.
        told = 1000 - (clock.now - 1000.0)
        assert f"try again in {ceil(told)} s" in str(refusal(caller.mail))
        assert f"try again in {ceil(told)} s" in str(refusal(Caller, limited))
    assert len(store.asked) == asked
    clock.now += RECHECK_SECONDS
    caller.message()


def test_what_a_session_of_this_worker_gives_back_is_free_at_once(store, clock):
    limited = rate_limit(store, messages=Rate(2, 1e6, 2), clock=clock)
    holder = Caller(limited)
    caller = Caller(limited)
    caller.message()
    refusal(caller.mail)
    refusal(Caller, limited)
    holder.end()
    Caller(limited).message()


def test_a_blocked_sender_recipient_or_user_costs_no_question(store, clock):
    rate = Rate(1, 1000.0, 1)
    for limit in ("per_sender", "per_recipient", "per_user"):
        limited = rate_limit(store, **{limit: rate}, name=limit, clock=clock)
        caller = Caller(limited, username="joe")
        caller.message()
        asked = None
        for _ in range(100):
            error = refusal(caller.message)
            assert error.limit == limit
            asked = asked or len(store.asked)
        assert len(store.asked) == asked


# --- rates of addresses ------------------------------------------------------------------------


def test_a_reverse_path_has_a_rate_from_anywhere(store, clock):
    limited = rate_limit(store, per_sender=Rate(2, 200.0, 2), clock=clock)
    Caller(limited, "192.0.2.1").mail("joe@example.org")
    Caller(limited, "198.51.100.1").mail("joe+list@EXAMPLE.org")
    error = refusal(Caller(limited, "203.0.113.1").mail, "joe@example.org")
    assert str(error) == (
        "450 4.7.1 Too many messages from this sender (limit: per_sender), try again in 100 s"
    )
    Caller(limited).mail("ann@example.org")
    assert store.keys[0] == "rate_limit:per_sender:joe@example.org"


def test_the_null_reverse_path_has_no_rate(store, clock):
    limited = rate_limit(store, per_sender=Rate(1, 200.0, 1), clock=clock)
    for _ in range(3):
        Caller(limited).mail("")
    assert store.asked == []


def test_a_forward_path_has_a_rate_from_anybody(store, clock):
    limited = rate_limit(store, per_recipient=Rate(2, 200.0, 2), clock=clock)
    for address in ("ann@example.com", "Ann@Example.com"):
        Caller(limited).rcpt(address)
    error = refusal(Caller(limited, "192.0.2.9").rcpt, "ann@example.com")
    assert str(error) == (
        "450 4.7.1 Too many messages to this recipient (limit: per_recipient), try again in 100 s"
    )
    Caller(limited).rcpt("bob@example.com")


def test_recipients_of_a_flood_are_forgotten_as_they_expire(store, clock):
    limited = rate_limit(store, per_recipient=Rate(60, 60.0, 60), clock=clock)
    caller = Caller(limited)
    for number in range(5000):
        clock.now += 0.1
        caller.rcpt(f"{number}@example.com")
    # One second each: ten of them are alive, and the map holds at most about twice that.
    assert len(store.limits) < 50


def test_a_user_has_a_rate_and_others_have_none(store, clock):
    limited = rate_limit(store, per_user=Rate(2, 200.0, 2), clock=clock)
    for address in ("192.0.2.1", "198.51.100.1"):
        Caller(limited, address, username="joe").mail()
    error = refusal(Caller(limited, username="joe").mail)
    assert str(error) == (
        "450 4.7.1 Too many messages from this user (limit: per_user), try again in 100 s"
    )
    for _ in range(5):
        Caller(limited).mail()
    Caller(limited, username="ann").mail()


def test_rates_alone_ask_nothing_at_the_connection(store, clock):
    limited = rate_limit(store, per_sender=Rate(2, 200.0, 2), clock=clock)
    caller = Caller(limited)
    caller.end()
    assert store.asked == []
    assert limited.disconnect is None


# --- exemptions, XCLIENT, and a store that is away ---------------------------------------------


EVERY_LIMIT = {
    limit: Rate(1, 1e6, 1)
    for limit in (
        "connections",
        "network_connections",
        "messages",
        "recipients",
        "auth_failures",
        "octets",
        "errors",
        "per_sender",
        "per_recipient",
        "per_user",
    )
} | {"concurrent": 1}


@pytest.mark.parametrize(
    "options",
    [{"address": None}, {"address": "198.51.100.1"}, {"proxy": ProxyInfo(2, local=True)}],
)
def test_who_is_exempt_has_no_limit_at_all(store, clock, options):
    limited = rate_limit(store, **EVERY_LIMIT, allow=[ip_network("198.51.100.0/24")], clock=clock)
    for _ in range(3):
        caller = Caller(limited, **options, username="joe")
        for _ in range(3):
            caller.message(recipients=3, octets=10**6)
            caller.auth(fails=True)
            caller.error()
        caller.end()
    assert store.asked == []


def test_xclient_books_what_the_first_client_spent_and_begins_anew(store, clock):
    limited = rate_limit(store, messages=Rate(3, 1e6, 3), concurrent=5, clock=clock)
    caller = Caller(limited, "192.0.2.1")
    caller.message()
    caller.message()
    caller.forward("192.0.2.2")
    assert store.limits.leases == 1
    assert many(caller) == 3
    caller.end()
    assert store.limits.leases == 0
    assert many(Caller(limited, "192.0.2.1")) == 1


def test_xclient_may_name_somebody_without_limits(store, clock):
    limited = rate_limit(
        store, messages=Rate(1, 1e6, 1), allow=[ip_network("198.51.100.0/24")], clock=clock
    )
    caller = Caller(limited, "192.0.2.1")
    caller.message()
    refusal(caller.mail)
    caller.forward("198.51.100.1")
    assert many(caller, 10) == 10
    asked = len(store.asked)
    caller.end()
    assert len(store.asked) == asked


def test_limits_never_fail_closed(store, clock):
    limited = rate_limit(store, **EVERY_LIMIT | {"connections": None}, clock=clock)
    store.away = True
    caller = Caller(limited, username="joe")
    caller.message(recipients=3)
    store.away = False
    limited = rate_limit(store, **EVERY_LIMIT, clock=clock)
    caller = Caller(limited, username="joe")
    store.away = True
    for _ in range(100):
        caller.message(recipients=3, octets=10**6)
        caller.auth(fails=True)
        caller.error()
    caller.end()


def test_a_session_asks_a_store_that_is_away_seldom(store, clock):
    limited = rate_limit(store, messages=Rate(1, 1e6, 1), clock=clock)
    caller = Caller(limited)
    store.away = True
    many(caller, 160)
    assert store.asked.count("settle") <= 10


def test_what_is_not_limited_costs_no_hook(store, clock):
    limited = rate_limit(store, connections=Rate(1, 1.0, 1), clock=clock)
    for phase in ("check_auth", "check_sender", "check_recipient", "disconnect"):
        assert getattr(limited, phase) is None
    assert limited.authenticate is None
