"""Totals: what all workers counted, those that are gone included."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.master.handover import Count
from preforkmx.observe.counters import Counters

if TYPE_CHECKING:
    from collections.abc import Iterable

_LARGEST = 2**53
"""More in one message is no count: a second has not so many octets."""


class Totals:
    """The sum of every worker's counters since this master started. It never goes back."""

    def __init__(self) -> None:
        self._totals = Counters().as_dict()

    def add(self, added: object) -> None:
        """Add what one worker sent; what is not a known counter and a count is left out."""
        if not isinstance(added, dict):
            return
        for name, value in added.items():
            if name in self._totals and type(value) is int and 0 <= value <= _LARGEST:
                self._totals[name] += value

    def hand_over(self) -> tuple[Count, ...]:
        """Return what another program in this process has to go on with."""
        return tuple(Count(name=name, value=value) for name, value in self._totals.items())

    def take_over(self, counts: Iterable[Count]) -> None:
        """Go on with the totals of an earlier program; one that is not counted any more ends."""
        for count in counts:
            if count.name in self._totals:
                self._totals[count.name] = count.value

    def as_dict(self) -> dict[str, int]:
        """Return every total by its counter's name."""
        return dict(self._totals)
