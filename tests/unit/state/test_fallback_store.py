"""What a worker does while its store is away."""

from __future__ import annotations

import asyncio
import logging
from ipaddress import ip_address

import pytest

from preforkmx.errors import StoreUnavailable
from preforkmx.state import fallback
from preforkmx.state.decisions import ConnectionLimits, GreylistSettings, GreylistState, Rate
from preforkmx.state.fallback import FallbackStore
from preforkmx.state.local import LocalStore

HOST = ip_address("192.0.2.1")
RATE = Rate(count=60, period=60.0, burst=10)
LIMITS = ConnectionLimits("in", host=RATE, concurrent=8)
TRIPLET = ("192.0.2.0/24", "a@example.com", "b@example.net")


class Flaky(LocalStore):
    """A store that can be taken away, and counts how often it was asked."""

    def __init__(self):
        super().__init__()
        self.away = False
        self.asked = 0
        self.asked_often = asyncio.Event()

    def _answer(self):
        self.asked += 1
        if self.asked > 5:
            self.asked_often.set()
        if self.away:
            raise StoreUnavailable("away")

    async def open_connection(self, address, limits):
        self._answer()
        return await super().open_connection(address, limits)

    async def take(self, limit, key, cost=1):
        self._answer()
        return await super().take(limit, key, cost)

    async def greylist(self, network, sender, recipient, settings):
        self._answer()
        return await super().greylist(network, sender, recipient, settings)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(fallback, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(fallback, "LONGEST_PAUSE", 0.002)


def run(scenario, *, share=4):
    """Run ``async def scenario(store, primary, local, changes)``."""

    async def main():
        primary, local = Flaky(), LocalStore()
        changes = asyncio.Queue()
        store = FallbackStore(primary, local, share=share, on_change=changes.put_nowait)
        await store.start()
        try:
            await scenario(store, primary, local, changes)
        finally:
            await store.close()

    asyncio.run(main())


def test_a_store_that_answers_is_the_only_one_that_is_asked():
    async def scenario(store, primary, local, changes):
        for _ in range(10):
            assert (await store.take(RATE, "key")).allowed
        assert not (await store.take(RATE, "key")).allowed
        assert (await store.greylist(*TRIPLET, GreylistSettings())).state is GreylistState.NEW
        assert (await store.open_connection(HOST, LIMITS)).lease.store is primary
        assert len(local.limits) == 0
        assert store.available
        assert changes.empty()

    run(scenario)


def test_without_the_store_a_worker_has_its_share_of_each_limit_and_at_least_one():
    async def scenario(store, primary, local, changes):
        primary.away = True
        takes = [(await store.take(RATE, "key")).allowed for _ in range(10)]
        assert takes.count(True) == 2  # 10 // 4
        refused = await store.take(RATE, "key")
        assert 3.0 < refused.wait <= 4.0  # one in 4 s, not one in 1 s
        opened = [await store.open_connection(HOST, LIMITS) for _ in range(10)]
        assert [admission.admitted for admission in opened].count(True) == 2
        small = Rate(count=60, period=60.0, burst=2)
        assert (await store.take(small, "small")).allowed
        assert not (await store.take(small, "small")).allowed

    run(scenario)


def test_a_store_that_is_away_is_not_asked_by_any_session():
    async def scenario(store, primary, local, changes):
        primary.away = True
        with pytest.raises(StoreUnavailable):
            await store.greylist(*TRIPLET, GreylistSettings())
        asked = primary.asked
        for _ in range(100):
            # None of these gives the loop a turn, so the probe cannot run between them.
            await store.take(RATE, "key")
            await store.open_connection(HOST, LIMITS)
            with pytest.raises(StoreUnavailable):
                await store.greylist(*TRIPLET, GreylistSettings())
        assert primary.asked == asked == 1

    run(scenario)


def test_greylisting_never_asks_the_second_store():
    async def scenario(store, primary, local, changes):
        primary.away = True
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await store.greylist(*TRIPLET, GreylistSettings())
        assert len(local.greylisting.pending) == 0

    run(scenario)


def test_the_way_back_needs_no_session(caplog):
    async def scenario(store, primary, local, changes):
        primary.away = True
        await store.take(RATE, "key")
        assert await changes.get() is False
        assert not store.available
        primary.away = False
        assert await changes.get() is True
        assert store.available
        assert (await store.greylist(*TRIPLET, GreylistSettings())).state is GreylistState.NEW

    caplog.set_level(logging.INFO)
    run(scenario)
    assert [record.getMessage().split(":")[0][:17] for record in caplog.records] == [
        "the store is away",
        "the store is back",
    ]


def test_an_outage_is_one_line_however_many_operations_it_catches(caplog):
    async def scenario(store, primary, local, changes):
        primary.away = True
        await asyncio.gather(*(store.take(RATE, "key") for _ in range(50)))
        await asyncio.wait_for(primary.asked_often.wait(), 30)

    run(scenario)
    assert len(caplog.records) == 1


def test_a_failure_of_the_last_outage_does_not_begin_the_next_one():
    async def scenario(store, primary, local, changes):
        late = asyncio.Event()
        at_once = primary.take

        async def slow(limit, key, cost=1):
            await late.wait()
            raise StoreUnavailable("no answer in time")

        primary.take = slow
        caught = asyncio.create_task(store.take(RATE, "key"))
        await asyncio.sleep(0)
        primary.take = at_once
        primary.away = True
        await store.take(RATE, "key")
        primary.away = False
        assert [await changes.get(), await changes.get()] == [False, True]
        late.set()
        assert (await caught).allowed
        assert store.available

    run(scenario)


def test_a_lease_goes_back_to_the_store_that_gave_it():
    async def scenario(store, primary, local, changes):
        before = (await store.open_connection(HOST, LIMITS)).lease
        primary.away = True
        meanwhile = (await store.open_connection(HOST, LIMITS)).lease
        assert (before.store, meanwhile.store) == (primary, local)
        assert (primary.limits.leases, local.limits.leases) == (1, 1)
        await store.close_connection(before)
        assert (primary.limits.leases, local.limits.leases) == (0, 1)
        primary.away = False
        await changes.get()
        await changes.get()
        after = (await store.open_connection(HOST, LIMITS)).lease
        await store.close_connection(meanwhile)
        assert (primary.limits.leases, local.limits.leases) == (1, 0)
        await store.close_connection(after)
        assert (primary.limits.leases, local.limits.leases) == (0, 0)

    run(scenario)


def test_a_lease_of_a_store_that_is_away_ends_without_an_error():
    async def scenario(store, primary, local, changes):
        lease = (await store.open_connection(HOST, LIMITS)).lease

        async def away(_lease):
            raise StoreUnavailable("away")

        primary.close_connection = away
        await store.close_connection(lease)

    run(scenario)


def test_stores_that_all_workers_share_divide_nothing():
    async def scenario(store, primary, local, changes):
        primary.away = True
        takes = [(await store.take(RATE, "key")).allowed for _ in range(11)]
        assert takes.count(True) == 10

    run(scenario, share=1)
