"""LocalStore: the shared state of one process, and the heart of the store process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from preforkmx.state.decisions import (
    CONCURRENT_WAIT,
    MICROSECONDS,
    Admission,
    Decision,
    GreylistState,
    GreylistVerdict,
    Lease,
    LimitName,
)
from preforkmx.state.greylisting import Greylisting
from preforkmx.state.limits import ADMITTED, REFUSED_BY_LEASES, Limits, lease_key
from preforkmx.state.networks import host_octets
from preforkmx.state.triplets import short_key, triplet_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from preforkmx.model import IPAddress
    from preforkmx.state.decisions import ConnectionLimits, GreylistSettings, Rate

#: The names of the outcomes of :meth:`Limits.open <preforkmx.state.limits.Limits.open>`.
LIMIT_NAMES: Final[tuple[LimitName, ...]] = ("", "connections", "network", "concurrent")
#: The greylist states by their number.
STATES: Final = tuple(GreylistState)


class LocalStore:
    """Every decision, from this process' memory; nothing is kept beyond its life.

    Nothing here waits or fails: the operations are coroutines because a
    :class:`~preforkmx.state.decisions.Store` is asked that way. Each is one step of the event
    loop, so a connection is checked against all its limits at once.

    :param clock: seconds since 1970. A clock that is set back empties nobody's allowance for
        longer than a burst takes to earn, and makes a deferred triplet wait once more.
    :param limits: the most keys with a rate, about 200 octets each.
    :param pending: the most deferred triplets, about 300 octets each.
    :param known: the most known triplets, about 200 octets each.
    :param networks: the most networks with a first pass, about 300 octets each.
    :param journal: keep what greylisting changed, for a database to save.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        *,
        limits: int = 500_000,
        pending: int = 250_000,
        known: int = 500_000,
        networks: int = 100_000,
        journal: bool = False,
    ) -> None:
        self._clock = clock
        self.limits = Limits(limits)
        self.greylisting = Greylisting(
            self.limits, pending=pending, known=known, networks=networks, journal=journal
        )
        self._held: set[int] = set()
        self._last_lease = 0

    def now(self) -> int:
        """Return the time in whole microseconds."""
        return round(self._clock() * MICROSECONDS)

    async def open_connection(self, address: IPAddress, limits: ConnectionLimits) -> Admission:
        """Count a new connection against every limit, and lease one place."""
        host = host_octets(address)
        outcome, wait = self.limits.open(limits.key, host, limits.numbers[:5], self.now())
        if outcome != ADMITTED:
            return refusal(outcome, wait)
        if limits.concurrent is None:
            return Admission(admitted=True)
        self._last_lease += 1
        self._held.add(self._last_lease)
        key = lease_key(limits.key, host)
        return Admission(admitted=True, lease=Lease(self._last_lease, (key,), self))

    async def close_connection(self, lease: Lease) -> None:
        """Give `lease` back. A second time does nothing."""
        if lease.store is self and lease.id in self._held:
            self._held.discard(lease.id)
            for key in lease.keys:
                self.limits.release(key)

    async def take(self, limit: Rate, key: str, cost: int = 1) -> Decision:
        """Take `cost` events of the rate `limit` for `key`, or nothing."""
        wait = self.limits.take(
            b"t" + short_key(key), cost_of(limit, cost), limit.tolerance, self.now()
        )
        return Decision(not wait, wait / MICROSECONDS)

    async def greylist(
        self, network: str, sender: str, recipient: str, settings: GreylistSettings
    ) -> GreylistVerdict:
        """Look at one triplet, and remember it."""
        state, left, waited = self.greylisting.decide(
            short_key(network),
            triplet_key(network, sender, recipient),
            settings.numbers,
            self.now(),
        )
        return GreylistVerdict(STATES[state], left / MICROSECONDS, waited / MICROSECONDS)

    async def start(self) -> None:
        """Nothing to begin."""

    async def close(self) -> None:
        """Nothing to let go of: leases end with the object."""


def cost_of(limit: Rate, cost: int) -> int:
    """Return what `cost` events of `limit` cost in µs, at most its burst.

    :raises ValueError: `cost` is below 1.
    """
    if cost < 1:
        raise ValueError(f"a decision costs at least 1, not {cost}")
    return limit.interval * min(cost, limit.burst)


def refusal(outcome: int, wait: int) -> Admission:
    """Return the Admission for an outcome of the engine that refused; `wait` is in µs."""
    seconds = CONCURRENT_WAIT if outcome == REFUSED_BY_LEASES else wait / MICROSECONDS
    return Admission(admitted=False, limit=LIMIT_NAMES[outcome], wait=seconds)
