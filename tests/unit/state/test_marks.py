"""Marks, on every store: known for their time, and over all workers."""

from __future__ import annotations

import asyncio
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkmx.errors import StoreUnavailable
from preforkmx.state.decisions import LONGEST_SPAN, GreylistSettings, running
from preforkmx.state.embedded import EmbeddedStore, frames
from preforkmx.state.local import LocalStore
from preforkmx.state.mark_table import MarkTable
from preforkmx.state.marks import MARK_SIZE, MAX_MARKS

DAY = 86_400.0


def marks(count, group=b"same"):
    """So many marks that are asked for together."""
    return [group + number.to_bytes(MARK_SIZE - 4, "big") for number in range(count)]


A, B, C = (group + bytes(16) for group in (b"aaaa", b"bbbb", b"cccc"))


def test_a_mark_is_known_for_its_time_and_no_longer(with_store):
    async def scenario(store, clock):
        assert await store.known([A, B]) == frozenset()
        await store.remember([A], 10.0)
        await store.remember([B], 6 * DAY)
        assert await store.known([A, B, C]) == {A, B}
        clock.advance(9.5)
        assert await store.known([A, B, C]) == {A, B}
        clock.advance(0.5)
        assert await store.known([A, B, C]) == {B}
        clock.advance(6 * DAY)
        assert await store.known([A, B, C]) == frozenset()

    with_store(scenario)


def test_a_mark_that_is_remembered_again_begins_anew(with_store):
    async def scenario(store, clock):
        await store.remember([A, B], 10.0)
        clock.advance(6.0)
        await store.remember([A], 10.0)
        clock.advance(6.0)
        assert await store.known([A, B]) == {A}
        await store.remember([A], 1.0)
        clock.advance(2.0)
        assert await store.known([A]) == frozenset()

    with_store(scenario)


def test_what_is_forgotten_is_known_no_more_and_nothing_else_is_forgotten(with_store):
    async def scenario(store, clock):
        await store.remember([A, B], 10.0)
        await store.forget([A, C])
        assert await store.known([A, B, C]) == {B}
        await store.forget([A])
        await store.remember([A], 10.0)
        assert await store.known([A, B, C]) == {A, B}

    with_store(scenario)


@pytest.mark.parametrize("count", [0, 1, 12, 13, 500, 501, MAX_MARKS])
def test_a_question_has_any_number_of_marks_up_to_the_bound(with_store, count):
    async def scenario(store, clock):
        every = marks(count)
        await store.remember(every, 10.0)
        assert await store.known(every) == set(every)
        # The last of a frame, the first of the next one, and some between.
        gone = set(every[::7]) | set(every[11:13])
        await store.forget(gone)
        assert await store.known(every) == set(every) - gone
        # Each question in another order, and with strangers between.
        mixed = [mark for pair in zip(every, marks(count, b"none"), strict=True) for mark in pair]
        assert await store.known(mixed[::-1][:MAX_MARKS]) <= set(every) - gone

    with_store(scenario)


def test_marks_of_many_groups_are_one_question_like_any(with_store):
    async def scenario(store, clock):
        every = [os.urandom(MARK_SIZE) for _ in range(100)]
        await store.remember([*every, *every], 10.0)
        assert await store.known(every) == set(every)
        await store.forget(every[:50])
        assert await store.known(dict.fromkeys(every)) == set(every[50:])

    with_store(scenario)


def test_marks_are_octets_of_any_value(with_store):
    async def scenario(store, clock):
        every = [bytes([octet]) * MARK_SIZE for octet in range(256)]
        await store.remember(every[::2], 10.0)
        assert await store.known(every) == set(every[::2])

    with_store(scenario)


@pytest.mark.parametrize(
    "keys",
    [[b""], [A, A[:-1]], [A + b"a"], marks(MAX_MARKS + 1)],
    ids=["", "short", "long", "many"],
)
def test_what_is_no_mark_is_a_mistake(with_store, keys):
    async def scenario(store, clock):
        for question in (store.remember(keys, 1.0), store.known(keys), store.forget(keys)):
            with pytest.raises(ValueError, match="mark"):
                await question
        assert await store.known([A]) == frozenset()

    with_store(scenario)


@pytest.mark.parametrize("seconds", [0.0, -1.0, LONGEST_SPAN + 1.0, float("nan")])
def test_what_is_no_time_is_a_mistake(with_store, seconds):
    async def scenario(store, clock):
        with pytest.raises(ValueError, match="remembered"):
            await store.remember([A], seconds)

    with_store(scenario)


def test_marks_and_other_entries_do_not_meet(with_store):
    async def scenario(store, clock):
        await store.remember([A], 10.0)
        await store.greylist("net", "a", "b", GreylistSettings())
        assert await store.known([A, B]) == {A}

    with_store(scenario)


# --- the bound ----------------------------------------------------------------------------------


def test_forgetting_what_nobody_knows_takes_no_room():
    table = MarkTable(10)
    table.forget(marks(1000), 0)
    assert not table.entries


# --- the store process --------------------------------------------------------------------------


def test_what_one_worker_remembers_every_worker_knows(serve, clock):
    async def main():
        async with (
            serve(clock) as path,
            running(EmbeddedStore(path, deadline=30.0)) as one,
            running(EmbeddedStore(path, deadline=30.0)) as other,
        ):
            await one.remember([A], 10.0)
            assert await other.known([A, B]) == {A}
            await other.forget([A])
            assert not await one.known([A])

    asyncio.run(main())


def test_a_store_process_that_was_stopped_knows_its_marks_when_it_is_back(serve, clock):
    async def main():
        async with serve(clock) as path, running(EmbeddedStore(path, deadline=30.0)) as store:
            await store.remember(marks(100), 6 * DAY)
            await store.forget(marks(50))
        async with serve(clock) as path, running(EmbeddedStore(path, deadline=30.0)) as store:
            assert await store.known(marks(100)) == set(marks(100)[50:])

    asyncio.run(main())


def test_without_a_store_process_nothing_is_known_and_that_is_said(tmp_path):
    async def main():
        async with running(EmbeddedStore(tmp_path / "none", deadline=0.1)) as store:
            for question in (store.remember([A], 1.0), store.known([A]), store.forget([A])):
                with pytest.raises(StoreUnavailable):
                    await question

    asyncio.run(main())


@given(st.lists(st.binary(min_size=20, max_size=20), min_size=1, max_size=frames.MARKS))
def test_marks_of_a_frame_are_those_that_were_put_into_it(some):
    for frame, start in (
        (frames.remember(7, some), frames.REMEMBER_BODY.size),
        (frames.known(some), 2),
        (frames.forget_marks(some), 2),
    ):
        assert len(frame) == 1 + frame[0] <= 256
        assert frames.marks_in(frame, start) == some


# --- a local one --------------------------------------------------------------------------------


def test_a_local_store_s_marks_have_a_bound(clock):
    async def main():
        store = LocalStore(clock, marks=50)
        await store.remember(marks(100), 10.0)
        assert len(await store.known(marks(100))) == 50

    asyncio.run(main())
