"""When a worker asks to be replaced because of what it has taken."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from preforkmx.workers.recycling import AGAIN_SECONDS, Recycling


@given(st.integers(1, 10**9), st.integers())
def test_the_number_is_at_most_a_tenth_away_and_at_least_one(messages: int, seed: int) -> None:
    after = Recycling(messages, random.Random(seed)).after
    assert after >= 1
    assert abs(after - messages) <= messages / 10 + 1


def test_workers_draw_different_numbers_even_where_a_site_seeds_the_shared_source() -> None:
    drawn = set()
    for _ in range(10):
        random.seed(1)
        drawn.add(Recycling(1_000_000).after)
    assert len(drawn) > 1


def test_without_a_number_it_is_never_due() -> None:
    assert not Recycling(0).due(10**12, 0.0)


def test_it_is_due_once_and_again_when_nothing_came_of_it() -> None:
    recycling = Recycling(100, random.Random(0))
    after = recycling.after
    assert not recycling.due(after - 1, 0.0)
    assert recycling.due(after, 1.0)
    assert not recycling.due(after + 1, 1.0 + AGAIN_SECONDS - 0.1)
    assert recycling.due(after + 1, 1.0 + AGAIN_SECONDS)
