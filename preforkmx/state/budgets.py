"""The engine of the budgets: what one session has reserved, spends and gives back.

Like the rest of the engine it never awaits and reads no clock. A budget of a host is one more
rate among the others (:class:`~preforkmx.state.limits.Limits`); what a session has reserved of
it is charged there already, and stands in the session's :class:`Account`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from preforkmx.state.decisions import BUDGETS, PREPAID, UNLIMITED
from preforkmx.state.gcra import given_back, units_left, wait_for_one, with_debt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from preforkmx.state.expiring import ExpiringMap

#: The code of the first of :data:`~preforkmx.state.decisions.BUDGETS` where one refuses; the
#: others follow in their order. Below are the codes of :mod:`~preforkmx.state.limits`.
REFUSED_BY_BUDGET: Final = 4

#: What a session has reserved when it begins: a message and a recipient.
FIRST: Final = (1, 1, 0)

#: What stands before a host's key, for each budget. No other key of the engine begins so.
_PREFIXES: Final = (b"M", b"R", b"A", b"O", b"E")


def budget_key(index: int, name: bytes, host: bytes) -> bytes:
    """Return the key of the arrival time of a budget of `host`, by its place in BUDGETS."""
    return _PREFIXES[index] + name + b"\0" + host


@lru_cache(256)
def _limited(numbers: tuple[int, ...]) -> tuple[tuple[int, bytes, int, int], ...]:
    """Return index, prefix, interval and tolerance of each budget that has a limit."""
    return tuple(
        (index, _PREFIXES[index], interval, tolerance)
        for index in range(len(BUDGETS))
        for interval, tolerance in [numbers[2 * index : 2 * index + 2]]
        if interval
    )


class Account:
    """The budgets of one session, until it ends.

    :param arrivals: where the rates are counted.
    :param name: the set of limits.
    :param host: whose they are (:func:`~preforkmx.state.networks.host_octets`).
    :param numbers: :attr:`ConnectionLimits.budget_numbers
        <preforkmx.state.decisions.ConnectionLimits.budget_numbers>`, all ten.
    """

    __slots__ = ("_arrivals", "_host", "_rates", "reserved")

    def __init__(
        self,
        arrivals: ExpiringMap[bytes, int],
        name: bytes,
        host: bytes,
        numbers: tuple[int, ...],
    ) -> None:
        self._arrivals = arrivals
        self._host = name + b"\0" + host
        self._rates = _limited(numbers)
        #: Units of each prepaid budget that are charged, and were not spent.
        self.reserved = [0] * PREPAID

    def shortage(self, now: int) -> tuple[int, int]:
        """Return the budget of which no unit is left, as its code, and the µs until one is.

        When several are exhausted it is the one that lasts longest; ``(0, 0)`` when none is.
        """
        stored = self._arrivals.entries
        code = longest = 0
        for index, prefix, interval, tolerance in self._rates:
            arrival = stored.get(prefix + self._host, 0)
            if arrival + interval <= now + tolerance:
                continue  # as nearly always
            wait = wait_for_one(arrival, now, interval, tolerance)
            if wait > longest:
                code, longest = REFUSED_BY_BUDGET + index, wait
        return code, longest

    def begin(self, now: int) -> None:
        """Reserve what a session begins with; there must be no :meth:`shortage`."""
        for index, prefix, interval, tolerance in self._rates:
            if index < PREPAID and FIRST[index]:
                self._charge(prefix, FIRST[index] * interval, tolerance, now)
                self.reserved[index] = FIRST[index]

    def settle(self, spent: Sequence[int], want: Sequence[int], now: int) -> tuple[int, int]:
        """Book what was `spent`, and reserve up to what the session wants to have.

        All budgets are looked at before anything is reserved: a session that is refused has
        what it had, less what it spent. Of what is left it gets a quarter at most, so that one
        session does not hold what others could spend, but at least one unit.

        :returns: the code of the budget that refuses and the µs until a unit of it is there;
            ``(0, 0)`` when none does.
        """
        self._book(spent, now)
        stored = self._arrivals.entries
        code = longest = 0
        more: list[tuple[int, bytes, int, int, int]] = []
        for index, prefix, interval, tolerance in self._rates:
            arrival = stored.get(prefix + self._host, 0)
            short = 0
            if index < PREPAID:
                if want[index] < 0:
                    self._give_back(index, prefix, interval, tolerance, now)
                    continue
                short = want[index] - self.reserved[index]
                if short <= 0:
                    continue
            left = units_left(arrival, now, interval, tolerance)
            if not left:
                wait = wait_for_one(arrival, now, interval, tolerance)
                if wait > longest:
                    code, longest = REFUSED_BY_BUDGET + index, wait
            elif short:
                units = min(short, max(1, left // 4))
                more.append((index, prefix, units, interval, tolerance))
        if not code:
            for index, prefix, units, interval, tolerance in more:
                self._charge(prefix, units * interval, tolerance, now)
                self.reserved[index] += units
        return code, longest

    def close(self, spent: Sequence[int], now: int) -> None:
        """Book what was `spent`, and give back what is still reserved."""
        self._book(spent, now)
        for index, prefix, interval, tolerance in self._rates:
            if index < PREPAID:
                self._give_back(index, prefix, interval, tolerance, now)

    def _give_back(
        self, index: int, prefix: bytes, interval: int, tolerance: int, now: int
    ) -> None:
        reserved, self.reserved[index] = self.reserved[index], 0
        key = prefix + self._host
        arrival = self._arrivals.entries.get(key, 0)
        # One that is at rest is whole, and more it cannot be.
        if reserved and arrival > now:
            after = given_back(arrival, now, reserved * interval, tolerance)
            self._arrivals.put(key, after, now)

    def grants(self, now: int) -> tuple[int, ...]:
        """Return what the session may spend of each budget before it settles."""
        stored = self._arrivals.entries
        grants = [UNLIMITED] * len(BUDGETS)
        for index, prefix, interval, tolerance in self._rates:
            if index < PREPAID:
                grants[index] = self.reserved[index]
            else:
                arrival = stored.get(prefix + self._host, 0)
                grants[index] = units_left(arrival, now, interval, tolerance)
        return tuple(grants)

    def _book(self, spent: Sequence[int], now: int) -> None:
        """Charge what was `spent`, except for what is reserved: that is charged already."""
        for index, prefix, interval, tolerance in self._rates:
            units = spent[index]
            if index < PREPAID:
                covered = min(units, self.reserved[index])
                self.reserved[index] -= covered
                units -= covered
            if units:
                self._charge(prefix, units * interval, tolerance, now)

    def _charge(self, prefix: bytes, cost: int, tolerance: int, now: int) -> None:
        key = prefix + self._host
        arrivals = self._arrivals
        arrival = with_debt(arrivals.entries.get(key, 0), now, cost, tolerance)
        arrivals.put(key, arrival, now)
