"""Queues: waiting, as a step of a procedure, until nobody is left in those that are closed next."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeAlias

from preforkmx.master.procedure import Wait
from preforkmx.session.queues import LONGEST_SECONDS, LOOK_SECONDS, Emptying

__all__ = ["LONGEST_SECONDS", "LOOK_SECONDS", "Emptied", "emptied"]

Emptied: TypeAlias = Generator[Wait, bool, int]
"""Gives how many connections are left when the waiting is over."""


def emptied(waiting: Callable[[], int], clock: Callable[[], float]) -> Emptied:
    """Wait as :class:`~preforkmx.session.queues.Emptying` says.

    New connections must have been led away or filtered before.
    """
    emptying = Emptying(waiting, clock)
    while True:
        yield Wait(seconds=LOOK_SECONDS)
        if emptying.look():
            return emptying.left
