"""One Redis server whose address is known."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from preforkmx.errors import StoreUnavailable
from preforkmx.state.redis.link import Link
from preforkmx.state.redis.nodes import Askers

if TYPE_CHECKING:
    from preforkmx.state.redis.link import Access
    from preforkmx.state.redis.url import Address


class SingleNodes(Askers):
    """One server: everybody is asked on the same connection."""

    def __init__(self, address: Address, access: Access, deadline: float) -> None:
        super().__init__(deadline)
        self._address = address
        self._link = Link(self._locate, access, deadline)
        self._link.address = address

    @property
    def available(self) -> bool:
        """Whether the server would be asked now."""
        return self._link.ready

    async def start(self) -> None:
        """Connect. Returns after the first attempt, at the latest after one deadline."""
        self._link.start()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._deadline):
                await self._link.attempted()

    async def close(self) -> None:
        """Close the connection."""
        await self._end_repeats()
        await self._link.close()

    def names(self) -> tuple[str, ...]:
        """Return the server's address."""
        return (str(self._link),)

    async def _locate(self) -> Address:
        return self._address

    def _link_of(self, _key: bytes) -> Link:
        return self._link

    def _link_named(self, node: str) -> Link:
        if node != str(self._link):
            raise StoreUnavailable(f"{node} is not a node")
        return self._link
