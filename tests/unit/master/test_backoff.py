"""How long a crashed process's place stays empty."""

from __future__ import annotations

from preforkmx.master.backoff import Backoff


def test_the_first_crash_waits_for_nothing_and_the_next_ones_twice_as_long_each() -> None:
    backoff = Backoff()
    waits = [backoff.crashed(0.0) for _ in range(12)]
    assert waits[:9] == [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    assert set(waits[9:]) == {30.0}


def test_a_minute_of_health_makes_earlier_crashes_forgotten() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.crashed(59.9)
    assert backoff.crashed(60.0) == 0.0
    assert backoff.crashed(0.0) == 0.25


def test_a_thousand_crashes_still_wait_thirty_seconds() -> None:
    backoff = Backoff()
    assert [backoff.crashed(0.0) for _ in range(1000)][-1] == 30.0


def test_a_reset_begins_anew() -> None:
    backoff = Backoff()
    backoff.crashed(0.0)
    backoff.crashed(0.0)
    backoff.reset()
    assert backoff.crashed(0.0) == 0.0
