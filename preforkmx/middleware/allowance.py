"""What one session may spend of its host's budgets before it has to ask the store again."""

from __future__ import annotations

from math import inf
from operator import add, sub
from typing import TYPE_CHECKING, Final

from preforkmx.errors import StoreUnavailable
from preforkmx.middleware.blocked import Block, Refusal
from preforkmx.state.decisions import (
    BUDGETS,
    GIVE_BACK,
    PREPAID,
    UNLIMITED,
    WITHOUT_LIMIT,
    Spent,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from preforkmx.context import Usage
    from preforkmx.state.decisions import Lease, Store

#: How many octets are one unit of the budget: a rate counts in whole microseconds, which are too
#: coarse for single octets.
OCTETS_UNIT: Final = 1024

#: Positions in :data:`~preforkmx.state.decisions.BUDGETS`.
MESSAGES, RECIPIENTS, AUTH_FAILURES, OCTETS, ERRORS = range(len(BUDGETS))

#: How many units of each prepaid budget a session wants when it asks for the first time, and at
#: most: twice as many each time. So a long session asks seldom, and a short one keeps little
#: from the others of its host.
FIRST_PORTION: Final = (2, 8, 1)
LARGEST_PORTION: Final = (64, 256, 1)

#: What a session has of each budget where the store gives no answer: limits never fail closed.
UNANSWERED: Final = Spent(messages=16, recipients=64, auth_failures=1, octets=16_384, errors=16)

#: After how many seconds the store is asked again about a prepaid budget that is exhausted:
#: other sessions may have given back what they did not spend.
RECHECK_SECONDS: Final = 5.0


def longest_block(limit: str) -> float:
    """Return how long a worker may refuse by itself for the sake of `limit`, in seconds."""
    return RECHECK_SECONDS if limit in BUDGETS[:PREPAID] else inf


class Allowance:
    """The budgets of one session.

    :param host: whose they are (:func:`~preforkmx.state.networks.host_octets`).
    :param store: who is asked.
    :param lease: what the store gave; None: the session has no budgets.
    :param grants: what may be spent before the first question.
    :param usage: what was spent before, and is not booked here.
    :param clock: seconds, from any beginning.
    """

    __slots__ = (
        "_before",
        "_ceilings",
        "_clock",
        "_grants",
        "_portions",
        "_refused",
        "_store",
        "host",
        "lease",
    )

    def __init__(
        self,
        host: bytes,
        store: Store,
        usage: Usage,
        clock: Callable[[], float],
        *,
        lease: Lease | None = None,
        grants: Spent = WITHOUT_LIMIT,
    ) -> None:
        self.host = host
        self.lease = lease
        self._store = store
        self._clock = clock
        self._before = _units(usage)
        self._take(grants)
        self._portions: tuple[int, ...] = FIRST_PORTION
        self._refused: Block | None = None

    async def need(self, usage: Usage, budget: int) -> Refusal | None:
        """See to it that the session has a unit of a prepaid budget, and asks if it has none.

        A budget that is booked afterwards refuses as well, once it is exhausted. What AUTH had
        reserved is given back at the first message: whoever is let in keeps nothing from others.

        :param usage: what the session spent so far.
        :param budget: :data:`MESSAGES`, :data:`RECIPIENTS` or :data:`AUTH_FAILURES`.
        """
        ceilings = self._ceilings
        if (
            usage[budget] < ceilings[budget]
            and usage.octets < ceilings.octets
            and usage.errors < ceilings.errors
            and not (
                budget == MESSAGES and usage.auth_failures < ceilings.auth_failures < UNLIMITED
            )
        ):
            return None
        if self._refused is not None:
            now = self._clock()
            if now < self._refused.until:
                return self._refused.refusal(now)
            self._refused = None
        return await self._ask(usage, budget)

    def _take(self, grants: Spent) -> None:
        """From now on the session may spend `grants`, and then asks."""
        self._grants = grants
        ceilings = Spent(*map(add, self._before, grants))
        self._ceilings = ceilings._replace(octets=ceilings.octets * OCTETS_UNIT)

    async def _ask(self, usage: Usage, budget: int) -> Refusal | None:
        lease = self.lease
        if lease is None:
            return None
        now_spent = _units(usage)
        spent = _difference(now_spent, self._before)
        want = [0] * len(BUDGETS)
        # A message without recipients is none: both in one question. Nothing is asked for that
        # is there: it could be refused for want of more.
        for index in (budget, RECIPIENTS) if budget == MESSAGES else (budget,):
            if spent[index] >= self._grants[index]:
                want[index] = self._portions[index]
        if budget == MESSAGES and self._grants.auth_failures < UNLIMITED:
            want[AUTH_FAILURES] = GIVE_BACK
        self._before = now_spent
        try:
            settlement = await self._store.settle(lease, spent, Spent(*want))
        except StoreUnavailable:
            left = _difference(self._grants, spent)
            self._take(Spent(*map(max, left, UNANSWERED)))
            return None
        self._take(settlement.grants)
        if settlement.allowed:
            self._portions = tuple(
                min(2 * portion, most) if wanted > 0 else portion
                for portion, most, wanted in zip(
                    self._portions, LARGEST_PORTION, want, strict=False
                )
            )
            return None
        refusal = Refusal(settlement.limit, settlement.wait)
        self._refused = Block.begin(refusal, self._clock(), longest_block(refusal.limit))
        return refusal

    def spent(self, usage: Usage) -> Spent:
        """Return what was spent and is not booked."""
        return _difference(_units(usage), self._before)

    def unspent(self, usage: Usage) -> frozenset[str]:
        """Return the prepaid budgets of which something is given back at the session's end."""
        spent = self.spent(usage)
        return frozenset(
            budget
            for index, budget in enumerate(BUDGETS[:PREPAID])
            if spent[index] < self._grants[index]
        )


def _units(usage: Usage) -> Spent:
    """Return `usage` in the budgets' units."""
    # The rest of a unit is never lost: differences of these add up.
    return Spent(
        usage.messages,
        usage.recipients,
        usage.auth_failures,
        usage.octets // OCTETS_UNIT,
        usage.errors,
    )


def _difference(more: Spent, less: Spent) -> Spent:
    return Spent(*map(sub, more, less))
