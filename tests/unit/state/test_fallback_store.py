"""What a worker does while its store is away."""

from __future__ import annotations

import asyncio
import logging
from ipaddress import ip_address

import pytest

from preforkmx.errors import StoreUnavailable
from preforkmx.state import fallback
from preforkmx.state.decisions import (
    NOTHING,
    UNLIMITED,
    ConnectionLimits,
    GreylistSettings,
    GreylistState,
    Rate,
    Spent,
)
from preforkmx.state.fallback import FallbackStore, Level
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
        self.partial = False
        self.asked = 0
        self.asked_often = asyncio.Event()

    def _answer(self):
        self.asked += 1
        if self.asked > 5:
            self.asked_often.set()
        if self.away:
            raise StoreUnavailable("away", partial=self.partial)

    async def open_connection(self, address, limits):
        self._answer()
        return await super().open_connection(address, limits)

    async def settle(self, lease, spent, want=NOTHING):
        self._answer()
        return await super().settle(lease, spent, want)

    async def take(self, limit, key, cost=1):
        self._answer()
        return await super().take(limit, key, cost)

    async def greylist(self, network, sender, recipient, settings):
        self._answer()
        return await super().greylist(network, sender, recipient, settings)

    async def remember(self, keys, seconds):
        self._answer()
        await super().remember(keys, seconds)

    async def known(self, keys):
        self._answer()
        return await super().known(keys)

    async def forget(self, keys):
        self._answer()
        await super().forget(keys)


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


def test_marks_are_never_asked_of_the_second_store():
    async def scenario(store, primary, local, changes):
        mark = b"m" * 20
        await store.remember([mark], 10.0)
        assert await store.known([mark]) == {mark}
        primary.away = primary.partial = True
        for ask in (
            lambda: store.remember([mark], 10.0),
            lambda: store.known([mark]),
            lambda: store.forget([mark]),
        ):
            with pytest.raises(StoreUnavailable):
                await ask()
        assert store.available
        primary.partial = False
        with pytest.raises(StoreUnavailable):
            await store.known([mark])
        assert not store.available
        asked = primary.asked
        with pytest.raises(StoreUnavailable, match="that knows the marks"):
            await store.known([mark])
        assert primary.asked == asked
        primary.away = False
        while not store.available:
            await changes.get()
        await store.forget([mark])
        assert not await store.known([mark])
        assert not local.marks.entries

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
    assert [record.getMessage()[:17] for record in caplog.records] == [
        "the store is away",
        "the store is back",
    ]
    assert all("each worker for its share" in record.getMessage() for record in caplog.records)


def test_the_way_back_survives_an_error_that_should_not_be():
    async def scenario(store, primary, local, changes):
        primary.away = True
        await store.take(RATE, "key")
        assert await changes.get() is False

        async def broken(*_):
            primary.take = answers
            raise TypeError("no answer")

        answers, primary.take = primary.take, broken
        primary.away = False
        assert await changes.get() is True

    run(scenario)


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

        async def away(_lease, _spent):
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


def test_a_share_is_that_of_the_workers_there_are_now():
    workers = 4

    async def scenario(store, primary, local, changes):
        nonlocal workers
        primary.away = True
        for workers, share in ((4, 2), (1, 10), (2, 5), (0, 10)):
            takes = [(await store.take(RATE, f"{workers}{share}")).allowed for _ in range(11)]
            assert takes.count(True) == share
        workers = 2
        opened = [await store.open_connection(HOST, LIMITS) for _ in range(10)]
        assert [admission.admitted for admission in opened].count(True) == 4  # of 8

    run(scenario, share=lambda: workers)


# --- errors of one operation --------------------------------------------------------------------


def test_an_error_of_one_operation_falls_back_for_that_operation_alone(caplog):
    async def scenario(store, primary, local, changes):
        primary.away = primary.partial = True
        assert (await store.open_connection(HOST, LIMITS)).lease.store is local
        takes = [(await store.take(RATE, "key")).allowed for _ in range(10)]
        assert takes.count(True) == 2
        with pytest.raises(StoreUnavailable) as caught:
            await store.greylist(*TRIPLET, GreylistSettings())
        assert caught.value.partial
        assert primary.asked == 12
        primary.away = False
        assert (await store.open_connection(HOST, LIMITS)).lease.store is primary
        assert (store.available, changes.empty()) == (True, True)
        assert store.level == Level("the store", asked=True, steps_down=0, fell_back=11)

    run(scenario)
    assert not caplog.records


def test_a_store_that_answers_in_part_is_back():
    async def scenario(store, primary, local, changes):
        primary.away = True
        await store.take(RATE, "key")
        assert await changes.get() is False
        primary.partial = True
        assert await changes.get() is True

    run(scenario)


# --- budgets ------------------------------------------------------------------------------------

HOURLY = Rate(count=1, period=3600.0, burst=40)
BUDGETS = ConnectionLimits(
    "in", messages=HOURLY, recipients=HOURLY, auth_failures=HOURLY, octets=HOURLY, errors=HOURLY
)


def test_a_session_settles_with_the_store_that_admitted_it():
    async def scenario(store, primary, local, changes):
        admission = await store.open_connection(HOST, BUDGETS)
        settled = await store.settle(admission.lease, Spent(messages=1), Spent(messages=5))
        assert settled == await primary.settle(admission.lease, NOTHING)
        primary.away = True
        nearer = (await store.open_connection(HOST, BUDGETS)).lease
        assert nearer.store is local
        primary.away = False
        assert [await changes.get(), await changes.get()] == [False, True]
        settled = await store.settle(nearer, NOTHING, Spent(messages=2))
        assert (settled.allowed, settled.grants.messages) == (True, 2)
        assert local.limits.leases == 0  # open connections are not limited here

    run(scenario)


def test_without_its_store_a_session_takes_what_it_wants_from_the_second():
    async def scenario(store, primary, local, changes):
        lease = (await store.open_connection(HOST, BUDGETS)).lease
        primary.away = True
        # One message is reserved and spent: three more are wanted, of a share of ten.
        spent = Spent(messages=1, octets=1_000_000, errors=1_000)
        settled = await store.settle(lease, spent, Spent(messages=3, recipients=1))
        assert settled.allowed
        assert settled.grants == Spent(3, 1, 0, UNLIMITED, UNLIMITED)
        settled = await store.settle(lease, Spent(messages=3), Spent(messages=100))
        assert settled.grants.messages == 1  # not all that is wanted, but one
        for _ in range(6):
            assert (await store.settle(lease, Spent(messages=1), Spent(messages=1))).allowed
        refused = await store.settle(lease, Spent(messages=1), Spent(messages=1))
        assert (refused.allowed, refused.limit) == (False, "messages")
        assert 4 * 3600.0 - 60 < refused.wait <= 4 * 3600.0
        # Budgets that are paid afterwards let pass, however much was spent.
        assert (await store.settle(lease, spent)).allowed

    run(scenario)


def test_what_was_spent_while_its_store_was_away_is_booked_when_it_is_back():
    async def scenario(store, primary, local, changes):
        lease = (await store.open_connection(HOST, BUDGETS)).lease
        primary.away = True
        await store.take(RATE, "the outage begins")
        for _ in range(5):
            await store.settle(lease, Spent(messages=1, octets=2), Spent(messages=1))
        primary.away = False
        assert [await changes.get(), await changes.get()] == [False, True]
        settled = await store.settle(lease, Spent(octets=1))
        assert settled.grants.octets == 40 - 11
        assert settled.grants.messages == 0
        # Five messages were spent, of which one was reserved.
        settled = await store.settle(lease, NOTHING, Spent(messages=100))
        assert settled.grants.messages == (40 - 5) // 4

    run(scenario)


def test_what_was_spent_while_its_store_was_away_is_booked_at_the_end_too():
    async def scenario(store, primary, local, changes):
        lease = (await store.open_connection(HOST, BUDGETS)).lease
        primary.away = True
        await store.take(RATE, "the outage begins")
        await store.settle(lease, Spent(errors=30))
        primary.away = False
        assert [await changes.get(), await changes.get()] == [False, True]
        await store.close_connection(lease, Spent(errors=5))
        assert (await store.open_connection(HOST, BUDGETS)).grants.errors == 5

    run(scenario)


def test_a_settlement_that_nobody_answered_is_not_booked_twice():
    async def scenario(store, primary, local, changes):
        lease = (await store.open_connection(HOST, BUDGETS)).lease
        answer = primary.settle

        async def unheard(lease, spent, want=NOTHING):
            await answer(lease, spent, want)
            raise StoreUnavailable("no answer in time", partial=True)

        primary.settle = unheard
        for _ in range(2):
            assert (await store.settle(lease, Spent(messages=1, errors=4), NOTHING)).allowed
        primary.settle = answer
        settled = await store.settle(lease, NOTHING)
        assert settled.grants.errors == 40 - 8

    run(scenario)


def test_a_settlement_of_a_lease_that_nobody_holds_has_no_answer():
    async def scenario(store, primary, local, changes):
        foreign = (await LocalStore().open_connection(HOST, BUDGETS)).lease
        with pytest.raises(StoreUnavailable):
            await store.settle(foreign, NOTHING)
        assert store.available

    run(scenario)


# --- a chain ------------------------------------------------------------------------------------


def chain(scenario):
    """Run ``async def scenario(store, fleet, machine, worker)``."""

    async def main():
        fleet, machine, worker = Flaky(), Flaky(), LocalStore()
        nearer = FallbackStore(machine, worker, name="the store process", share=4)
        store = FallbackStore(fleet, nearer, name="Redis")
        await store.start()
        try:
            await scenario(store, fleet, machine, worker)
        finally:
            await store.close()

    asyncio.run(main())


async def _back(level):
    while True:
        if level.asked:
            return
        await asyncio.sleep(0.001)


def test_a_chain_goes_down_and_up_level_by_level_and_says_so(caplog):
    async def scenario(store, fleet, machine, worker):
        async def giver():
            return (await store.open_connection(HOST, LIMITS)).lease.store

        redis, process = store.levels
        assert (redis.name, process.name) == ("Redis", "the store process")
        assert await giver() is fleet
        fleet.away = True
        assert await giver() is machine
        assert (redis.asked, process.asked) == (False, True)
        machine.away = True
        assert await giver() is worker
        assert (redis.asked, process.asked) == (False, False)
        machine.away = False
        await _back(process)
        assert await giver() is machine
        fleet.away = False
        await _back(redis)
        assert await giver() is fleet
        assert redis == Level("Redis", asked=True, steps_down=1, fell_back=3)
        assert process == Level("the store process", asked=True, steps_down=1, fell_back=1)

    chain(scenario)
    heads = [record.getMessage() for record in caplog.records]
    assert [head.split(" is ")[0] for head in heads] == [
        "Redis",
        "the store process",
        "the store process",
        "Redis",
    ]
    assert heads[0].endswith(
        "is away: away; until it is back limits are asked of the store process"
    )
    assert heads[1].endswith("until it is back limits are asked of each worker for its share")
    assert "is back after" in heads[2]
    assert heads[3].endswith("and asked again, not the store process")


def test_the_log_names_the_next_store_that_is_asked(caplog):
    async def scenario(store, fleet, machine, worker):
        fleet.away = machine.away = True
        await store.take(RATE, "key")
        fleet.away = False
        await _back(store.levels[0])
        fleet.away = True
        await store.take(RATE, "key")

    chain(scenario)
    last = [record.getMessage() for record in caplog.records if "Redis is away" in record.message]
    assert last[-1].endswith("limits are asked of each worker for its share")


def test_the_machine_has_the_whole_limit_and_a_worker_its_share():
    async def scenario(store, fleet, machine, worker):
        fleet.away = True
        takes = [(await store.take(RATE, "key")).allowed for _ in range(11)]
        assert takes.count(True) == 10
        machine.away = True
        takes = [(await store.take(RATE, "other")).allowed for _ in range(11)]
        assert takes.count(True) == 2

    chain(scenario)


def test_in_a_chain_a_session_settles_where_it_was_admitted_or_nearer_by():
    async def scenario(store, fleet, machine, worker):
        first = (await store.open_connection(HOST, BUDGETS)).lease
        fleet.away = True
        second = (await store.open_connection(HOST, BUDGETS)).lease
        assert (first.store, second.store) == (fleet, machine)
        want = Spent(messages=4)
        assert (await store.settle(second, NOTHING, want)).grants.messages == 4
        assert (await store.settle(first, NOTHING, want)).grants.messages == 4
        machine.away = True
        for lease in (first, second):
            settled = await store.settle(lease, want, want)
            assert (settled.allowed, settled.grants.messages) == (True, 4)
        third = (await store.open_connection(HOST, BUDGETS)).lease
        assert third.store is worker
        assert (await store.settle(third, NOTHING, want)).allowed

    chain(scenario)
