"""What a worker does while its store is away: limits of its own, and a way back."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from preforkmx.errors import StoreUnavailable
from preforkmx.state.decisions import Rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from preforkmx.model import IPAddress
    from preforkmx.state.decisions import (
        Admission,
        ConnectionLimits,
        Decision,
        GreylistSettings,
        GreylistVerdict,
        Lease,
        Store,
    )

_log = logging.getLogger("preforkmx.state")

#: The pauses between two attempts to reach the store that is away, in seconds: the first, then
#: twice as long each time.
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 1.0

#: What the attempts ask: a decision like any other, so that a store which answers nothing but
#: pings counts as away.
_PROBE: Final = Rate(count=1_000_000, period=1.0, burst=1_000_000)


class FallbackStore:
    """A store, and what to ask while it is away.

    The first operation that gets no answer opens the breaker: from then on nobody waits for
    the primary store. One task asks it, out of any session's way, until it answers again. So an
    outage costs at most those operations a deadline that were under way when it began, and one
    log line when it begins and one when it ends.

    Limits never fail closed, they are asked of the second store. Greylisting is never asked of
    another store's history, which would defer known senders again:
    :class:`~preforkmx.errors.StoreUnavailable` says so, and the middleware's setting decides.
    A lease goes back to the store that gave it.

    :param primary: the store that is asked as long as it answers.
    :param second: what answers meanwhile: this worker's
        :class:`~preforkmx.state.local.LocalStore`, or a store nearer than the primary one.
    :param share: among how many the second store's limits are divided: the number of workers
        when each has a second store of its own, 1 when they have it together. Rates, bursts
        and open connections are divided, the latter two never below 1.
    :param on_change: called with False when the primary store goes away, True when it is back.
    :param clock: seconds, from any beginning.
    """

    def __init__(
        self,
        primary: Store,
        second: Store,
        *,
        share: int = 1,
        on_change: Callable[[bool], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._primary = primary
        self._second = second
        self._share_of_rate = lru_cache(256)(lambda rate: rate.share(share))
        self._share_of_limits = lru_cache(256)(lambda limits: limits.share(share))
        self._on_change = on_change
        self._clock = clock
        self._available = True
        self._away_since = 0.0
        # Counts the outages: an operation that began before one says nothing about the next.
        self._outages = 0
        self._probing: asyncio.Task[None] | None = None

    @property
    def available(self) -> bool:
        """Whether the primary store is asked."""
        return self._available

    async def open_connection(self, address: IPAddress, limits: ConnectionLimits) -> Admission:
        """Ask the primary store, else the second for this worker's share."""
        if self._available:
            outages = self._outages
            try:
                return await self._primary.open_connection(address, limits)
            except StoreUnavailable as exc:
                self._lost(outages, exc)
        return await self._second.open_connection(address, self._share_of_limits(limits))

    async def close_connection(self, lease: Lease) -> None:
        """Give `lease` back to the store that gave it; a store that is away frees it itself."""
        with suppress(StoreUnavailable):
            await lease.store.close_connection(lease)

    async def take(self, limit: Rate, key: str, cost: int = 1) -> Decision:
        """Ask the primary store, else the second for this worker's share."""
        if self._available:
            outages = self._outages
            try:
                return await self._primary.take(limit, key, cost)
            except StoreUnavailable as exc:
                self._lost(outages, exc)
        return await self._second.take(self._share_of_rate(limit), key, cost)

    async def greylist(
        self, network: str, sender: str, recipient: str, settings: GreylistSettings
    ) -> GreylistVerdict:
        """Ask the primary store and no other.

        :raises StoreUnavailable: it is away.
        """
        if not self._available:
            raise StoreUnavailable("the store that knows the greylist is away")
        outages = self._outages
        try:
            return await self._primary.greylist(network, sender, recipient, settings)
        except StoreUnavailable as exc:
            self._lost(outages, exc)
            raise

    async def start(self) -> None:
        """Start both stores."""
        await self._second.start()
        await self._primary.start()

    async def close(self) -> None:
        """Close both stores."""
        probing, self._probing = self._probing, None
        if probing is not None:
            probing.cancel()
            with suppress(asyncio.CancelledError):
                await probing
        await self._primary.close()
        await self._second.close()

    def _lost(self, outages: int, why: StoreUnavailable) -> None:
        if not self._available or outages != self._outages:
            return
        self._available = False
        self._outages += 1
        self._away_since = self._clock()
        _log.warning("the store is away: %s; until it is back limits are counted nearer by", why)
        self._probing = asyncio.create_task(self._probe())
        if self._on_change is not None:
            self._on_change(False)

    async def _probe(self) -> None:
        pause = FIRST_PAUSE
        while True:
            await asyncio.sleep(pause)
            try:
                await self._primary.take(_PROBE, "preforkmx:probe")
                break
            except StoreUnavailable:
                pause = min(2 * pause, LONGEST_PAUSE)
        self._available = True
        away = self._clock() - self._away_since
        _log.warning("the store is back after %.1f s", away)
        if self._on_change is not None:
            self._on_change(True)
