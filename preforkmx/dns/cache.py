"""What was looked up, for as long as it may be kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from preforkmx.state.expiring import ExpiringMap

if TYPE_CHECKING:
    from preforkmx.dns.answer import Outcome, RecordType

#: Outcomes whose answer was at most :data:`SMALL` octets; about 0.5 KiB each, at most 3 KiB.
MAX_ENTRIES: Final = 10_000
#: Larger ones: at most about 40 KiB each.
MAX_LARGE_ENTRIES: Final = 128
#: Octets of an answer on the wire. A usual one has less than 200.
SMALL: Final = 512

Key = tuple[str, "RecordType"]


def _expiry(outcome: Outcome) -> float:
    return outcome.expires


class Cache:
    """A bounded map from name and type to an outcome; large answers have a room of their own.

    So one who lets us ask for large answers fills at most a few MiB, and pushes out the like
    of them only.

    :param entries: how many small ones there may be.
    """

    __slots__ = ("_large", "_small")

    def __init__(self, entries: int = MAX_ENTRIES) -> None:
        self._small: ExpiringMap[Key, Outcome] = ExpiringMap(entries, _expiry)
        self._large: ExpiringMap[Key, Outcome] = ExpiringMap(
            min(entries, MAX_LARGE_ENTRIES), _expiry
        )

    def __len__(self) -> int:
        return len(self._small) + len(self._large)

    def get(self, key: Key, now: float) -> Outcome | None:
        """Return what is known of `key`, None if nothing is."""
        return self._small.get(key, now) or self._large.get(key, now)

    def put(self, key: Key, outcome: Outcome, size: int, now: float) -> None:
        """Keep `outcome` until it expires.

        :param size: of the answer on the wire, in octets.
        """
        if outcome.expires > now:
            (self._small if size <= SMALL else self._large).put(key, outcome, now)
