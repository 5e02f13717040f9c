"""LookingStore answers as the store behind it would, and leaves it as it is."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest

from preforkmx.errors import StoreUnavailable
from preforkmx.state.decisions import (
    UNLIMITED,
    ConnectionLimits,
    GreylistSettings,
    GreylistState,
    Rate,
    Spent,
)
from preforkmx.state.local import LocalStore
from preforkmx.state.local_operator import LocalOperator
from preforkmx.state.looking import LookingStore

HOST = ip_address("192.0.2.1")
LIMITS = ConnectionLimits("limits", host=Rate(2, 60, 2), concurrent=2, messages=Rate(2, 60, 2))
TRIPLET = ("192.0.2.0/24", "joe@example.org", "ann@example.com")
SETTINGS = GreylistSettings(delay=60)


class Both:
    """A store, and one that looks into it; their clock is the test's."""

    def __init__(self, **options):
        self.now = 1_000_000.0
        self.told = []
        self.store = LocalStore(lambda: self.now)
        self.looking = LookingStore(
            LocalOperator(self.store), tell=self.told.append, clock=lambda: self.now, **options
        )


def test_a_connection_is_admitted_as_often_as_one_looks():
    both = Both()

    async def look():
        for _ in range(5):
            admission = await both.looking.open_connection(HOST, LIMITS)
            assert admission.admitted
            assert admission.grants == Spent(2, UNLIMITED, UNLIMITED, UNLIMITED, UNLIMITED)
        await both.looking.close_connection(admission.lease, Spent(1))
        return await both.looking.settle(admission.lease, Spent(1), Spent(1))

    assert asyncio.run(look()).allowed
    assert both.told[:3] == [
        "connections: 2 of 2 left",
        "messages: 2 of 2 left",
        "concurrent: 0 of 2 open",
    ]
    assert len(both.store.limits) == 0


@pytest.mark.parametrize("limit", ["connections", "concurrent", "messages"])
def test_a_limit_that_is_reached_refuses_as_the_store_does(limit):
    both = Both()
    limits = {
        "connections": ConnectionLimits("x", host=Rate(2, 60, 2)),
        "concurrent": ConnectionLimits("x", concurrent=2),
        "messages": ConnectionLimits("x", messages=Rate(2, 60, 2)),
    }[limit]

    async def look():
        for _ in range(2):
            lease = (await both.store.open_connection(HOST, limits)).lease
            if limit == "messages":
                await both.store.settle(lease, Spent(1))
        return (
            await both.looking.open_connection(HOST, limits),
            await both.store.open_connection(HOST, limits),
        )

    seen, real = asyncio.run(look())
    assert not seen.admitted
    assert (seen.limit, seen.wait) == (real.limit, pytest.approx(real.wait))
    assert seen.limit == limit


def test_a_budget_that_is_exhausted_meanwhile_ends_the_session():
    both = Both()

    async def look():
        lease = (await both.looking.open_connection(HOST, LIMITS)).lease
        real = (await both.store.open_connection(HOST, LIMITS)).lease
        await both.store.settle(real, Spent(2))
        return await both.looking.settle(lease, Spent(), Spent(1))

    settlement = asyncio.run(look())
    assert (settlement.allowed, settlement.limit) == (False, "messages")


def test_a_rate_is_not_taken_from():
    both = Both()
    rate = Rate(1, 60, 1)

    async def look():
        before = [await both.looking.take(rate, "key") for _ in range(2)]
        await both.store.take(rate, "key")
        return before, await both.looking.take(rate, "key")

    before, after = asyncio.run(look())
    assert [decision.allowed for decision in before] == [True, True]
    assert (after.allowed, after.wait) == (False, pytest.approx(60))


def test_a_triplet_is_what_it_would_be_and_stays_a_stranger():
    both = Both()

    async def look():
        looking, store = both.looking, both.store
        assert (await looking.greylist(*TRIPLET, SETTINGS)).state is GreylistState.NEW
        assert (await looking.greylist(*TRIPLET, SETTINGS)).state is GreylistState.NEW
        await store.greylist(*TRIPLET, SETTINGS)
        both.now += 10
        early = await looking.greylist(*TRIPLET, SETTINGS)
        assert (early.state, early.seconds_left) == (GreylistState.EARLY, pytest.approx(50))
        both.now += 60
        for _ in range(2):
            passed = await looking.greylist(*TRIPLET, SETTINGS)
            assert (passed.state, passed.waited) == (GreylistState.PASSED, pytest.approx(70))
        await store.greylist(*TRIPLET, SETTINGS)
        assert (await looking.greylist(*TRIPLET, SETTINGS)).state is GreylistState.KNOWN

    asyncio.run(look())


def test_a_triplet_may_be_taken_as_known():
    verdict = asyncio.run(Both(known=True).looking.greylist(*TRIPLET, SETTINGS))
    assert verdict.state is GreylistState.KNOWN


def test_while_the_store_is_away_nobody_is_known_and_it_is_said():
    class Away(LocalOperator):
        async def look_at_host(self, address, limits):
            raise StoreUnavailable("nobody there")

    looking = LookingStore(Away(LocalStore()), tell=lambda _: None)
    assert asyncio.run(looking.open_connection(HOST, LIMITS)).admitted
    assert looking.away == "nobody there"


def test_nothing_is_known_to_be_delivered():
    looking = Both().looking

    async def look():
        await looking.remember([b"x" * 20], 60)
        return await looking.known([b"x" * 20])

    assert asyncio.run(look()) == frozenset()
