"""Queues: waiting until nobody is left in those that are closed next."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeAlias

from preforkmx.master.procedure import Wait

LOOK_SECONDS = 0.5
"""Between two looks at the queues. With looks 25 ms apart clients 200 ms away were reset."""
SHORTEST_SECONDS = 1.0
LONGEST_SECONDS = 10.0
"""A worker that does not accept must not hold up what waits for the others."""

Emptied: TypeAlias = Generator[Wait, bool, int]
"""Gives how many connections are left when the waiting is over."""


def emptied(waiting: Callable[[], int], clock: Callable[[], float]) -> Emptied:
    """Wait until `waiting` was 0 twice, 500 ms apart, for 1 s at least and 10 s at most.

    New connections must have been led away or filtered before. The second look is half a
    second after the first because the last step of a distant client's handshake may be under
    way: it still comes to the socket that its SYN was given.
    """
    began = clock()
    empty = 0
    while True:
        yield Wait(seconds=LOOK_SECONDS)
        waited = clock() - began
        left = waiting()
        empty = 0 if left else empty + 1
        if (empty >= 2 and waited >= SHORTEST_SECONDS) or waited >= LONGEST_SECONDS:
            return left
