"""LocalOperator: looks into the tables of this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from preforkmx.state.budgets import budget_key
from preforkmx.state.decisions import BUDGETS, microseconds
from preforkmx.state.limits import host_key, lease_key, network_key, rate_key
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
    from preforkmx.state.local import LocalStore

#: In the place of a triplet's key: no triplet.
NO_TRIPLET: Final = b""


def host_keys(address: IPAddress, limits: ConnectionLimits) -> tuple[bytes, ...]:
    """Return the engine's keys of a host's connections, its network's, and each budget."""
    host = host_octets(address)
    return (
        host_key(limits.key, host),
        network_key(limits.key, host),
        *(budget_key(index, limits.key, host) for index in range(len(BUDGETS))),
    )


class LocalOperator:
    """The operator of a :class:`~preforkmx.state.local.LocalStore`."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store

    async def look_at_host(self, address: IPAddress, limits: ConnectionLimits) -> HostView:
        """Return what is left of `limits` to a host."""
        engine = self._store.limits
        arrivals = [engine.arrival(key) for key in host_keys(address, limits)]
        opened = engine.held(lease_key(limits.key, host_octets(address)))
        return host_view(limits, arrivals, opened, self._store.now())

    async def look_at_rate(self, limit: Rate, key: str) -> Left:
        """Return what is left of a rate."""
        arrival = self._store.limits.arrival(rate_key(short_key(key)))
        return left_of(limit, arrival, self._store.now())

    async def look_at_greylist(
        self, network: str, triplet: tuple[str, str] | None, settings: GreylistSettings
    ) -> GreylistView:
        """Return what is known of a network and a triplet."""
        key = NO_TRIPLET if triplet is None else triplet_key(network, *triplet)
        now = self._store.now()
        record = self._store.greylisting.look(short_key(network), key, now)
        return greylist_view(record, settings, now, triplet=triplet is not None)

    async def forget_host(self, address: IPAddress, limits: ConnectionLimits) -> bool:
        """Give a host, and its network, their whole rates and budgets."""
        now = self._store.now()
        forgotten = [self._store.limits.forget(key, now) for key in host_keys(address, limits)]
        return any(forgotten)

    async def forget_rate(self, key: str) -> bool:
        """Give a key its whole rate."""
        return self._store.limits.forget(rate_key(short_key(key)), self._store.now())

    async def forget_greylist(self, network: str, triplet: tuple[str, str] | None) -> bool:
        """Make strangers of a network and a triplet."""
        greylisting, now = self._store.greylisting, self._store.now()
        known = greylisting.forget_network(short_key(network), now)
        if triplet is None:
            return known
        return greylisting.forget_triplet(triplet_key(network, *triplet), now) or known

    async def allow_network(self, network: str, seconds: float, settings: GreylistSettings) -> None:
        """Allow a network."""
        passes, life = passes_that_allow(settings), microseconds(seconds)
        self._store.greylisting.allow(short_key(network), passes, life, self._store.now())

    async def start(self) -> None:
        """Nothing to begin."""

    async def close(self) -> None:
        """Nothing to let go of."""
