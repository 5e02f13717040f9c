"""What every store answers, whichever it is."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from preforkmx.errors import StoreUnavailable
from preforkmx.state.decisions import (
    BUDGETS,
    CONCURRENT_WAIT,
    GIVE_BACK,
    LONGEST_NAME,
    LONGEST_SPAN,
    NOTHING,
    PREPAID,
    UNLIMITED,
    WITHOUT_LIMIT,
    ConnectionLimits,
    GreylistSettings,
    GreylistState,
    Lease,
    Rate,
    Spent,
)
from preforkmx.state.greylisting import NEW_TRIPLETS
from preforkmx.state.local import LocalStore

HOST = ip_address("192.0.2.1")
NEIGHBOUR = ip_address("192.0.2.2")
HOUR = 3600.0
DAY = 24 * HOUR
GREYLIST = GreylistSettings(delay=300.0, window=DAY, life=36 * DAY)
TRIPLET = ("192.0.2.0/24", "bounce-#@example.com", "user@example.net")


# --- rates ------------------------------------------------------------------------------------


def test_a_burst_is_allowed_at_once_and_the_next_event_is_told_its_exact_wait(with_store):
    async def scenario(store, clock):
        rate = Rate(count=60, period=60.0, burst=10)
        for _ in range(10):
            assert (await store.take(rate, "key")).allowed
        refused = await store.take(rate, "key")
        assert (refused.allowed, refused.wait) == (False, 1.0)
        clock.advance(0.75)
        assert (await store.take(rate, "key")).wait == 0.25

    with_store(scenario)


def test_what_was_refused_is_allowed_once_its_wait_is_over(with_store):
    async def scenario(store, clock):
        rate = Rate(count=1, period=10.0, burst=1)
        await store.take(rate, "key")
        clock.advance(3.0)
        clock.advance((await store.take(rate, "key")).wait)
        assert (await store.take(rate, "key")).allowed
        assert not (await store.take(rate, "key")).allowed

    with_store(scenario)


def test_a_refused_event_costs_nothing(with_store):
    async def scenario(store, clock):
        rate = Rate(count=1, period=10.0, burst=1)
        await store.take(rate, "key")
        waits = {(await store.take(rate, "key")).wait for _ in range(5)}
        assert waits == {10.0}

    with_store(scenario)


def test_two_keys_do_not_share_a_rate(with_store):
    async def scenario(store, clock):
        rate = Rate(count=1, period=10.0, burst=1)
        long = "sender:" + "a" * 300
        for key in ("sender:a", "sender:b", "sender:ü", long, long + "b"):
            assert (await store.take(rate, key)).allowed
            assert not (await store.take(rate, key)).allowed

    with_store(scenario)


def test_a_cost_above_the_burst_counts_as_the_burst(with_store):
    async def scenario(store, clock):
        rate = Rate(count=1, period=1.0, burst=10)
        assert (await store.take(rate, "key", cost=20)).allowed
        assert (await store.take(rate, "key", cost=20)).wait == 10.0
        clock.advance(10.0)
        assert (await store.take(rate, "key", cost=20)).allowed

    with_store(scenario)


def test_a_cost_is_taken_whole_or_not_at_all(with_store):
    async def scenario(store, clock):
        rate = Rate(count=1, period=1.0, burst=10)
        assert (await store.take(rate, "key", cost=8)).allowed
        assert (await store.take(rate, "key", cost=3)).wait == 1.0
        assert (await store.take(rate, "key", cost=2)).allowed

    with_store(scenario)


@pytest.mark.parametrize("cost", [0, -1])
def test_a_decision_without_a_cost_is_a_mistake(with_store, cost):
    async def scenario(store, clock):
        with pytest.raises(ValueError, match="at least 1"):
            await store.take(Rate(1, 1.0, 1), "key", cost=cost)

    with_store(scenario)


def test_a_clock_that_is_set_back_blocks_nobody_for_longer_than_the_burst_takes(with_store):
    async def scenario(store, clock):
        rate = Rate(count=1, period=1.0, burst=10)
        await store.take(rate, "key", cost=10)
        clock.advance(-DAY)
        assert (await store.take(rate, "key")).wait == 1.0

    with_store(scenario)


# --- connections --------------------------------------------------------------------------------


def test_a_connection_without_limits_is_admitted_without_a_lease(with_store):
    async def scenario(store, clock):
        admission = await store.open_connection(HOST, ConnectionLimits("none"))
        assert (admission.admitted, admission.lease) == (True, None)

    with_store(scenario)


def test_a_host_above_its_rate_is_refused_with_its_wait_and_holds_no_lease(with_store):
    async def scenario(store, clock):
        limits = ConnectionLimits("in", host=Rate(60, 60.0, 2), concurrent=5)
        assert (await store.open_connection(HOST, limits)).admitted
        assert (await store.open_connection(HOST, limits)).admitted
        refused = await store.open_connection(HOST, limits)
        assert (refused.admitted, refused.limit, refused.wait) == (False, "connections", 1.0)
        assert refused.lease is None
        assert (await store.open_connection(NEIGHBOUR, limits)).admitted

    with_store(scenario)


def test_neighbours_share_the_limit_of_their_network(with_store):
    async def scenario(store, clock):
        limits = ConnectionLimits("in", network=Rate(1, 10.0, 2))
        assert (await store.open_connection(HOST, limits)).admitted
        assert (await store.open_connection(NEIGHBOUR, limits)).admitted
        refused = await store.open_connection(HOST, limits)
        assert (refused.limit, refused.wait) == ("network", 10.0)
        assert (await store.open_connection(ip_address("192.0.3.1"), limits)).admitted

    with_store(scenario)


def test_the_limit_that_lasts_longest_is_the_one_that_is_named(with_store):
    async def scenario(store, clock):
        limits = ConnectionLimits("in", host=Rate(1, 10.0, 1), network=Rate(1, 30.0, 1))
        await store.open_connection(HOST, limits)
        refused = await store.open_connection(HOST, limits)
        assert (refused.limit, refused.wait) == ("network", 30.0)
        limits = ConnectionLimits("out", host=Rate(1, 30.0, 1), network=Rate(1, 10.0, 1))
        await store.open_connection(HOST, limits)
        refused = await store.open_connection(HOST, limits)
        assert (refused.limit, refused.wait) == ("connections", 30.0)

    with_store(scenario)


def test_a_connection_that_one_limit_refuses_is_charged_to_none(with_store):
    async def scenario(store, clock):
        limits = ConnectionLimits("in", host=Rate(1, 10.0, 1), network=Rate(1, 10.0, 2))
        await store.open_connection(HOST, limits)
        for _ in range(5):
            assert (await store.open_connection(HOST, limits)).limit == "connections"
        assert (await store.open_connection(NEIGHBOUR, limits)).admitted

        limits = ConnectionLimits("out", host=Rate(1, 10.0, 2), concurrent=1)
        held = (await store.open_connection(HOST, limits)).lease
        for _ in range(5):
            assert (await store.open_connection(HOST, limits)).limit == "concurrent"
        await store.close_connection(held)
        assert (await store.open_connection(HOST, limits)).admitted

    with_store(scenario)


def test_a_place_is_free_again_when_its_lease_is_closed(with_store):
    async def scenario(store, clock):
        limits = ConnectionLimits("in", concurrent=2)
        first = await store.open_connection(HOST, limits)
        assert (await store.open_connection(HOST, limits)).admitted
        refused = await store.open_connection(HOST, limits)
        assert (refused.admitted, refused.limit) == (False, "concurrent")
        assert refused.wait == CONCURRENT_WAIT
        await store.close_connection(first.lease)
        assert (await store.open_connection(HOST, limits)).admitted
        assert not (await store.open_connection(HOST, limits)).admitted

    with_store(scenario)


def test_closing_a_lease_twice_frees_one_place(with_store):
    async def scenario(store, clock):
        limits = ConnectionLimits("in", concurrent=2)
        first = await store.open_connection(HOST, limits)
        await store.open_connection(HOST, limits)
        await store.close_connection(first.lease)
        await store.close_connection(first.lease)
        assert (await store.open_connection(HOST, limits)).admitted
        assert not (await store.open_connection(HOST, limits)).admitted

    with_store(scenario)


def test_a_lease_of_another_store_frees_no_place(with_store):
    async def scenario(store, clock):
        limits = ConnectionLimits("in", concurrent=1)
        own = (await store.open_connection(HOST, limits)).lease
        foreign = Lease(own.id, own.keys, LocalStore(clock), own.address, limits)
        await store.close_connection(foreign)
        assert not (await store.open_connection(HOST, limits)).admitted

    with_store(scenario)


def test_limits_of_another_name_count_apart(with_store):
    async def scenario(store, clock):
        for name in ("a", "b", "", "ü" * 32):
            limits = ConnectionLimits(name, host=Rate(1, 1.0, 1), concurrent=1)
            assert (await store.open_connection(HOST, limits)).admitted
            assert not (await store.open_connection(HOST, limits)).admitted

    with_store(scenario)


@pytest.mark.parametrize(
    ("address", "same", "other"),
    [
        ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2"),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:2::1"),
    ],
)
def test_a_host_is_an_ipv4_address_or_an_ipv6_64(with_store, address, same, other):
    async def scenario(store, clock):
        limits = ConnectionLimits("in", concurrent=1)
        assert (await store.open_connection(ip_address(address), limits)).admitted
        assert not (await store.open_connection(ip_address(same), limits)).admitted
        assert (await store.open_connection(ip_address(other), limits)).admitted

    with_store(scenario)


# --- budgets ------------------------------------------------------------------------------------

TEN = Rate(count=1, period=10.0, burst=10)
EACH = ConnectionLimits(
    "in", messages=TEN, recipients=TEN, auth_failures=TEN, octets=TEN, errors=TEN
)


def test_a_session_begins_with_a_message_and_a_recipient_and_may_spend_what_is_left(with_store):
    async def scenario(store, clock):
        admission = await store.open_connection(HOST, EACH)
        assert admission.grants == Spent(1, 1, 0, 10, 10)
        assert admission.lease.reserved == (1, 1, 0)
        some = ConnectionLimits("some", recipients=TEN, errors=TEN)
        admission = await store.open_connection(HOST, some)
        assert admission.grants == Spent(UNLIMITED, 1, UNLIMITED, UNLIMITED, 10)
        assert admission.lease.reserved == (0, 1, 0)
        none = ConnectionLimits("none", concurrent=3)
        admission = await store.open_connection(HOST, none)
        assert admission.grants == WITHOUT_LIMIT
        settled = await store.settle(admission.lease, Spent(9, 9, 9, 9, 9), Spent(9, 9, 9))
        assert (settled.allowed, settled.grants) == (True, WITHOUT_LIMIT)

    with_store(scenario)


@pytest.mark.parametrize("budget", range(len(BUDGETS)))
def test_a_budget_of_which_no_unit_is_left_refuses_a_connection_and_names_its_wait(
    with_store, budget
):
    async def scenario(store, clock):
        lease = (await store.open_connection(HOST, EACH)).lease
        spent = [0] * len(BUDGETS)
        spent[budget] = 10
        await store.close_connection(lease, Spent(*spent))
        refused = await store.open_connection(HOST, EACH)
        assert (refused.admitted, refused.lease) == (False, None)
        assert (refused.limit, refused.wait) == (BUDGETS[budget], 10.0)
        assert (await store.open_connection(NEIGHBOUR, EACH)).admitted
        clock.advance(9.0)
        assert (await store.open_connection(HOST, EACH)).wait == 1.0
        clock.advance(1.0)
        assert (await store.open_connection(HOST, EACH)).admitted

    with_store(scenario)


def test_the_budget_that_lasts_longest_is_the_one_that_is_named(with_store):
    async def scenario(store, clock):
        limits = ConnectionLimits(
            "in",
            host=Rate(1, 20.0, 1),
            octets=Rate(1, 30.0, 1),
            errors=Rate(1, 40.0, 1),
            concurrent=1,
        )
        lease = (await store.open_connection(HOST, limits)).lease
        refused = await store.open_connection(HOST, limits)
        assert (refused.limit, refused.wait) == ("connections", 20.0)
        settled = await store.settle(lease, Spent(octets=1, errors=1))
        assert (settled.allowed, settled.limit, settled.wait) == (False, "errors", 40.0)
        refused = await store.open_connection(HOST, limits)
        assert (refused.limit, refused.wait) == ("errors", 40.0)

        limits = ConnectionLimits("out", octets=Rate(1, 40.0, 1), errors=Rate(1, 30.0, 1))
        lease = (await store.open_connection(HOST, limits)).lease
        settled = await store.settle(lease, Spent(octets=1, errors=1))
        assert (settled.limit, settled.wait) == ("octets", 40.0)
        refused = await store.open_connection(HOST, limits)
        assert (refused.limit, refused.wait) == ("octets", 40.0)

    with_store(scenario)


def test_a_connection_that_is_refused_reserves_nothing(with_store):
    async def scenario(store, clock):
        limits = ConnectionLimits("in", concurrent=1, messages=Rate(1, 10.0, 2))
        held = (await store.open_connection(HOST, limits)).lease
        for _ in range(5):
            assert (await store.open_connection(HOST, limits)).limit == "concurrent"
        settled = await store.settle(held, NOTHING, Spent(messages=2))
        assert (settled.allowed, settled.grants.messages) == (True, 2)

        once = ConnectionLimits("once", host=Rate(1, 10.0, 1), messages=Rate(1, 10.0, 2))
        held = (await store.open_connection(HOST, once)).lease
        for _ in range(5):
            assert (await store.open_connection(HOST, once)).limit == "connections"
        assert (await store.settle(held, NOTHING, Spent(messages=2))).grants.messages == 2

    with_store(scenario)


def test_what_is_exhausted_charges_no_other_limit(with_store):
    async def scenario(store, clock):
        limits = ConnectionLimits(
            "in", host=Rate(1, 5.0, 2), network=Rate(1, 5.0, 9), concurrent=9, errors=TEN
        )
        lease = (await store.open_connection(HOST, limits)).lease
        await store.close_connection(lease, Spent(errors=10))
        for _ in range(20):
            assert (await store.open_connection(HOST, limits)).limit == "errors"
        for last in range(8):
            address = ip_address(f"192.0.2.{10 + last}")
            assert (await store.open_connection(address, limits)).admitted
        clock.advance(10.0)
        assert (await store.open_connection(HOST, limits)).admitted

    with_store(scenario)


def test_any_number_of_sessions_at_once_have_no_more_than_the_budget(with_store):
    async def scenario(store, clock):
        admissions = [await store.open_connection(HOST, EACH) for _ in range(12)]
        leases = [admission.lease for admission in admissions if admission.admitted]
        assert len(leases) == 10
        assert (admissions[-1].limit, admissions[-1].wait) == ("messages", 10.0)
        for lease in leases:
            settled = await store.settle(lease, Spent(messages=1), Spent(messages=1))
            assert (settled.allowed, settled.limit, settled.wait) == (False, "messages", 10.0)
            assert settled.grants.messages == 0
            assert settled.grants.recipients == 1

    with_store(scenario)


def test_a_session_gets_a_quarter_of_what_is_left_and_at_least_one_unit(with_store):
    async def scenario(store, clock):
        limits = ConnectionLimits("in", messages=Rate(1, 10.0, 41))
        lease = (await store.open_connection(HOST, limits)).lease
        grants = []
        for spent in (1, 10, 7, 5, 4, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1):
            settled = await store.settle(lease, Spent(messages=spent), Spent(messages=100))
            grants.append(settled.grants.messages)
        # A quarter of 40, of 30, of 23, of 18, …
        assert grants == [10, 7, 5, 4, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1, 0]
        assert sum(grants) == 40
        assert (settled.allowed, settled.limit) == (False, "messages")

    with_store(scenario)


def test_what_a_session_has_already_is_not_reserved_again(with_store):
    async def scenario(store, clock):
        lease = (await store.open_connection(HOST, EACH)).lease
        for _ in range(3):
            settled = await store.settle(lease, NOTHING, Spent(2, 1, 1))
            assert settled.grants == Spent(2, 1, 1, 10, 10)
        assert lease.reserved == (2, 1, 1)
        settled = await store.settle(lease, Spent(1, 1, 1), NOTHING)
        assert settled.grants == Spent(1, 0, 0, 10, 10)
        assert lease.reserved == (1, 0, 0)
        await store.close_connection(lease, Spent(messages=1))
        # Two messages, one recipient and one failure are gone, nothing else.
        lease = (await store.open_connection(HOST, EACH)).lease
        await store.close_connection(lease, Spent(8, 9, 9))
        refused = await store.open_connection(HOST, EACH)
        assert (refused.admitted, refused.wait) == (False, 10.0)

    with_store(scenario)


def test_what_is_still_reserved_at_the_end_is_given_back(with_store):
    async def scenario(store, clock):
        for _ in range(30):
            lease = (await store.open_connection(HOST, EACH)).lease
            settled = await store.settle(lease, NOTHING, Spent(3, 3, 3))
            assert settled.grants[:PREPAID] == (3, 3, 2)
            await store.close_connection(lease)
            await store.close_connection(lease, Spent(5, 5, 5, 5, 5))

    with_store(scenario)


def test_what_is_given_back_late_makes_no_budget_larger_than_its_burst(with_store):
    async def scenario(store, clock):
        lease = (await store.open_connection(HOST, EACH)).lease
        clock.advance(DAY)
        await store.close_connection(lease)
        admissions = [await store.open_connection(HOST, EACH) for _ in range(11)]
        assert [admission.admitted for admission in admissions].count(True) == 10

    with_store(scenario)


def test_a_settlement_that_is_refused_keeps_what_the_session_has_and_reserves_nothing(with_store):
    async def scenario(store, clock):
        limits = ConnectionLimits(
            "in", messages=TEN, recipients=TEN, auth_failures=Rate(1, 50.0, 1)
        )
        one = (await store.open_connection(HOST, limits)).lease
        two = (await store.open_connection(HOST, limits)).lease
        assert (await store.settle(one, NOTHING, Spent(auth_failures=1))).allowed
        for _ in range(20):
            refused = await store.settle(two, NOTHING, Spent(5, 5, 1))
            assert (refused.allowed, refused.limit, refused.wait) == (False, "auth_failures", 50.0)
            assert refused.grants == Spent(1, 1, 0, UNLIMITED, UNLIMITED)
        settled = await store.settle(one, NOTHING, Spent(3, 3, 1))
        assert (settled.allowed, settled.grants[:PREPAID]) == (True, (3, 3, 1))
        await store.close_connection(one)
        assert (await store.settle(two, NOTHING, Spent(auth_failures=1))).allowed

    with_store(scenario)


def test_a_session_gives_back_what_it_wants_no_more(with_store):
    async def scenario(store, clock):
        limits = ConnectionLimits("in", messages=TEN, auth_failures=Rate(1, 50.0, 1))
        one = (await store.open_connection(HOST, limits)).lease
        assert (await store.settle(one, NOTHING, Spent(auth_failures=1))).allowed
        assert (await store.open_connection(HOST, limits)).limit == "auth_failures"
        settled = await store.settle(one, NOTHING, Spent(auth_failures=GIVE_BACK))
        assert (settled.allowed, settled.grants[:PREPAID]) == (True, (1, UNLIMITED, 0))
        two = (await store.open_connection(HOST, limits)).lease
        # What was spent of it before stays spent.
        assert (await store.settle(two, NOTHING, Spent(auth_failures=1))).allowed
        await store.settle(two, Spent(auth_failures=1), Spent(auth_failures=GIVE_BACK))
        await store.close_connection(one)
        refused = await store.open_connection(HOST, limits)
        assert (refused.admitted, refused.limit, refused.wait) == (False, "auth_failures", 50.0)

    with_store(scenario)


def test_what_was_spent_is_booked_where_the_settlement_is_refused_too(with_store):
    async def scenario(store, clock):
        lease = (await store.open_connection(HOST, EACH)).lease
        settled = await store.settle(lease, Spent(messages=1, errors=10), Spent(messages=1))
        assert (settled.allowed, settled.limit, settled.wait) == (False, "errors", 10.0)
        assert settled.grants == Spent(0, 1, 0, 10, 0)
        await store.close_connection(lease)
        clock.advance(10.0)
        lease = (await store.open_connection(HOST, EACH)).lease
        # One message was spent, and earned back meanwhile; nine errors are still owed.
        settled = await store.settle(lease, NOTHING, Spent(messages=10))
        assert (settled.grants.messages, settled.grants.errors) == (3, 1)

    with_store(scenario)


def test_a_budget_that_is_paid_afterwards_may_run_into_debt_which_time_pays(with_store):
    async def scenario(store, clock):
        lease = (await store.open_connection(HOST, EACH)).lease
        settled = await store.settle(lease, Spent(octets=15))
        assert (settled.allowed, settled.limit, settled.wait) == (False, "octets", 60.0)
        clock.advance(59.0)
        refused = await store.open_connection(HOST, EACH)
        assert (refused.limit, refused.wait) == ("octets", 1.0)
        clock.advance(1.0)
        settled = await store.settle(lease, NOTHING)
        assert (settled.allowed, settled.grants.octets) == (True, 1)

    with_store(scenario)


@pytest.mark.parametrize("budget", range(len(BUDGETS)))
def test_a_debt_is_a_burst_at_most(with_store, budget):
    async def scenario(store, clock):
        lease = (await store.open_connection(HOST, EACH)).lease
        spent = [0] * len(BUDGETS)
        spent[budget] = 1 << 40
        await store.settle(lease, Spent(*spent))
        await store.close_connection(lease, Spent(*spent))
        refused = await store.open_connection(HOST, EACH)
        # The burst that is owed takes 100 s, the first unit after it 10 s.
        assert (refused.limit, refused.wait) == (BUDGETS[budget], 110.0)
        clock.advance(-DAY)
        assert (await store.open_connection(HOST, EACH)).wait == 110.0
        clock.advance(DAY + 110.0)
        assert (await store.open_connection(HOST, EACH)).admitted

    with_store(scenario)


def test_more_than_was_reserved_is_charged_too(with_store):
    async def scenario(store, clock):
        lease = (await store.open_connection(HOST, EACH)).lease
        settled = await store.settle(lease, Spent(messages=3), Spent(messages=100))
        assert settled.grants.messages == 1  # a quarter of 7
        await store.close_connection(lease, Spent(messages=5))
        lease = (await store.open_connection(HOST, EACH)).lease
        settled = await store.settle(lease, NOTHING, Spent(messages=2))
        assert settled.grants.messages == 2  # of 10 less 8
        assert not (await store.open_connection(HOST, EACH)).admitted

    with_store(scenario)


def test_budgets_of_another_name_or_host_count_apart(with_store):
    async def scenario(store, clock):
        one = Rate(1, 10.0, 1)
        for name in ("a", "b", "", "ü" * 32):
            limits = ConnectionLimits(name, messages=one)
            for address in (HOST, NEIGHBOUR, ip_address("2001:db8::1")):
                assert (await store.open_connection(address, limits)).admitted
                assert not (await store.open_connection(address, limits)).admitted

    with_store(scenario)


def test_the_largest_limits_of_all_fit(with_store):
    async def scenario(store, clock):
        most = Rate(1, float(LONGEST_SPAN), 1)
        limits = ConnectionLimits(
            "n" * LONGEST_NAME, Rate(1, 1.0, 9), None, 2**32 - 1, most, most, most, most, most
        )
        address = ip_address("2001:db8::1")
        lease = (await store.open_connection(address, limits)).lease
        settled = await store.settle(lease, Spent(1, 1, 0, 1 << 62, 0), Spent(auth_failures=1))
        assert (settled.allowed, settled.limit) == (False, "octets")
        assert settled.wait == 2 * LONGEST_SPAN - LONGEST_SPAN + LONGEST_SPAN

    with_store(scenario)


def test_a_lease_without_a_place_counts_no_open_connection(with_store):
    async def scenario(store, clock):
        admission = await store.open_connection(HOST, EACH)
        limits = ConnectionLimits("in", concurrent=1)
        assert (await store.open_connection(HOST, limits)).admitted
        await store.close_connection(admission.lease)
        assert not (await store.open_connection(HOST, limits)).admitted

    with_store(scenario)


def test_a_lease_that_has_ended_settles_nothing(with_store):
    async def scenario(store, clock):
        lease = (await store.open_connection(HOST, EACH)).lease
        await store.close_connection(lease)
        with pytest.raises(StoreUnavailable) as caught:
            await store.settle(lease, Spent(octets=10))
        assert caught.value.partial
        assert (await store.open_connection(HOST, EACH)).grants.octets == 10

    with_store(scenario)


@pytest.mark.parametrize("spent", [Spent(messages=-1), Spent(errors=-1)])
def test_nobody_spends_less_than_nothing(with_store, spent):
    async def scenario(store, clock):
        lease = (await store.open_connection(HOST, EACH)).lease
        for operation in (
            store.settle(lease, spent),
            store.settle(lease, NOTHING, spent.plus(spent)),
            store.close_connection(lease, spent),
        ):
            with pytest.raises(ValueError, match="less than nothing"):
                await operation

    with_store(scenario)


# --- greylisting --------------------------------------------------------------------------------


def test_a_triplet_goes_from_new_over_early_and_passed_to_known(with_store):
    async def scenario(store, clock):
        new = await store.greylist(*TRIPLET, GREYLIST)
        assert (new.state, new.seconds_left, new.deferred) == (GreylistState.NEW, 300.0, True)
        clock.advance(299.5)
        early = await store.greylist(*TRIPLET, GREYLIST)
        assert (early.state, early.seconds_left, early.deferred) == (
            GreylistState.EARLY,
            0.5,
            True,
        )
        clock.advance(0.5)
        passed = await store.greylist(*TRIPLET, GREYLIST)
        assert (passed.state, passed.waited, passed.deferred) == (
            GreylistState.PASSED,
            300.0,
            False,
        )
        known = await store.greylist(*TRIPLET, GREYLIST)
        assert (known.state, known.waited, known.deferred) == (GreylistState.KNOWN, 0.0, False)

    with_store(scenario)


def test_trying_early_does_not_make_the_delay_longer(with_store):
    async def scenario(store, clock):
        await store.greylist(*TRIPLET, GREYLIST)
        for _ in range(10):
            clock.advance(30.0)
            verdict = await store.greylist(*TRIPLET, GREYLIST)
        assert verdict.state is GreylistState.PASSED

    with_store(scenario)


def test_a_retry_after_the_window_is_a_new_triplet(with_store):
    async def scenario(store, clock):
        await store.greylist(*TRIPLET, GREYLIST)
        clock.advance(DAY)
        verdict = await store.greylist(*TRIPLET, GREYLIST)
        assert verdict.state is GreylistState.NEW

    with_store(scenario)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_each_part_of_a_triplet_counts(with_store, part):
    async def scenario(store, clock):
        await store.greylist(*TRIPLET, GREYLIST)
        clock.advance(300.0)
        other = [*TRIPLET]
        other[part] += "x"
        assert (await store.greylist(*other, GREYLIST)).state is GreylistState.NEW
        assert (await store.greylist(*TRIPLET, GREYLIST)).state is GreylistState.PASSED

    with_store(scenario)


def test_a_known_triplet_is_forgotten_a_life_after_it_was_last_seen(with_store):
    async def scenario(store, clock):
        await store.greylist(*TRIPLET, GREYLIST)
        clock.advance(300.0)
        await store.greylist(*TRIPLET, GREYLIST)
        for _ in range(3):
            clock.advance(35 * DAY)
            assert (await store.greylist(*TRIPLET, GREYLIST)).state is GreylistState.KNOWN
        clock.advance(36 * DAY)
        assert (await store.greylist(*TRIPLET, GREYLIST)).state is GreylistState.NEW

    with_store(scenario)


async def _pass(store, clock, number, settings=GREYLIST):
    triplet = (TRIPLET[0], f"sender{number}@example.com", TRIPLET[2])
    await store.greylist(*triplet, settings)
    clock.advance(300.0)
    assert (await store.greylist(*triplet, settings)).state is GreylistState.PASSED


def test_a_network_is_allowed_after_five_passes_an_hour_apart(with_store):
    async def scenario(store, clock):
        for number in range(5):
            await _pass(store, clock, number)
            clock.advance(HOUR - 300.0)
        stranger = (TRIPLET[0], "stranger@example.com", TRIPLET[2])
        verdict = await store.greylist(*stranger, GREYLIST)
        assert (verdict.state, verdict.deferred) == (GreylistState.AUTO_ALLOWED, False)
        elsewhere = ("198.51.100.0/24", "stranger@example.com", TRIPLET[2])
        assert (await store.greylist(*elsewhere, GREYLIST)).state is GreylistState.NEW

    with_store(scenario)


def test_passes_within_an_hour_count_once(with_store):
    async def scenario(store, clock):
        for number in range(8):
            await _pass(store, clock, number)
        stranger = (TRIPLET[0], "stranger@example.com", TRIPLET[2])
        assert (await store.greylist(*stranger, GREYLIST)).state is GreylistState.NEW

    with_store(scenario)


def test_an_allowed_network_is_forgotten_a_life_after_it_was_last_seen(with_store):
    async def scenario(store, clock):
        for number in range(5):
            await _pass(store, clock, number)
            clock.advance(HOUR)
        clock.advance(35 * DAY)
        verdict = await store.greylist(TRIPLET[0], "a@example.com", "b", GREYLIST)
        assert verdict.state is GreylistState.AUTO_ALLOWED
        clock.advance(35 * DAY)
        verdict = await store.greylist(TRIPLET[0], "b@example.com", "b", GREYLIST)
        assert verdict.state is GreylistState.AUTO_ALLOWED
        clock.advance(36 * DAY)
        verdict = await store.greylist(TRIPLET[0], "c@example.com", "b", GREYLIST)
        assert verdict.state is GreylistState.NEW

    with_store(scenario)


def test_networks_are_never_allowed_when_the_settings_say_so(with_store):
    async def scenario(store, clock):
        never = GreylistSettings(auto_allow_after=0)
        for number in range(7):
            await _pass(store, clock, number, never)
            clock.advance(HOUR)
        verdict = await store.greylist(TRIPLET[0], "stranger@example.com", "b", never)
        assert verdict.state is GreylistState.NEW

    with_store(scenario)


def test_a_spray_of_one_network_is_deferred_but_not_written_down(with_store):
    async def scenario(store, clock):
        triplets = [
            (TRIPLET[0], f"spray{number}@example.com", TRIPLET[2])
            for number in range(NEW_TRIPLETS.burst + 50)
        ]
        for triplet in triplets:
            assert (await store.greylist(*triplet, GREYLIST)).state is GreylistState.NEW
        # A neighbouring network is not concerned.
        assert (await store.greylist("198.51.100.0/24", "", "b", GREYLIST)).deferred
        clock.advance(300.0)
        states = [(await store.greylist(*triplet, GREYLIST)).state for triplet in triplets]
        assert states.count(GreylistState.PASSED) == NEW_TRIPLETS.burst
        verdict = await store.greylist("198.51.100.0/24", "", "b", GREYLIST)
        assert verdict.state is GreylistState.PASSED

    with_store(scenario)


def test_a_clock_that_is_set_back_makes_a_deferred_triplet_wait_once_more(with_store):
    async def scenario(store, clock):
        await store.greylist(*TRIPLET, GREYLIST)
        clock.advance(-DAY)
        verdict = await store.greylist(*TRIPLET, GREYLIST)
        assert (verdict.state, verdict.seconds_left) == (GreylistState.EARLY, 300.0)
        clock.advance(300.0)
        assert (await store.greylist(*TRIPLET, GREYLIST)).state is GreylistState.PASSED

    with_store(scenario)


def test_a_new_delay_counts_for_what_is_deferred_already(with_store):
    async def scenario(store, clock):
        await store.greylist(*TRIPLET, GREYLIST)
        clock.advance(60.0)
        shorter = GreylistSettings(delay=60.0)
        assert (await store.greylist(*TRIPLET, shorter)).state is GreylistState.PASSED

    with_store(scenario)
