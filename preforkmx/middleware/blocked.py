"""Who was refused by a limit, and until when: asked before anything is awaited."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from preforkmx.state.expiring import ExpiringMap

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

#: The most keys that one map remembers, about 250 octets each.
MAX_BLOCKED: Final = 65_536


class Refusal(NamedTuple):
    """A limit that is reached."""

    limit: str
    """Its name in the configuration."""
    wait: float
    """Seconds until it admits again."""

    @property
    def seconds(self) -> int:
        """What a client is told: whole seconds, and never none."""
        return max(1, ceil(self.wait))


class Block(NamedTuple):
    """What is refused without a question."""

    limit: str
    until: float
    """From then on the store is asked again."""
    ready: float
    """From then on the limit admits again, if nothing is given back before."""

    @classmethod
    def begin(cls, refusal: Refusal, now: float, at_most: float) -> Self:
        """Return the block of what was refused `now`, for `at_most` seconds."""
        return cls(refusal.limit, now + min(refusal.wait, at_most), now + refusal.wait)

    def refusal(self, now: float) -> Refusal:
        """Return what it is refused with `now`."""
        return Refusal(self.limit, self.ready - now)


class Blocked:
    """A bounded map of what is refused without a question to the store.

    :param clock: seconds, from any beginning.
    """

    __slots__ = ("_blocks", "_clock")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._blocks: ExpiringMap[bytes, Block] = ExpiringMap(
            MAX_BLOCKED, lambda block: block.until
        )

    def look(self, key: bytes) -> Refusal | None:
        """Return why `key` is refused, None if it is not."""
        # Most are not, and pay for no clock.
        if key not in self._blocks.entries:
            return None
        now = self._clock()
        block = self._blocks.get(key, now)
        return None if block is None else block.refusal(now)

    def block(self, key: bytes, refusal: Refusal, *, at_most: float) -> None:
        """Refuse `key` until the limit admits it again.

        A block that lasts longer stays.

        :param at_most: seconds after which the store is asked again in any case.
        """
        now = self._clock()
        block = Block.begin(refusal, now, at_most)
        before = self._blocks.entries.get(key)
        if before is None or before.until < block.until:
            self._blocks.put(key, block, now)

    def free(self, key: bytes, limits: Collection[str]) -> None:
        """Something was given back: if one of `limits` blocks `key`, let the store be asked."""
        block = self._blocks.entries.get(key)
        if block is not None and block.limit in limits:
            now = self._clock()
            self._blocks.put(key, block._replace(until=now), now)
