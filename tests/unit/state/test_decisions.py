from __future__ import annotations

import pytest

from preforkmx.state.decisions import (
    ConnectionLimits,
    GreylistSettings,
    GreylistState,
    GreylistVerdict,
    Rate,
)


@pytest.mark.parametrize(
    ("count", "period", "burst"),
    [
        (0, 60.0, 1),
        (60, 0.0, 1),
        (60, -1.0, 1),
        (60, float("nan"), 1),
        (60, float("inf"), 1),
        (60, 60.0, 0),
        (1, 86_400.0, 10**9),
    ],
)
def test_a_rate_that_makes_no_sense_is_refused(count, period, burst):
    with pytest.raises(ValueError):
        Rate(count, period, burst)


def test_rounding_never_makes_a_rate_faster():
    assert Rate(count=60, period=60.0, burst=1).interval == 1_000_000
    assert Rate(count=7, period=1.0, burst=1).interval == 142_858
    assert Rate(count=10**9, period=1.0, burst=1).interval == 1


def test_a_share_divides_rate_and_burst_but_leaves_a_burst_of_one():
    rate = Rate(count=60, period=60.0, burst=10)
    assert rate.share(1) is rate
    assert (rate.share(4).interval, rate.share(4).burst) == (4_000_000, 2)
    assert (rate.share(16).interval, rate.share(16).burst) == (16_000_000, 1)


def test_a_share_of_a_slow_rate_is_still_a_rate():
    century = Rate(count=1, period=3_000_000_000.0, burst=1)
    assert century.share(64).interval > century.interval


def test_a_share_of_limits_divides_each_of_them_but_never_below_one():
    limits = ConnectionLimits("in", Rate(60, 60.0, 10), Rate(600, 60.0, 100), concurrent=50)
    assert limits.share(4) == ConnectionLimits(
        "in", Rate(60, 240.0, 2), Rate(600, 240.0, 25), concurrent=12
    )
    assert limits.share(64).concurrent == 1
    assert ConnectionLimits("none").share(4) == ConnectionLimits("none")


@pytest.mark.parametrize(
    "values",
    [{"name": "x" * 65}, {"name": "in", "concurrent": 0}, {"name": "in", "concurrent": 1 << 32}],
)
def test_limits_that_make_no_sense_are_refused(values):
    with pytest.raises(ValueError):
        ConnectionLimits(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"delay": -1.0},
        {"delay": 60.0, "window": 60.0},
        {"window": float("inf")},
        {"window": float("nan")},
        {"life": 0.0},
        {"life": float("inf")},
        {"auto_allow_after": -1},
        {"auto_allow_after": 1 << 16},
        {"auto_allow_spacing": -1.0},
    ],
)
def test_greylist_settings_that_make_no_sense_are_refused(values):
    with pytest.raises(ValueError):
        GreylistSettings(**values)


def test_only_the_new_and_the_early_are_deferred():
    deferred = {state for state in GreylistState if GreylistVerdict(state).deferred}
    assert deferred == {GreylistState.NEW, GreylistState.EARLY}
