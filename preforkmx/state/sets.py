"""Sets that others keep, and that are only read here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class Sets(Protocol):
    """Whoever has sets of text; :class:`~preforkmx.state.redis.store.RedisStore` does."""

    async def contains(self, key: str, members: Sequence[str]) -> list[bool]:
        """Say of each of `members` whether it is in the set `key`.

        :param key: the whole name of the set: no prefix is put in front of it.
        :raises ~preforkmx.errors.StoreUnavailable: nobody answered in time, or there is no such
            set. Redis has no empty ones.
        """
        ...
