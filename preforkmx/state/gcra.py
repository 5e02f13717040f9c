"""GCRA, the generic cell rate algorithm (ITU-T I.371), in whole microseconds.

A limit keeps one number per key, the *theoretical arrival time*: when an unhurried client would
have sent its next event. Each event moves it one emission interval on; it may run ahead of the
clock by the burst tolerance. What runs further is refused, and the excess is the exact wait.
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
