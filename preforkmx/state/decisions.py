"""The shared state as decisions: what middleware asks, what every store answers.

Middleware never reads or writes keys. It asks for a decision (may this client connect, is this
triplet known), and the store that it asks keeps whatever it needs to answer. So one middleware
runs on three stores: :class:`~preforkmx.state.embedded.EmbeddedStore` (one machine, the
default), :class:`~preforkmx.state.local.LocalStore` (one process), and Redis (a fleet).

Durations in this module are seconds; what the engine counts with is whole microseconds.
"""

from __future__ import annotations

import enum
import math
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from operator import add
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

from preforkmx.state.marks import Marks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from preforkmx.model import IPAddress

MICROSECONDS = 1_000_000

#: The longest span that a limit or a greylist setting may have, in seconds (about 100 years):
#: it keeps every sum of microseconds far inside 64 bits.
LONGEST_SPAN = 100 * 366 * 86_400

#: The longest :attr:`ConnectionLimits.name`, in octets of UTF-8.
LONGEST_NAME = 64

BudgetName = Literal["messages", "recipients", "auth_failures", "octets", "errors"]

#: What a session spends, in the order of :class:`Spent`. The first three are *prepaid*: a session
#: has units of them reserved before it spends one, so that any number of sessions at once keep
#: the limit, and gives the rest back at its end. The others are known only once they are spent,
#: and are booked afterwards as a debt that the next connection sees.
BUDGETS: Final[tuple[BudgetName, ...]] = (
    "messages",
    "recipients",
    "auth_failures",
    "octets",
    "errors",
)
#: How many of :data:`BUDGETS`, from the first on, are prepaid.
PREPAID: Final = 3

#: The grant of a budget without a limit.
UNLIMITED: Final = 1 << 62

LimitName = Literal["", "connections", "network", "concurrent"] | BudgetName
"""Which limit refused, in the words of the configuration; ``""`` is none."""


class Spent(NamedTuple):
    """How much of each budget, in the order of :data:`BUDGETS`; octets are those of messages."""

    messages: int = 0
    recipients: int = 0
    auth_failures: int = 0
    octets: int = 0
    errors: int = 0

    def plus(self, other: Spent) -> Spent:
        """Return the sum with `other`, budget by budget."""
        return Spent(*map(add, self, other))


NOTHING: Final = Spent()

#: Wanted of a prepaid budget: nothing any more, and what is reserved of it is given back.
GIVE_BACK: Final = -1
WITHOUT_LIMIT: Final = Spent(*(UNLIMITED,) * len(BUDGETS))


def microseconds(seconds: float) -> int:
    """Return `seconds` as whole microseconds, rounded to the nearest."""
    return round(seconds * MICROSECONDS)


@dataclass(frozen=True, slots=True)
class Rate:
    """So many events in a period, and so many at once.

    Counted with GCRA: one event is earned every ``period / count`` seconds, and at most
    `burst` of them are saved up. Over any span of ``t`` seconds never more than
    ``burst + t * count / period`` events are allowed, with no burst at the edge of a window.

    :param count: events in one period, at least 1.
    :param period: the period's length in seconds.
    :param burst: events allowed at once after a time of silence, at least 1.
    :raises ValueError: a value is out of range.
    """

    count: int
    period: float
    burst: int
    #: The emission interval T in µs: rounded up, so that rounding never allows one more.
    interval: int = field(init=False, repr=False, compare=False)
    #: The burst tolerance in µs: ``interval * burst``.
    tolerance: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"a rate allows at least 1 event in a period, not {self.count}")
        if self.burst < 1:
            raise ValueError(f"a burst is at least 1 event, not {self.burst}")
        if not 0 < self.period <= LONGEST_SPAN:
            raise ValueError(f"{self.period} is not a period in seconds")
        interval = max(1, math.ceil(self.period * MICROSECONDS / self.count))
        if interval * self.burst > LONGEST_SPAN * MICROSECONDS:
            raise ValueError(f"a burst of {self.burst} at this rate takes over 100 years to earn")
        object.__setattr__(self, "interval", interval)
        object.__setattr__(self, "tolerance", interval * self.burst)

    def share(self, of: int) -> Rate:
        """Return the part of this rate for one of `of` equal sharers; its burst is at least 1."""
        if of <= 1:
            return self
        # Were the period too long, the share would be nothing; the cap leaves one in 100 years.
        period = min(self.period * of, float(LONGEST_SPAN))
        return Rate(self.count, period, max(1, self.burst // of))


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Every limit that a new connection meets; what is None is not limited.

    :param name: keeps the counts of two sets of limits apart (each ``[[middleware]]`` has its
        own); at most :data:`LONGEST_NAME` octets.
    :param host: connections of one host: an IPv4 address or an IPv6 /64.
    :param network: connections of one network: an IPv4 /24 or an IPv6 /48.
    :param concurrent: open connections of one host, at least 1.
    :param messages: messages of one host, over all its sessions; so the other budgets.
    :param recipients: accepted forward paths of one host.
    :param auth_failures: credentials of one host that were refused.
    :param octets: octets of one host's messages.
    :param errors: commands of one host that were answered with 5xx.
    :raises ValueError: a value is out of range.
    """

    name: str
    host: Rate | None = None
    network: Rate | None = None
    concurrent: int | None = None
    messages: Rate | None = None
    recipients: Rate | None = None
    auth_failures: Rate | None = None
    octets: Rate | None = None
    errors: Rate | None = None
    #: The name as the stores' keys have it.
    key: bytes = field(init=False, repr=False, compare=False)
    #: interval and tolerance of `host`, those of `network`, and `concurrent`, then interval and
    #: tolerance of each budget in the order of :data:`BUDGETS`; 0 is not limited.
    numbers: tuple[int, ...] = field(init=False, repr=False, compare=False)
    #: The first five of `numbers`: what a connection meets once.
    connection_numbers: tuple[int, int, int, int, int] = field(
        init=False, repr=False, compare=False
    )
    #: The others of `numbers`; empty when there is no budget.
    budget_numbers: tuple[int, ...] = field(init=False, repr=False, compare=False)
    #: The rate of each budget, in the order of :data:`BUDGETS`.
    budgets: tuple[Rate | None, ...] = field(init=False, repr=False, compare=False)
    #: A connection that is admitted has something to give back.
    leases: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        key = self.name.encode()
        if len(key) > LONGEST_NAME:
            raise ValueError(f"the name of a set of limits has at most {LONGEST_NAME} octets")
        if self.concurrent is not None and not 1 <= self.concurrent < 1 << 32:
            raise ValueError(f"{self.concurrent} is not a number of open connections")
        object.__setattr__(self, "key", key)
        budgets = tuple(getattr(self, budget) for budget in BUDGETS)
        connection = (*_numbers(self.host), *_numbers(self.network), self.concurrent or 0)
        budget = tuple(number for budget in budgets for number in _numbers(budget))
        object.__setattr__(self, "numbers", (*connection, *budget))
        object.__setattr__(self, "connection_numbers", connection)
        object.__setattr__(self, "budget_numbers", budget if any(budgets) else ())
        object.__setattr__(self, "budgets", budgets)
        object.__setattr__(self, "leases", self.concurrent is not None or any(budgets))

    def share(self, of: int) -> ConnectionLimits:
        """Return the part of these limits for one of `of` equal sharers, never below 1."""
        return ConnectionLimits(
            self.name,
            None if self.host is None else self.host.share(of),
            None if self.network is None else self.network.share(of),
            None if self.concurrent is None else max(1, self.concurrent // max(1, of)),
            *(None if budget is None else budget.share(of) for budget in self.budgets),
        )


def _numbers(rate: Rate | None) -> tuple[int, int]:
    return (0, 0) if rate is None else (rate.interval, rate.tolerance)


@dataclass(slots=True, eq=False)
class Lease:
    """The right to one open connection. Opaque: keep it, and give it back when it ends."""

    id: int
    keys: tuple[bytes, ...]
    #: The store that gave the lease, and the only one that can take it back.
    store: Store = field(repr=False)
    #: Whose it is, and what its budgets are.
    address: IPAddress | None = None
    limits: ConnectionLimits | None = field(default=None, repr=False)
    #: Units of each prepaid budget that are reserved and were not reported as spent.
    reserved: tuple[int, ...] = (0,) * PREPAID
    #: What was spent while its store was away, and the store was not told.
    owed: Spent = NOTHING


@dataclass(slots=True)
class Admission:
    """The answer to a new connection.

    :param lease: what to give back when the connection ends; None when it was refused, or
        when no limit on open connections is set.
    :param limit: the limit that refused; when several did, the one that lasts longest.
    :param wait: seconds until the limits would admit it, exact for rates. When open
        connections are the limit nobody can know, and it is :data:`CONCURRENT_WAIT`.
    :param grants: what the session may spend before it has to :meth:`~Store.settle`: of prepaid
        budgets what is reserved for it, of the others what was left.
    """

    admitted: bool
    lease: Lease | None = None
    limit: LimitName = ""
    wait: float = 0.0
    grants: Spent = WITHOUT_LIMIT


#: What a client is told to wait when its open connections are the limit, in seconds.
CONCURRENT_WAIT = 1.0


@dataclass(slots=True)
class Settlement:
    """The answer to a session that settles, and wants to go on.

    :param allowed: everything that it wants is granted.
    :param limit: the budget that is exhausted; when several are, the one that lasts longest.
    :param wait: seconds until one unit of it is there again.
    :param grants: as in :class:`Admission`.
    """

    allowed: bool
    limit: LimitName = ""
    wait: float = 0.0
    grants: Spent = WITHOUT_LIMIT


@dataclass(slots=True)
class Decision:
    """The answer of one rate limit.

    :param wait: seconds until the same cost would be allowed; 0 when it was.
    """

    allowed: bool
    wait: float = 0.0


class GreylistState(enum.Enum):
    """What a store knows of a triplet (network, reverse path, forward path)."""

    NEW = 0
    """Never seen, or seen so long ago that the retry came too late."""
    EARLY = 1
    """Seen, and the delay is not over."""
    PASSED = 2
    """The first retry after the delay: known from now on."""
    KNOWN = 3
    """It passed before."""
    AUTO_ALLOWED = 4
    """Its network passed so often that it is not asked any more."""


@dataclass(frozen=True, slots=True)
class GreylistSettings:
    """How greylisting treats a triplet. Durations are in seconds.

    :param delay: how long a new triplet is deferred.
    :param window: how long after its first try a triplet's retry counts.
    :param life: how long a triplet or an allowed network is remembered after it was last seen.
        The store notes a sight only when the last one it noted is older than a 64th of `life`
        (at most an hour): so much sooner an entry may be forgotten.
    :param auto_allow_after: first passes that allow a whole network; 0 is never.
    :param auto_allow_spacing: how far apart first passes must be to count.
    :raises ValueError: a value is out of range.
    """

    delay: float = 300.0
    window: float = 86_400.0
    life: float = 36 * 86_400.0
    auto_allow_after: int = 5
    auto_allow_spacing: float = 3600.0
    #: delay, window, life, auto_allow_after and auto_allow_spacing, durations in µs.
    numbers: tuple[int, int, int, int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.delay < self.window:
            raise ValueError("a greylist's delay is shorter than its window, and not negative")
        if not 0 < self.life <= LONGEST_SPAN or self.window > LONGEST_SPAN:
            raise ValueError("a greylist's window and life are at most 100 years")
        if not 0 <= self.auto_allow_after < 1 << 16:
            raise ValueError(f"{self.auto_allow_after} is not a number of passes")
        if not 0 <= self.auto_allow_spacing <= LONGEST_SPAN:
            raise ValueError(f"{self.auto_allow_spacing} is not a spacing in seconds")
        numbers = (
            microseconds(self.delay),
            microseconds(self.window),
            microseconds(self.life),
            self.auto_allow_after,
            microseconds(self.auto_allow_spacing),
        )
        object.__setattr__(self, "numbers", numbers)


@dataclass(slots=True)
class GreylistVerdict:
    """What greylisting says to one recipient.

    :param seconds_left: of the delay, for NEW and EARLY; else 0.
    :param waited: seconds between the first try and this one, for PASSED; else 0.
    """

    state: GreylistState
    seconds_left: float = 0.0
    waited: float = 0.0

    @property
    def deferred(self) -> bool:
        """Whether the client is to try again later."""
        return self.state is GreylistState.NEW or self.state is GreylistState.EARLY


class Store(Marks, Protocol):
    """Whoever keeps the shared state: decisions, and marks.

    Every operation answers, or raises :class:`~preforkmx.errors.StoreUnavailable`, within the
    store's deadline. An operation that raised may have been counted all the same; a lease that
    it took is given back by the store itself.
    """

    async def open_connection(self, address: IPAddress, limits: ConnectionLimits) -> Admission:
        """Count a new connection against every limit of `limits`, and lease one place.

        All limits are checked before any is charged: a refused connection costs nothing and
        holds no lease. A budget of which less than one unit is left refuses too. Of messages and
        recipients one unit each is reserved.
        """
        ...

    async def settle(self, lease: Lease, spent: Spent, want: Spent = NOTHING) -> Settlement:
        """Book what a session spent, and ask whether it may go on.

        Prepaid budgets: what is spent leaves the reservation. Where less than `want` units of
        one are reserved, more are reserved, up to `want`, but no more than a quarter of what is
        left and at least one: none left refuses. The others: a budget is charged with what is
        spent even where that is more than is left (a debt of a burst at most, which time pays),
        and refuses while less than one unit of it is left.

        :param spent: since the lease was opened or settled last.
        :param want: units of the prepaid budgets that the session wants to have; 0: none more
            than it has; :data:`GIVE_BACK`: none.
        """
        ...

    async def close_connection(self, lease: Lease, spent: Spent = NOTHING) -> None:
        """Book what the session spent, give `lease` back, and what is still reserved.

        A second time does nothing.
        """
        ...

    async def take(self, limit: Rate, key: str, cost: int = 1) -> Decision:
        """Take `cost` events of the rate `limit` for `key`, or nothing when it is too much.

        A cost above the burst counts as the burst, which would never be allowed otherwise.
        The key's meaning is the caller's: begin it with a name of yours.

        :raises ValueError: `cost` is below 1.
        """
        ...

    async def greylist(
        self, network: str, sender: str, recipient: str, settings: GreylistSettings
    ) -> GreylistVerdict:
        """Look at one triplet, and remember it.

        :param network: where the client is (:func:`~preforkmx.state.triplets.network_of`).
        :param sender: the reverse path
            (:func:`~preforkmx.state.triplets.normalise_sender`); ``""`` is the null one.
        :param recipient: the forward path, compared as it is given.
        """
        ...

    async def start(self) -> None:
        """Begin, in the running loop of the process that asks. Does not wait for a store that
        is away. A second call does nothing."""
        ...

    async def close(self) -> None:
        """Let go of everything; leases are given back."""
        ...


@asynccontextmanager
async def running(store: Store) -> AsyncIterator[Store]:
    """Start `store`, and close it on the way out: what a worker's lifespan enters."""
    await store.start()
    try:
        yield store
    finally:
        await store.close()
