"""The engine of marks: what is known, and until when. It never awaits and reads no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.state.decisions import LONGEST_SPAN, microseconds
from preforkmx.state.expiring import ExpiringMap
from preforkmx.state.marks import MARK_SIZE, MAX_MARKS

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


class MarkTable(ExpiringMap[bytes, int]):
    """Key → expiry, in whole microseconds since 1970.

    :param capacity: the most marks; the table drops those first that expire first.
    :param journal: keep the keys that changed, for a database to save.
    """

    __slots__ = ()

    def __init__(self, capacity: int, *, journal: bool = False) -> None:
        super().__init__(capacity, int, journal=journal)

    def remember(self, keys: Sequence[bytes], life: int, now: int) -> None:
        """Know `keys` for `life` µs from `now` on."""
        for key in keys:
            self.put(key, now + life, now)

    def known(self, keys: Sequence[bytes], now: int) -> list[int]:
        """Return the indices of those keys that are known."""
        return [index for index, key in enumerate(keys) if self.get(key, now) is not None]

    def forget(self, keys: Sequence[bytes], now: int) -> None:
        """Know `keys` no more."""
        for key in keys:
            if self.get(key, now) is not None:
                self.put(key, 0, now)


def marks_of(keys: Collection[bytes]) -> list[bytes]:
    """Return `keys`, each once.

    :raises ValueError: one of them is no mark, or they are too many.
    """
    marks = list(dict.fromkeys(keys))
    if len(marks) > MAX_MARKS:
        raise ValueError(f"a question has at most {MAX_MARKS} marks, not {len(marks)}")
    if any(len(mark) != MARK_SIZE for mark in marks):
        raise ValueError(f"a mark has {MARK_SIZE} octets")
    return marks


def life_of(seconds: float) -> int:
    """Return for how many µs a mark is remembered.

    :raises ValueError: it is no time, or longer than anything is remembered.
    """
    if not 0 < seconds <= LONGEST_SPAN:
        raise ValueError(f"nothing is remembered for {seconds} s")
    return microseconds(seconds)
