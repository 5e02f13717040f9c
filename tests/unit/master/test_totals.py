"""Totals over all workers."""

from __future__ import annotations

import pytest

from preforkmx.master.totals import Totals
from preforkmx.observe.counters import Counters


def test_every_counter_is_there_from_the_start() -> None:
    assert Totals().as_dict() == Counters().as_dict()


def test_what_workers_send_is_added_up() -> None:
    totals = Totals()
    totals.add({"messages": 2, "octets": 100})
    totals.add({"messages": 3})
    assert totals.as_dict()["messages"] == 5
    assert totals.as_dict()["octets"] == 100


@pytest.mark.parametrize(
    "rubbish",
    [
        None,
        [],
        "messages",
        {"messages": -1},
        {"messages": "7"},
        {"messages": 1.5},
        {"messages": True},
        {"messages": 10**30},
        {"no_such_counter": 5},
        {"messages": None},
    ],
)
def test_what_is_no_count_changes_nothing(rubbish: object) -> None:
    totals = Totals()
    totals.add(rubbish)
    assert totals.as_dict() == Counters().as_dict()
