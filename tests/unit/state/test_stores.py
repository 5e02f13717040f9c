"""What every store answers, whichever it is."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from preforkmx.state.decisions import (
    CONCURRENT_WAIT,
    ConnectionLimits,
    GreylistSettings,
    GreylistState,
    Rate,
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
        foreign = (await LocalStore(clock).open_connection(HOST, limits)).lease
        own = (await store.open_connection(HOST, limits)).lease
        assert own.id == foreign.id
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
