"""LocalStore: the shared state of one process, and the heart of the store process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from preforkmx.errors import StoreUnavailable
from preforkmx.state.decisions import (
    BUDGETS,
    CONCURRENT_WAIT,
    GIVE_BACK,
    MICROSECONDS,
    NOTHING,
    PREPAID,
    UNLIMITED,
    Admission,
    Decision,
    GreylistState,
    GreylistVerdict,
    Lease,
    LimitName,
    Settlement,
    Spent,
)
from preforkmx.state.greylisting import Greylisting
from preforkmx.state.limits import ADMITTED, REFUSED_BY_LEASES, Limits, lease_key
from preforkmx.state.mark_table import MarkTable, life_of, marks_of
from preforkmx.state.networks import host_octets
from preforkmx.state.saved import Saved
from preforkmx.state.triplets import short_key, triplet_key

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from preforkmx.model import IPAddress
    from preforkmx.state.budgets import Account
    from preforkmx.state.decisions import ConnectionLimits, GreylistSettings, Rate

#: The names of the outcomes of :meth:`Limits.open <preforkmx.state.limits.Limits.open>` and of
#: :meth:`Account.settle <preforkmx.state.budgets.Account.settle>`.
LIMIT_NAMES: Final[tuple[LimitName, ...]] = ("", "connections", "network", "concurrent", *BUDGETS)
#: The greylist states by their number.
STATES: Final = tuple(GreylistState)


class LocalStore:
    """Every decision, from this process' memory; nothing is kept beyond its life.

    Nothing here waits, and nothing fails but :meth:`settle` for a lease that has ended: the operations are coroutines because a
    :class:`~preforkmx.state.decisions.Store` is asked that way. Each is one step of the event
    loop, so a connection is checked against all its limits at once.

    :param clock: seconds since 1970. A clock that is set back empties nobody's allowance for
        longer than a burst takes to earn, and makes a deferred triplet wait once more.
    :param limits: the most keys with a rate, about 200 octets each.
    :param pending: the most deferred triplets, about 300 octets each.
    :param known: the most known triplets, about 200 octets each.
    :param networks: the most networks with a first pass, about 300 octets each.
    :param marks: the most marks, about 150 octets each.
    :param journal: keep what changed of that which outlives a restart, for a database to save.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        *,
        limits: int = 500_000,
        pending: int = 250_000,
        known: int = 500_000,
        networks: int = 100_000,
        marks: int = 250_000,
        journal: bool = False,
    ) -> None:
        self._clock = clock
        self.limits = Limits(limits)
        self.greylisting = Greylisting(
            self.limits, pending=pending, known=known, networks=networks, journal=journal
        )
        self.marks = MarkTable(marks, journal=journal)
        #: What outlives a restart.
        self.saved = Saved((*self.greylisting.tables, self.marks))
        self._held: dict[int, Account | None] = {}
        self._last_lease = 0

    def now(self) -> int:
        """Return the time in whole microseconds."""
        return round(self._clock() * MICROSECONDS)

    async def open_connection(self, address: IPAddress, limits: ConnectionLimits) -> Admission:
        """Count a new connection against every limit, and lease one place."""
        host, now = host_octets(address), self.now()
        account = None
        if limits.budget_numbers:
            account = self.limits.account(limits.key, host, limits.budget_numbers)
        outcome, wait = self.limits.open(limits.key, host, limits.connection_numbers, now, account)
        if outcome != ADMITTED:
            return refusal(outcome, wait)
        if not limits.leases:
            return Admission(admitted=True)
        self._last_lease = number = self._last_lease + 1
        self._held[number] = account
        keys = () if limits.concurrent is None else (lease_key(limits.key, host),)
        lease = Lease(number, keys, self, address, limits)
        if account is None:
            return Admission(admitted=True, lease=lease)
        return Admission(admitted=True, lease=lease, grants=granted(lease, account.grants(now)))

    async def settle(self, lease: Lease, spent: Spent, want: Spent = NOTHING) -> Settlement:
        """Book what a session spent, and ask whether it may go on.

        :raises StoreUnavailable: the lease has ended, or is another store's.
        """
        check_spent(spent)
        check_wanted(want)
        if lease.store is not self or lease.id not in self._held:
            raise no_such_lease()
        account = self._held[lease.id]
        if account is None:
            return Settlement(allowed=True)
        now = self.now()
        code, wait = account.settle(spent, want, now)
        return settlement(code, wait, granted(lease, account.grants(now)))

    async def close_connection(self, lease: Lease, spent: Spent = NOTHING) -> None:
        """Book what the session spent, and give `lease` back. A second time does nothing."""
        if spent is not NOTHING:
            check_spent(spent)
        if lease.store is self and lease.id in self._held:
            account = self._held.pop(lease.id)
            for key in lease.keys:
                self.limits.release(key)
            if account is not None:
                account.close(spent, self.now())
                lease.reserved = (0,) * PREPAID

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

    async def remember(self, keys: Collection[bytes], seconds: float) -> None:
        """Know `keys` for so long from now on, also those that are known already."""
        self.marks.remember(marks_of(keys), life_of(seconds), self.now())

    async def known(self, keys: Collection[bytes]) -> frozenset[bytes]:
        """Return those of `keys` that are known."""
        marks = marks_of(keys)
        return frozenset(marks[index] for index in self.marks.known(marks, self.now()))

    async def forget(self, keys: Collection[bytes]) -> None:
        """Know `keys` no more."""
        self.marks.forget(marks_of(keys), self.now())

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


def settlement(code: int, wait: int, grants: Spent) -> Settlement:
    """Return the Settlement for a code of the engine; `wait` is in µs."""
    return Settlement(not code, LIMIT_NAMES[code], wait / MICROSECONDS, grants)


def granted(lease: Lease, grants: Iterable[int]) -> Spent:
    """Return the engine's `grants`, and note in `lease` what is reserved for it."""
    granted = Spent(*grants)
    lease.reserved = tuple(0 if units == UNLIMITED else units for units in granted[:PREPAID])
    return granted


def check_spent(spent: Spent) -> None:
    """:raises ValueError: something negative was spent."""
    if min(spent) < 0:
        raise ValueError(f"nobody spends less than nothing: {spent}")


def check_wanted(want: Spent) -> None:
    """:raises ValueError: what is wanted is no number of units, and not GIVE_BACK."""
    if min(want) < GIVE_BACK:
        raise ValueError(f"nobody wants less than nothing: {want}")


def no_such_lease() -> StoreUnavailable:
    """Return the error of a lease that has ended, or that another store gave."""
    return StoreUnavailable("this store holds no such lease", partial=True)
