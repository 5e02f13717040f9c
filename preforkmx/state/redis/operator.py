"""RedisOperator: looks into a Redis that a fleet shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from preforkmx.state.decisions import MICROSECONDS, microseconds
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
from preforkmx.state.redis.keys import Keys
from preforkmx.state.redis.store import FORGET, load
from preforkmx.state.triplets import short_key, triplet_key

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from preforkmx.model import IPAddress
    from preforkmx.state.decisions import ConnectionLimits, GreylistSettings, Rate
    from preforkmx.state.redis.nodes import Nodes
    from preforkmx.state.redis.script import Word

LOOK: Final = load("common", "look")
LOOK_RATE: Final = load("common", "look_rate")
LOOK_GREYLIST: Final = load("common", "look_greylist")
ALLOW: Final = load("common", "allow")

#: Only the network is asked for: its keys do not depend on the triplet.
_NO_TRIPLET: Final = bytes(16)


class RedisOperator:
    """The operator of a Redis. It needs no more rights than the servers have.

    :param nodes: who is asked. The operator starts and closes it.
    :param prefix: what every key begins with.
    :param clock: as :class:`~preforkmx.state.redis.store.RedisStore` has it.
    :raises ValueError: the prefix cannot be one.
    """

    def __init__(
        self,
        nodes: Nodes,
        *,
        prefix: str = "preforkmx",
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._nodes = nodes
        self._keys = Keys(prefix)
        self._clock = clock

    async def look_at_host(self, address: IPAddress, limits: ConnectionLimits) -> HostView:
        """Return what is left of `limits` to a host."""
        keys = self._keys.connection(limits.key, host_octets(address))
        now, *arrivals, opened = await self._nodes.run(LOOK, keys, (self._now(),))
        return host_view(limits, arrivals, opened, now)

    async def look_at_rate(self, limit: Rate, key: str) -> Left:
        """Return what is left of a rate."""
        keys = (self._keys.rate(short_key(key)),)
        now, arrival = await self._nodes.run(LOOK_RATE, keys, (self._now(),))
        return left_of(limit, arrival, now)

    async def look_at_greylist(
        self, network: str, triplet: tuple[str, str] | None, settings: GreylistSettings
    ) -> GreylistView:
        """Return what is known of a network and a triplet."""
        passes, one, _ = self._greylist(network, triplet)
        keys = (passes,) if triplet is None else (passes, one)
        now, *record = await self._nodes.run(LOOK_GREYLIST, keys, (self._now(),))
        return greylist_view(record, settings, now, triplet=triplet is not None)

    async def forget_host(self, address: IPAddress, limits: ConnectionLimits) -> bool:
        """Give a host, and its network, their whole rates and budgets."""
        host, network, _ = self._keys.connection(limits.key, host_octets(address))
        return await self._forget((host, network))

    async def forget_rate(self, key: str) -> bool:
        """Give a key its whole rate."""
        return await self._forget((self._keys.rate(short_key(key)),))

    async def forget_greylist(self, network: str, triplet: tuple[str, str] | None) -> bool:
        """Make strangers of a network and a triplet."""
        passes, one, new = self._greylist(network, triplet)
        return await self._forget((passes, new) if triplet is None else (passes, new, one))

    async def allow_network(self, network: str, seconds: float, settings: GreylistSettings) -> None:
        """Allow a network."""
        args = (self._now(), passes_that_allow(settings), microseconds(seconds))
        await self._nodes.run(ALLOW, self._greylist(network, None)[:1], args)

    async def start(self) -> None:
        """Connect. Returns after the first attempt, at the latest after one deadline."""
        await self._nodes.start()

    async def close(self) -> None:
        """Close the connections."""
        await self._nodes.close()

    def _greylist(
        self, network: str, triplet: tuple[str, str] | None
    ) -> tuple[bytes, bytes, bytes]:
        key = _NO_TRIPLET if triplet is None else triplet_key(network, *triplet)
        return self._keys.greylist(short_key(network), key)

    async def _forget(self, keys: Sequence[bytes]) -> bool:
        return bool(await self._nodes.run(FORGET, keys, (self._now(),)))

    def _now(self) -> Word:
        return b"" if self._clock is None else round(self._clock() * MICROSECONDS)
