"""GCRA, the generic cell rate algorithm (ITU-T I.371), in whole microseconds.

A limit keeps one number per key, the *theoretical arrival time*: when an unhurried client would
have sent its next event. Each event moves it one emission interval on; it may run ahead of the
clock by the burst tolerance. What runs further is refused, and the excess is the exact wait.

A budget is charged for what has happened already, so it may run further ahead: a debt, of one
tolerance at most beyond the tolerance, which time pays before anything is allowed again.
"""

from __future__ import annotations


def next_arrival(stored: int, now: int, cost: int, tolerance: int) -> int:
    """Return the theoretical arrival time after `cost`; all arguments are in µs.

    The caller allows the event, and stores the result, when :func:`wait_for` it is 0.

    :param stored: the number that was stored, 0 for none.
    :param cost: emission interval times the number of events, at most `tolerance`.
    :param tolerance: emission interval times burst.
    """
    if stored <= now:
        return now + cost
    # No event that was allowed left it further ahead. It is when the clock was set back, or
    # when the limit has become smaller: then the client starts with nothing saved up.
    return min(stored, now + tolerance) + cost


def wait_for(arrival: int, now: int, tolerance: int) -> int:
    """Return how many µs the event with this `arrival` must wait, 0 when it is allowed."""
    return max(0, arrival - tolerance - now)


def with_debt(stored: int, now: int, cost: int, tolerance: int) -> int:
    """Return the theoretical arrival time after `cost` that is charged whatever is left."""
    return min(max(stored, now) + cost, now + 2 * tolerance)


def given_back(stored: int, now: int, cost: int, tolerance: int) -> int:
    """Return the theoretical arrival time after `cost` was taken, not used, and given back."""
    return min(stored, now + 2 * tolerance) - cost


def units_left(stored: int, now: int, interval: int, tolerance: int) -> int:
    """Return how many events would be allowed at once."""
    return max(0, (now + tolerance - max(stored, now)) // interval)


def wait_for_one(stored: int, now: int, interval: int, tolerance: int) -> int:
    """Return how many µs until one event is allowed, debts being paid first; 0 is now."""
    # The cap is for a clock that was set back: no debt is larger.
    arrival = min(max(stored, now), now + 2 * tolerance) + interval
    return wait_for(arrival, now, tolerance)
