"""LookingStore: answers as another store would, and changes nothing there."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from preforkmx.errors import StoreUnavailable
from preforkmx.state.decisions import (
    BUDGETS,
    CONCURRENT_WAIT,
    NOTHING,
    UNLIMITED,
    Admission,
    Decision,
    GreylistState,
    GreylistVerdict,
    Lease,
    Settlement,
    Spent,
)
from preforkmx.state.local import LocalStore
from preforkmx.state.local_operator import LocalOperator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from preforkmx.model import IPAddress
    from preforkmx.state.decisions import ConnectionLimits, GreylistSettings, LimitName, Rate
    from preforkmx.state.operator import HostView, Operator
    from preforkmx.state.redis.store import RedisStore

_T = TypeVar("_T")


class LookingStore:
    """A store for whoever wants to know what would be decided: nothing is counted or remembered.

    What was looked at is told, a line for each answer. While the store behind gives no answer
    the answers are those of one in which nobody is known.

    :param operator: of the store behind; None: there is none that others can look into.
    :param tell: called with each line.
    :param known: say of every triplet that the greylist knows it, without a look.
    :param sets: who has sets of recipients; started and closed with this one.
    :param clock: seconds since 1970.
    """

    def __init__(
        self,
        operator: Operator | None,
        *,
        tell: Callable[[str], object],
        known: bool = False,
        sets: RedisStore | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._operator: Operator = operator or LocalOperator(LocalStore())
        self._tell = tell
        self._known = known
        self._clock = clock
        self.sets = sets
        """Who has sets of recipients."""
        self.away = ""
        """Why the store behind could not be asked; ``""``: it could, or was not."""

    async def open_connection(self, address: IPAddress, limits: ConnectionLimits) -> Admission:
        """Say whether the connection would be admitted, and what it might spend."""
        view = await self._look(lambda operator: operator.look_at_host(address, limits))
        self._tell_of(view, limits)
        refusing, wait = _longest(view)
        if refusing:
            return Admission(admitted=False, limit=refusing, wait=wait)
        if limits.concurrent is not None and view.open >= limits.concurrent:
            return Admission(admitted=False, limit="concurrent", wait=CONCURRENT_WAIT)
        lease = Lease(0, (), self, address, limits) if limits.leases else None
        return Admission(admitted=True, lease=lease, grants=_grants(view))

    async def settle(self, lease: Lease, spent: Spent, want: Spent = NOTHING) -> Settlement:  # noqa: ARG002 - nothing is booked
        """Say whether the session might go on."""
        if lease.address is None or lease.limits is None:
            return Settlement(allowed=True)
        address, limits = lease.address, lease.limits
        view = await self._look(lambda operator: operator.look_at_host(address, limits))
        refusing, wait = _longest(view)
        if refusing in BUDGETS:
            return Settlement(allowed=False, limit=refusing, wait=wait, grants=_grants(view))
        return Settlement(allowed=True, grants=_grants(view))

    async def close_connection(self, lease: Lease, spent: Spent = NOTHING) -> None:
        """Nothing was taken."""

    async def take(self, limit: Rate, key: str, cost: int = 1) -> Decision:
        """Say whether `cost` events would be allowed."""
        left = await self._look(lambda operator: operator.look_at_rate(limit, key))
        self._tell(f"{key}: {left.left} of {left.of} left")
        allowed = left.left >= min(cost, limit.burst)
        return Decision(allowed, 0.0 if allowed else max(left.wait, limit.interval / 1e6))

    async def greylist(
        self, network: str, sender: str, recipient: str, settings: GreylistSettings
    ) -> GreylistVerdict:
        """Say what the greylist would say of a triplet."""
        triplet = f"{network} <{sender}> <{recipient}>"
        if self._known:
            self._tell(f"taken as known: {triplet}")
            return GreylistVerdict(GreylistState.KNOWN)
        view = await self._look(
            lambda operator: operator.look_at_greylist(network, (sender, recipient), settings)
        )
        state = view.state or GreylistState.NEW
        self._tell(f"{state.name.lower().replace('_', ' ')}: {triplet}")
        waited = max(0.0, self._clock() - view.first) if state is GreylistState.PASSED else 0.0
        return GreylistVerdict(state, view.left, waited)

    async def remember(self, keys: Collection[bytes], seconds: float) -> None:
        """Nothing is remembered."""

    async def known(self, keys: Collection[bytes]) -> frozenset[bytes]:  # noqa: ARG002 - none is
        """Know no key: they are of messages that are delivered, and none is."""
        return frozenset()

    async def forget(self, keys: Collection[bytes]) -> None:
        """Nothing is forgotten."""

    async def start(self) -> None:
        """Connect to the store behind."""
        await self._operator.start()
        if self.sets is not None:
            await self.sets.start()

    async def close(self) -> None:
        """Let go of it."""
        if self.sets is not None:
            await self.sets.close()
        await self._operator.close()

    async def _look(self, look: Callable[[Operator], Awaitable[_T]]) -> _T:
        try:
            return await look(self._operator)
        except StoreUnavailable as error:
            self.away = str(error) or "no answer"
            return await look(LocalOperator(LocalStore()))

    def _tell_of(self, view: HostView, limits: ConnectionLimits) -> None:
        for name, left in view.limits.items():
            self._tell(f"{name}: {left.left} of {left.of} left")
        if limits.concurrent is not None:
            self._tell(f"concurrent: {view.open} of {limits.concurrent} open")


def _longest(view: HostView) -> tuple[LimitName, float]:
    """Return the limit that refuses, and for how long: of several the one that lasts longest."""
    refusing: LimitName = ""
    wait = 0.0
    for name, left in view.limits.items():
        if left.left < 1 and (not refusing or left.wait > wait):
            refusing, wait = name, left.wait
    return refusing, wait


def _grants(view: HostView) -> Spent:
    return Spent(
        *(view.limits[budget].left if budget in view.limits else UNLIMITED for budget in BUDGETS)
    )
