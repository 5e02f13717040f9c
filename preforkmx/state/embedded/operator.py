"""EmbeddedOperator: looks into the store process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from preforkmx.state.decisions import BUDGETS, microseconds
from preforkmx.state.embedded import frames
from preforkmx.state.embedded.client import EmbeddedStore
from preforkmx.state.limits import lease_key, rate_key
from preforkmx.state.local_operator import host_keys
from preforkmx.state.networks import host_octets
from preforkmx.state.operator import (
    GreylistView,
    HostView,
    Left,
    greylist_view,
    host_view,
    left_of,
    passes_that_allow,
)
from preforkmx.state.triplets import short_key, triplet_key

if TYPE_CHECKING:
    from preforkmx.model import IPAddress
    from preforkmx.state.decisions import ConnectionLimits, GreylistSettings, Rate


class EmbeddedOperator(EmbeddedStore):
    """The operator of a store process: one more client of its socket.

    Whoever may connect to the socket may do everything that workers do, and this.
    """

    async def look_at_host(self, address: IPAddress, limits: ConnectionLimits) -> HostView:
        """Return what is left of `limits` to a host."""
        keys = (*host_keys(address, limits), lease_key(limits.key, host_octets(address)))
        replies = await asyncio.gather(*(self._ask(frames.look(key)) for key in keys))
        *arrivals, opened = (number for _, number, *_ in replies)
        return host_view(limits, arrivals, opened, replies[0][2])

    async def look_at_rate(self, limit: Rate, key: str) -> Left:
        """Return what is left of a rate."""
        _, arrival, now, *_ = await self._ask(frames.look(rate_key(short_key(key))))
        return left_of(limit, arrival, now)

    async def look_at_greylist(
        self, network: str, triplet: tuple[str, str] | None, settings: GreylistSettings
    ) -> GreylistView:
        """Return what is known of a network and a triplet."""
        key = frames.NO_TRIPLET if triplet is None else triplet_key(network, *triplet)
        _, now, _, *record = await self._ask(frames.look_at_greylist(key, short_key(network)))
        return greylist_view(record[: len(BUDGETS)], settings, now, triplet=triplet is not None)

    async def forget_host(self, address: IPAddress, limits: ConnectionLimits) -> bool:
        """Give a host, and its network, their whole rates and budgets."""
        keys = host_keys(address, limits)
        replies = await asyncio.gather(*(self._ask(frames.forget(key)) for key in keys))
        return any(reply[0] for reply in replies)

    async def forget_rate(self, key: str) -> bool:
        """Give a key its whole rate."""
        return bool((await self._ask(frames.forget(rate_key(short_key(key)))))[0])

    async def forget_greylist(self, network: str, triplet: tuple[str, str] | None) -> bool:
        """Make strangers of a network and a triplet."""
        key = frames.NO_TRIPLET if triplet is None else triplet_key(network, *triplet)
        return bool((await self._ask(frames.forget_greylist(key, short_key(network))))[0])

    async def allow_network(self, network: str, seconds: float, settings: GreylistSettings) -> None:
        """Allow a network."""
        passes, life = passes_that_allow(settings), microseconds(seconds)
        await self._ask(frames.allow(passes, life, short_key(network)))
