"""What an operator sees and changes, whichever store it is."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest

from preforkmx.errors import StoreUnavailable
from preforkmx.state.decisions import (
    ConnectionLimits,
    GreylistSettings,
    GreylistState,
    Rate,
    Spent,
)
from preforkmx.state.embedded.operator import EmbeddedOperator
from preforkmx.state.operator import GreylistView, HostView, Left

HOST = ip_address("192.0.2.1")
NEIGHBOUR = ip_address("192.0.2.2")
SIX = ip_address("2001:db8::1")
DAY = 86_400.0
NETWORK = "192.0.2.0/24"
PATHS = ("joe@example.org", "ann@example.com")
SETTINGS = GreylistSettings(delay=300.0, window=DAY, life=36 * DAY)
LIMITS = ConnectionLimits(
    "limits",
    host=Rate(10, 10.0, 10),
    network=Rate(60, 60.0, 30),
    concurrent=5,
    messages=Rate(10, DAY, 10),
    octets=Rate(1000, DAY, 1000),
    errors=Rate(10, DAY, 10),
)


@pytest.mark.parametrize("host", [HOST, SIX], ids=["IPv4", "IPv6"])
def test_what_is_left_to_a_host_is_shown_and_looking_costs_nothing(with_operator, host):
    async def scenario(store, operator, clock):
        whole = await operator.look_at_host(host, LIMITS)
        assert whole.open == 0
        assert {name: left.left for name, left in whole.limits.items()} == {
            "connections": 10,
            "network": 30,
            "messages": 10,
            "octets": 1000,
            "errors": 10,
        }
        leases = [(await store.open_connection(host, LIMITS)).lease for _ in range(3)]
        await store.settle(leases[0], Spent(messages=1, octets=1500, errors=4))
        for _ in range(2):
            view = await operator.look_at_host(host, LIMITS)
            assert view == HostView(
                {
                    "connections": Left(7, 10, 0.0),
                    "network": Left(27, 30, 0.0),
                    # One is spent, and two are reserved for the others.
                    "messages": Left(7, 10, 0.0),
                    "octets": Left(0, 1000, 501 * 86.4),
                    "errors": Left(6, 10, 0.0),
                },
                3,
            )
        await store.close_connection(leases[1])
        # A lease is given back without a reply: one that was asked for behind it has come.
        await store.take(Rate(1, 1.0, 1), "any")
        view = await operator.look_at_host(host, LIMITS)
        assert (view.open, view.limits["messages"].left) == (2, 8)
        clock.advance(1.0)
        assert (await operator.look_at_host(host, LIMITS)).limits["connections"].left == 8

    with_operator(scenario)


def test_the_wait_that_is_shown_is_the_one_that_a_client_is_told(with_operator):
    async def scenario(store, operator, clock):
        limits = ConnectionLimits("limits", host=Rate(1, 60.0, 2))
        for _ in range(2):
            await store.open_connection(HOST, limits)
        clock.advance(7.5)
        refused = await store.open_connection(HOST, limits)
        assert not refused.admitted
        view = await operator.look_at_host(HOST, limits)
        assert view.limits == {"connections": Left(0, 2, refused.wait)}

    with_operator(scenario)


def test_a_limit_that_is_not_set_is_not_shown(with_operator):
    async def scenario(store, operator, clock):
        assert await operator.look_at_host(HOST, ConnectionLimits("none")) == HostView({}, 0)

    with_operator(scenario)


def test_a_host_that_is_forgotten_has_everything_again_and_others_keep_theirs(with_operator):
    async def scenario(store, operator, clock):
        assert await operator.forget_host(HOST, LIMITS) is False
        lease = (await store.open_connection(HOST, LIMITS)).lease
        await store.open_connection(NEIGHBOUR, LIMITS)
        await store.settle(lease, Spent(errors=10))
        assert not (await store.open_connection(HOST, LIMITS)).admitted
        assert await operator.forget_host(HOST, LIMITS) is True
        view = await operator.look_at_host(HOST, LIMITS)
        assert all(left.left == left.of for left in view.limits.values())
        assert view.open == 1, "what is open is open"
        assert (await store.open_connection(HOST, LIMITS)).admitted
        other = (await operator.look_at_host(NEIGHBOUR, LIMITS)).limits
        assert other["connections"].left == 9
        await store.close_connection(lease)

    with_operator(scenario)


def test_a_rate_is_shown_and_forgotten(with_operator):
    async def scenario(store, operator, clock):
        rate, key = Rate(1, 3600.0, 3), "limits:per_sender:joe@example.org"
        assert await operator.look_at_rate(rate, key) == Left(3, 3, 0.0)
        assert await operator.forget_rate(key) is False
        for _ in range(3):
            await store.take(rate, key)
        assert await operator.look_at_rate(rate, key) == Left(0, 3, 3600.0)
        assert await operator.forget_rate(key) is True
        assert (await store.take(rate, key)).allowed

    with_operator(scenario)


def test_a_triplet_and_its_network_are_shown_in_every_state(with_operator):
    async def scenario(store, operator, clock):
        def look():
            return operator.look_at_greylist(NETWORK, PATHS, SETTINGS)

        began = clock()
        for _ in range(2):
            assert await look() == GreylistView(0, 0, 0, False, GreylistState.NEW, 0, 300.0, 0)
        await store.greylist(NETWORK, *PATHS, SETTINGS)
        clock.advance(100.0)
        assert await look() == GreylistView(
            0, 0, 0, False, GreylistState.EARLY, began, 200.0, began + DAY
        )
        clock.advance(250.0)
        assert (await look()).state is GreylistState.PASSED
        verdict = await store.greylist(NETWORK, *PATHS, SETTINGS)
        assert verdict.state is GreylistState.PASSED
        view = await look()
        until = clock() + 36 * DAY
        assert view == GreylistView(1, clock(), until, False, GreylistState.KNOWN, 0.0, 0.0, until)
        alone = await operator.look_at_greylist(NETWORK, None, SETTINGS)
        assert alone == GreylistView(1, clock(), until, False)
        clock.advance(37 * DAY)
        assert (await look()).state is GreylistState.NEW
        assert (await look()).passes == 0

    with_operator(scenario)


def test_a_triplet_that_is_forgotten_is_a_stranger_again(with_operator):
    async def scenario(store, operator, clock):
        assert await operator.forget_greylist(NETWORK, PATHS) is False
        other = ("bob@example.org", PATHS[1])
        for paths in (PATHS, other):
            await store.greylist(NETWORK, *paths, SETTINGS)
        clock.advance(300.0)
        for paths in (PATHS, other):
            await store.greylist(NETWORK, *paths, SETTINGS)
        assert await operator.forget_greylist(NETWORK, PATHS) is True
        verdict = await store.greylist(NETWORK, *PATHS, SETTINGS)
        assert verdict.state is GreylistState.NEW
        assert (await operator.look_at_greylist(NETWORK, None, SETTINGS)).passes == 0
        # Nobody named the other one.
        assert (await store.greylist(NETWORK, *other, SETTINGS)).state is GreylistState.KNOWN
        # One that is deferred is forgotten, too.
        assert await operator.forget_greylist(NETWORK, PATHS) is True
        view = await operator.look_at_greylist(NETWORK, PATHS, SETTINGS)
        assert view.state is GreylistState.NEW
        assert view.triplet_until == 0.0

    with_operator(scenario)


@pytest.mark.parametrize("network", [NETWORK, "2001:db8:0:0::/64"])
def test_a_network_that_is_allowed_is_asked_no_more_until_it_is_forgotten(with_operator, network):
    async def scenario(store, operator, clock):
        await operator.allow_network(network, 90 * DAY, SETTINGS)
        view = await operator.look_at_greylist(network, PATHS, SETTINGS)
        assert view == GreylistView(
            5, clock(), clock() + 90 * DAY, True, GreylistState.AUTO_ALLOWED
        )
        clock.advance(80 * DAY)
        verdict = await store.greylist(network, *PATHS, SETTINGS)
        assert verdict.state is GreylistState.AUTO_ALLOWED
        assert await operator.forget_greylist(network, None) is True
        assert (await store.greylist(network, *PATHS, SETTINGS)).state is GreylistState.NEW

    with_operator(scenario)


def test_an_allowed_network_is_forgotten_when_its_time_is_over(with_operator):
    async def scenario(store, operator, clock):
        await operator.allow_network(NETWORK, DAY, SETTINGS)
        clock.advance(DAY)
        assert (await store.greylist(NETWORK, *PATHS, SETTINGS)).state is GreylistState.NEW

    with_operator(scenario)


def test_a_greylist_that_allows_no_networks_is_not_told_to(with_operator):
    async def scenario(store, operator, clock):
        with pytest.raises(ValueError, match="allows no networks"):
            await operator.allow_network(NETWORK, DAY, GreylistSettings(auto_allow_after=0))

    with_operator(scenario)


def test_what_an_operator_changes_is_saved(serve, clock, tmp_path):
    async def main():
        async with serve(clock) as path:
            operator = EmbeddedOperator(path, deadline=30.0)
            await operator.start()
            await operator.allow_network(NETWORK, DAY, SETTINGS)
            await operator.close()
        async with serve(clock) as path:
            operator = EmbeddedOperator(path, deadline=30.0)
            await operator.start()
            assert (await operator.look_at_greylist(NETWORK, None, SETTINGS)).allowed
            await operator.close()

    asyncio.run(main())


def test_a_store_process_that_is_not_there_is_said_to_be_unavailable(tmp_path):
    async def main():
        operator = EmbeddedOperator(tmp_path / "nobody", deadline=30.0)
        await operator.start()
        with pytest.raises(StoreUnavailable):
            await operator.look_at_host(HOST, LIMITS)
        await operator.close()

    asyncio.run(main())
