"""What an operator asks of a store: to look at an address, forget it, or allow a network.

Nothing of it is asked by a session. Three classes answer alike:
:class:`~preforkmx.state.local_operator.LocalOperator`,
:class:`~preforkmx.state.embedded.operator.EmbeddedOperator` and
:class:`~preforkmx.state.redis.operator.RedisOperator`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from preforkmx.state.decisions import BUDGETS, MICROSECONDS, GreylistState
from preforkmx.state.gcra import units_left, wait_for_one

if TYPE_CHECKING:
    from collections.abc import Sequence

    from preforkmx.model import IPAddress
    from preforkmx.state.decisions import ConnectionLimits, GreylistSettings, LimitName, Rate


@dataclass(frozen=True, slots=True)
class Left:
    """What is left of one rate or budget.

    :param left: events that would be allowed at once.
    :param of: its burst.
    :param wait: seconds until one is allowed, 0 where one is.
    """

    left: int
    of: int
    wait: float


@dataclass(frozen=True, slots=True)
class HostView:
    """What one set of limits knows of a host.

    :param limits: each rate and budget that is limited, by its name.
    :param open: its open connections, where they are limited; else 0.
    """

    limits: dict[LimitName, Left]
    open: int


@dataclass(frozen=True, slots=True)
class GreylistView:
    """What greylisting knows of a network and, where it was asked for, of a triplet in it.

    Times are seconds since 1970, as the store's clock has them; 0 is never.

    :param passes: of the network; enough of them allow all of it.
    :param last: when the last of them was.
    :param until: when the network is forgotten.
    :param allowed: its strangers are not asked to wait.
    :param state: of the triplet, were it to come now; None where none was asked for.
    :param first: when a triplet that is deferred came first.
    :param left: seconds until it passes.
    :param triplet_until: when it is forgotten.
    """

    passes: int
    last: float
    until: float
    allowed: bool
    state: GreylistState | None = None
    first: float = 0.0
    left: float = 0.0
    triplet_until: float = 0.0


class Operator(Protocol):
    """Whoever shows and changes what a store knows.

    Every operation raises :class:`~preforkmx.errors.StoreUnavailable` where it has no answer.
    """

    async def look_at_host(self, address: IPAddress, limits: ConnectionLimits) -> HostView:
        """Return what is left of `limits` to a host; charges nothing."""
        ...

    async def look_at_rate(self, limit: Rate, key: str) -> Left:
        """Return what is left of a rate of ``take``; charges nothing."""
        ...

    async def look_at_greylist(
        self, network: str, triplet: tuple[str, str] | None, settings: GreylistSettings
    ) -> GreylistView:
        """Return what is known of a network; remembers nothing.

        :param triplet: reverse and forward path, normalised; None for the network alone.
        """
        ...

    async def forget_host(self, address: IPAddress, limits: ConnectionLimits) -> bool:
        """Give a host, and its network, their whole rates and budgets. Whether they had not.

        Its open connections stay counted: they are open.
        """
        ...

    async def forget_rate(self, key: str) -> bool:
        """Give a key of ``take`` its whole rate. Whether it had not."""
        ...

    async def forget_greylist(self, network: str, triplet: tuple[str, str] | None) -> bool:
        """Make strangers of a network and, where it is named, of a triplet in it.

        :returns: whether one of them was known at all.
        """
        ...

    async def allow_network(self, network: str, seconds: float, settings: GreylistSettings) -> None:
        """Allow a network, as if it had passed often enough, for so long at least.

        From its next mail on it is remembered as any other network that is allowed.
        """
        ...

    async def start(self) -> None:
        """Begin, in the running loop; returns after the first attempt to connect."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...


#: The names of the two rates of a host's connections, in the order of
#: :attr:`ConnectionLimits.numbers <preforkmx.state.decisions.ConnectionLimits.numbers>`.
_CONNECTIONS: Final[tuple[LimitName, LimitName]] = ("connections", "network")


def left_of(limit: Rate, arrival: int, now: int) -> Left:
    """Return what a theoretical arrival time leaves of `limit`; both times in µs."""
    wait = wait_for_one(arrival, now, limit.interval, limit.tolerance)
    left = units_left(arrival, now, limit.interval, limit.tolerance)
    return Left(left, limit.burst, wait / MICROSECONDS)


def host_view(limits: ConnectionLimits, arrivals: Sequence[int], opened: int, now: int) -> HostView:
    """Return the view of a host.

    :param arrivals: of its connections, its network's, and each of the budgets, in µs; 0 is none.
    """
    rates = zip(
        (*_CONNECTIONS, *BUDGETS), (limits.host, limits.network, *limits.budgets), strict=True
    )
    return HostView(
        {
            name: left_of(rate, arrival, now)
            for (name, rate), arrival in zip(rates, arrivals, strict=True)
            if rate is not None
        },
        opened if limits.concurrent is not None else 0,
    )


def greylist_view(
    record: Sequence[int], settings: GreylistSettings, now: int, *, triplet: bool
) -> GreylistView:
    """Return the view of what :meth:`Greylisting.look
    <preforkmx.state.greylisting.Greylisting.look>` returns; times in µs."""
    until, passes, last, expiry, first = record
    after = settings.auto_allow_after
    allowed = 0 < after <= passes
    state, left = None, 0
    if triplet:
        delay = settings.numbers[0]
        left = max(0, first + delay - now) if first else 0
        if allowed:
            state, left = GreylistState.AUTO_ALLOWED, 0
        elif not expiry:
            state, left = GreylistState.NEW, delay
        elif not first:
            state = GreylistState.KNOWN
        else:
            state = GreylistState.EARLY if left else GreylistState.PASSED
    return GreylistView(
        passes,
        last / MICROSECONDS,
        until / MICROSECONDS,
        allowed,
        state,
        first / MICROSECONDS,
        left / MICROSECONDS,
        expiry / MICROSECONDS if triplet else 0.0,
    )


def passes_that_allow(settings: GreylistSettings) -> int:
    """Return how many passes allow a network.

    :raises ValueError: no number of passes does.
    """
    if not settings.auto_allow_after:
        raise ValueError("this greylist allows no networks")
    return settings.auto_allow_after
