from __future__ import annotations

import pytest

from preforkmx.state.expiring import ExpiringMap


def _map(capacity, *, journal=False):
    """A map whose values are their own expiry."""
    return ExpiringMap(capacity, int, journal=journal)


def test_an_entry_is_there_until_it_expires():
    table = _map(10)
    table.put("a", 5, now=0)
    assert table.get("a", now=4) == 5
    assert table.get("a", now=5) is None
    assert table.get("b", now=0) is None


def test_a_full_map_drops_one_entry_for_each_new_one():
    table = _map(3)
    for n in range(10):
        table.put(n, 100 + n, now=0)
        assert len(table) <= 3
    assert table.get(9, now=0) == 109


def test_what_expires_soon_goes_before_what_was_meant_to_last():
    table = _map(5)
    table.put("lasting", 1_000_000, now=0)
    for n in range(1000):
        table.put(n, 10 + n, now=n)
    assert table.get("lasting", now=1000) == 1_000_000


def test_new_entries_clear_expired_ones_away_without_a_sweep():
    table = _map(1_000_000)
    for n in range(1000):
        table.put(n, 10, now=0)
    for n in range(500):
        table.put(("new", n), 1000, now=10)
    assert len(table) == 500


def test_writing_an_entry_again_takes_no_room():
    table = _map(2)
    for expiry in range(1, 50):
        table.put("a", expiry, now=0)
    table.put("b", 9, now=0)
    assert len(table) == 2
    assert table.get("a", now=0) == 49


def test_the_journal_names_what_was_written_and_what_was_dropped():
    table = _map(2, journal=True)
    table.put("a", 5, now=0)
    assert table.take_journal() == {"a"}
    assert table.take_journal() == set()
    table.put("b", 50, now=10)
    assert table.take_journal() == {"a", "b"}
    assert "a" not in table.entries


def test_a_journal_that_could_not_be_used_is_given_back():
    table = _map(2, journal=True)
    table.put("a", 5, now=0)
    journal = table.take_journal()
    table.put("b", 5, now=0)
    table.give_back(journal)
    assert table.take_journal() == {"a", "b"}
    assert not table.journal_is_long
    table.give_back({"1", "2", "3", "4", "5"})
    assert table.journal_is_long


def test_a_map_without_a_journal_keeps_none():
    table = _map(2)
    table.put("a", 5, now=0)
    table.give_back({"a"})
    assert table.take_journal() == set()


def test_a_cleared_map_is_empty_and_works_on():
    table = _map(2, journal=True)
    table.put("a", 5, now=0)
    table.clear()
    assert (len(table), table.take_journal()) == (0, set())
    for n in range(5):
        table.put(n, 5, now=0)
    assert len(table) == 2


def test_a_map_without_room_is_a_mistake():
    with pytest.raises(ValueError, match="room"):
        _map(0)
