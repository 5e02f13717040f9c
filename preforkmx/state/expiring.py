"""A bounded map whose entries expire: every cache and every table of the shared state."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")

#: How many of the longest-waiting entries an insertion looks at, to drop the expired ones.
#: With two a map that churns holds at most about twice its live entries.
_LOOK = 2

#: Of how many entries a full map drops the one that expires first.
_SAMPLE = 5


class ExpiringMap(Generic[K, V]):
    """At most `capacity` entries; each knows from its value when it expires.

    There is no sweeper and no timer: a new entry pays for the clearing with a look at two old
    ones, which come round in turn. A full map drops, of the next five, the one that expires
    first: an approximation that costs the same whatever the size. So a flood of short-lived
    entries pushes out its own kind before it pushes out what was meant to last.

    The caller says what time it is, in the unit of its expiries.

    :param capacity: the most entries, at least 1.
    :param expiry: the time at which a value expires, from the value.
    :param journal: keep the keys that were written or dropped, for :meth:`take_journal`.
    """

    __slots__ = ("_capacity", "_expiry", "_journal", "_ring", "entries")

    def __init__(
        self, capacity: int, expiry: Callable[[V], float], *, journal: bool = False
    ) -> None:
        if capacity < 1:
            raise ValueError("a map has room for at least one entry")
        self._capacity = capacity
        self._expiry = expiry
        self._ring: deque[K] = deque()
        #: Everything that is there, expired or not. Read it; write with :meth:`put`.
        self.entries: dict[K, V] = {}
        self._journal: set[K] | None = set() if journal else None

    def __len__(self) -> int:
        return len(self.entries)

    def get(self, key: K, now: float) -> V | None:
        """Return the value of `key`, None when there is none or it expired."""
        value = self.entries.get(key)
        if value is None or self._expiry(value) <= now:
            return None
        return value

    def put(self, key: K, value: V, now: float) -> None:
        """Set the value of `key`. To remove an entry, put a value that has expired."""
        entries = self.entries
        if key not in entries:
            self._make_room(now)
            self._ring.append(key)
        entries[key] = value
        if self._journal is not None:
            self._journal.add(key)

    def clear(self) -> None:
        """Drop every entry, and the journal."""
        self.entries.clear()
        self._ring.clear()
        self.take_journal()

    def take_journal(self) -> set[K]:
        """Return the keys that were written or dropped since the last call."""
        journal = self._journal
        if journal is None:
            return set()
        self._journal = set()
        return journal

    def give_back(self, journal: set[K]) -> None:
        """Put back what :meth:`take_journal` returned."""
        if self._journal is not None:
            self._journal |= journal

    @property
    def journal_is_long(self) -> bool:
        """Whether the journal has more keys than the map has room for, twice over."""
        return self._journal is not None and len(self._journal) > 2 * self._capacity

    def _make_room(self, now: float) -> None:
        # Keys leave the map only through the ring, so each is in the ring exactly once.
        ring, entries, expiry = self._ring, self.entries, self._expiry
        for _ in range(min(_LOOK, len(ring))):
            key = ring.popleft()
            if expiry(entries[key]) <= now:
                self._drop(key)
            else:
                ring.append(key)
        if len(entries) >= self._capacity:
            sample = [ring.popleft() for _ in range(min(_SAMPLE, len(ring)))]
            first = min(sample, key=lambda key: expiry(entries[key]))
            self._drop(first)
            ring.extend(key for key in sample if key != first)

    def _drop(self, key: K) -> None:
        del self.entries[key]
        if self._journal is not None:
            self._journal.add(key)
