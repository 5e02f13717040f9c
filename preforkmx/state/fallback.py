"""What a worker does while its store is away: limits counted nearer by, and a way back.

A chain of stores is a :class:`FallbackStore` whose second store is another one: Redis, else this
machine's store process, else the worker's own share.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from preforkmx.errors import StoreUnavailable
from preforkmx.state.decisions import (
    BUDGETS,
    NOTHING,
    PREPAID,
    UNLIMITED,
    ConnectionLimits,
    LimitName,
    Rate,
    Settlement,
    Spent,
)
from preforkmx.state.networks import host_octets

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from preforkmx.model import IPAddress
    from preforkmx.state.decisions import (
        Admission,
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

#: Whom the lines in the log name where the last store of the chain is asked.
_LAST: Final = "each worker for its share"


@dataclass(slots=True)
class Level:
    """What became of one store of a chain, for whoever watches.

    :param name: which store.
    :param asked: whether it is asked; False from the failure of an operation until it is back.
    :param steps_down: how often it went away.
    :param fell_back: operations that it gave no answer to, or was not asked for, so that a
        store nearer by answered.
    """

    name: str
    asked: bool = True
    steps_down: int = 0
    fell_back: int = 0


class FallbackStore:
    """A store, and what to ask while it is away.

    The first operation that gets no answer opens the breaker: from then on nobody waits for
    the primary store. One task asks it, out of any session's way, until it answers again. So an
    outage costs at most those operations a deadline that were under way when it began, and one
    log line when it begins and one when it ends. An error that is
    :attr:`~preforkmx.errors.StoreUnavailable.partial` concerns its operation alone, which is
    asked of the second store: the breaker stays as it is.

    Limits never fail closed, they are asked of the second store. Greylisting is never asked of
    another store's history, which would defer known senders again:
    :class:`~preforkmx.errors.StoreUnavailable` says so, and the middleware's setting decides.
    Nor are marks, which no other store has: mail goes on without them.
    A lease goes back to the store that gave it. What a session spends while that store is away
    is booked there with the next that is told to it.

    An operation that both stores leave without an answer waits for the deadlines of both: what
    a session may wait is their sum.

    :param primary: the store that is asked as long as it answers.
    :param second: what answers meanwhile: this worker's
        :class:`~preforkmx.state.local.LocalStore`, or a store nearer than the primary one, which
        may be a FallbackStore in its turn.
    :param name: of the primary store, for the log and for :attr:`levels`.
    :param share: among how many the second store's limits are divided: the number of workers
        when each has a second store of its own, 1 when they have it together. A callable
        gives the number of now. Rates, bursts and open connections are divided, the latter two
        never below 1.
    :param on_change: called with False when the primary store goes away, True when it is back.
    :param clock: seconds, from any beginning.
    """

    def __init__(
        self,
        primary: Store,
        second: Store,
        *,
        name: str = "the store",
        share: int | Callable[[], int] = 1,
        on_change: Callable[[bool], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._primary = primary
        self._second = second
        self._share = share
        self._share_of_rate = lru_cache(256)(Rate.share)
        self._share_of_limits = lru_cache(256)(ConnectionLimits.share)
        self._on_change = on_change
        self._clock = clock
        #: What became of the primary store.
        self.level = Level(name)
        self._away_since = 0.0
        self._probing: asyncio.Task[None] | None = None

    @property
    def primary(self) -> Store:
        """The store that is asked first, for what only it can answer."""
        return self._primary

    @property
    def available(self) -> bool:
        """Whether the primary store is asked."""
        return self.level.asked

    @property
    def levels(self) -> tuple[Level, ...]:
        """Every store of the chain but the last, which is always there; the first is asked first.

        The objects are the counters themselves, and change.
        """
        second = self._second
        return (self.level, *(second.levels if isinstance(second, FallbackStore) else ()))

    async def open_connection(self, address: IPAddress, limits: ConnectionLimits) -> Admission:
        """Ask the primary store, else the second for this worker's share."""
        if self.level.asked:
            outages = self.level.steps_down
            try:
                return await self._primary.open_connection(address, limits)
            except StoreUnavailable as exc:
                self._lost(outages, exc)
        self.level.fell_back += 1
        return await self._second.open_connection(
            address, self._share_of_limits(limits, self._sharers())
        )

    async def settle(self, lease: Lease, spent: Spent, want: Spent = NOTHING) -> Settlement:
        """Ask the store that gave the lease; while it is away, the second for what is wanted.

        Then the units that the session wants are taken from the second store like any other
        rate, and are not given back. Budgets that are paid afterwards let pass: what was spent
        is booked when the store is back.
        """
        if lease.store is not self._primary:
            return await self._second.settle(lease, spent, want)
        owed = lease.owed.plus(spent)
        held = tuple(max(0, reserved - owed[n]) for n, reserved in enumerate(lease.reserved))
        if self.level.asked:
            outages = self.level.steps_down
            # Told once, even where nobody hears the answer: twice would be a debt for nothing.
            lease.owed = NOTHING
            try:
                return await self._primary.settle(lease, owed, want)
            except StoreUnavailable as exc:
                self._lost(outages, exc)
                lease.reserved = held
        else:
            lease.owed = owed
        self.level.fell_back += 1
        return await self._take_from_second(lease, held, want)

    async def close_connection(self, lease: Lease, spent: Spent = NOTHING) -> None:
        """Give `lease` back to the store that gave it; a store that is away frees it itself."""
        owed, lease.owed = lease.owed, NOTHING
        with suppress(StoreUnavailable):
            await lease.store.close_connection(
                lease, spent if owed is NOTHING else owed.plus(spent)
            )

    async def take(self, limit: Rate, key: str, cost: int = 1) -> Decision:
        """Ask the primary store, else the second for this worker's share."""
        if self.level.asked:
            outages = self.level.steps_down
            try:
                return await self._primary.take(limit, key, cost)
            except StoreUnavailable as exc:
                self._lost(outages, exc)
        self.level.fell_back += 1
        return await self._second.take(self._share_of_rate(limit, self._sharers()), key, cost)

    async def greylist(
        self, network: str, sender: str, recipient: str, settings: GreylistSettings
    ) -> GreylistVerdict:
        """Ask the primary store and no other.

        :raises StoreUnavailable: it is away.
        """
        with self._primary_alone("the greylist"):
            return await self._primary.greylist(network, sender, recipient, settings)

    async def remember(self, keys: Collection[bytes], seconds: float) -> None:
        """Ask the primary store and no other, as :meth:`known` does.

        :raises StoreUnavailable: it is away.
        """
        with self._primary_alone("the marks"):
            await self._primary.remember(keys, seconds)

    async def known(self, keys: Collection[bytes]) -> frozenset[bytes]:
        """Ask the primary store and no other: what it knows, no other does.

        :raises StoreUnavailable: it is away.
        """
        with self._primary_alone("the marks"):
            return await self._primary.known(keys)

    async def forget(self, keys: Collection[bytes]) -> None:
        """Ask the primary store and no other, as :meth:`known` does.

        :raises StoreUnavailable: it is away.
        """
        with self._primary_alone("the marks"):
            await self._primary.forget(keys)

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

    @contextmanager
    def _primary_alone(self, known: str) -> Iterator[None]:
        """Ask the primary store within, which alone knows what is `known`.

        :raises StoreUnavailable: it is away.
        """
        if not self.level.asked:
            raise StoreUnavailable(f"the store that knows {known} is away")
        outages = self.level.steps_down
        try:
            yield
        except StoreUnavailable as exc:
            self._lost(outages, exc)
            raise

    def _sharers(self) -> int:
        return self._share if isinstance(self._share, int) else self._share()

    async def _take_from_second(
        self, lease: Lease, held: tuple[int, ...], want: Spent
    ) -> Settlement:
        """Take what the session wants to have more than it has `held`, of each prepaid budget."""
        limits, address = lease.limits, lease.address
        if limits is None or address is None:
            return Settlement(allowed=True)
        host = host_octets(address).hex()
        grants = [UNLIMITED] * len(BUDGETS)
        wanted: list[tuple[int, LimitName, Rate, int]] = []
        for index in range(PREPAID):
            rate, name = limits.budgets[index], BUDGETS[index]
            if rate is not None:
                grants[index] = held[index]
                if want[index] > held[index]:
                    wanted.append((index, name, rate, want[index] - held[index]))
        # All at once: should the second store be slow, a session waits for one deadline or two.
        answers = await asyncio.gather(
            *(
                self._some_of_second(rate, f"budget:{limits.name}:{name}:{host}", short)
                for _, name, rate, short in wanted
            )
        )
        longest: tuple[float, LimitName] = (0.0, "")
        for (index, budget, _, _), (cost, decision) in zip(wanted, answers, strict=True):
            if decision.allowed:
                grants[index] += cost
            else:
                longest = max(longest, (decision.wait, budget))
        wait, limit = longest
        return Settlement(not limit, limit, wait, Spent(*grants))

    async def _some_of_second(self, rate: Rate, key: str, short: int) -> tuple[int, Decision]:
        """Take what a session is `short` of; how much was asked for, and the answer."""
        share = self._share_of_rate(rate, self._sharers())
        cost = min(short, share.burst)
        decision = await self._second.take(share, key, cost)
        if not decision.allowed and cost > 1:
            # Not all that is wanted, but one: then the session goes on all the same.
            cost, decision = 1, await self._second.take(share, key)
        return cost, decision

    def _lost(self, outages: int, why: StoreUnavailable) -> None:
        if why.partial or not self.level.asked or outages != self.level.steps_down:
            return
        self.level.asked = False
        self.level.steps_down += 1
        self._away_since = self._clock()
        _log.warning(
            "%s is away: %s; until it is back limits are asked of %s",
            *(self.level.name, why, self._asked_meanwhile()),
        )
        self._probing = asyncio.create_task(self._probe())
        if self._on_change is not None:
            self._on_change(False)

    def _asked_meanwhile(self) -> str:
        levels = self.levels[1:]
        return next((level.name for level in levels if level.asked), _LAST)

    async def _probe(self) -> None:
        pause = FIRST_PAUSE
        while True:
            await asyncio.sleep(pause)
            try:
                await self._primary.take(_PROBE, "preforkmx:probe")
                break
            except StoreUnavailable as exc:
                if exc.partial:
                    break  # the probe's key is away, others may be answered
            except Exception:
                # A bug, but one that must not end the way back.
                _log.exception("asking whether %s is back failed", self.level.name)
            pause = min(2 * pause, LONGEST_PAUSE)
        self.level.asked = True
        away = self._clock() - self._away_since
        _log.warning(
            "%s is back after %.1f s and asked again, not %s",
            *(self.level.name, away, self._asked_meanwhile()),
        )
        if self._on_change is not None:
            self._on_change(True)
