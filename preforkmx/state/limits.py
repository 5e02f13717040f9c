"""The engine of the limits: rates and open connections of any number of keys, all in memory.

It never awaits and reads no clock. :class:`~preforkmx.state.local.LocalStore` asks it directly,
the store process on behalf of the workers, and both say what time it is in whole microseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from preforkmx.state.budgets import Account
from preforkmx.state.expiring import ExpiringMap
from preforkmx.state.gcra import next_arrival, wait_for
from preforkmx.state.networks import network_octets

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Outcomes of :meth:`Limits.open`, which the wire between worker and store process carries too.
#: Those of the budgets follow, from :data:`~preforkmx.state.budgets.REFUSED_BY_BUDGET` on.
ADMITTED: Final = 0
REFUSED_BY_HOST: Final = 1
REFUSED_BY_NETWORK: Final = 2
REFUSED_BY_LEASES: Final = 3


def lease_key(name: bytes, host: bytes) -> bytes:
    """Return the key under which the open connections of `host` are counted for `name`."""
    return b"c" + name + b"\0" + host


def host_key(name: bytes, host: bytes) -> bytes:
    """Return the key of the arrival time of the connections of `host`."""
    return b"h" + name + b"\0" + host


def network_key(name: bytes, host: bytes) -> bytes:
    """Return the key of the arrival time of the connections of the network of `host`."""
    return b"n" + name + b"\0" + network_octets(host)


def rate_key(key: bytes) -> bytes:
    """Return the key of a rate of anything else (:func:`~preforkmx.state.triplets.short_key`)."""
    return b"t" + key


class Limits:
    """GCRA limits, budgets and counted leases.

    :param capacity: the most keys with a rate that is not at rest. What is pushed out of a
        full map begins again with a whole burst.
    """

    __slots__ = ("_arrivals", "_leases")

    def __init__(self, capacity: int) -> None:
        # The theoretical arrival time is the expiry too: a key that it has reached is at rest.
        self._arrivals: ExpiringMap[bytes, int] = ExpiringMap(capacity, int)
        self._leases: dict[bytes, int] = {}

    def __len__(self) -> int:
        """Keys with a rate, those at rest included as long as they are remembered."""
        return len(self._arrivals)

    @property
    def leases(self) -> int:
        """Leases that are held."""
        return sum(self._leases.values())

    def take(self, key: bytes, cost: int, tolerance: int, now: int) -> int:
        """Take `cost` µs of a limit for `key`; return 0, or how many µs it must wait."""
        arrivals = self._arrivals
        arrival = next_arrival(arrivals.entries.get(key, 0), now, cost, tolerance)
        wait = wait_for(arrival, now, tolerance)
        if not wait:
            arrivals.put(key, arrival, now)
        return wait

    def open(
        self,
        name: bytes,
        host: bytes,
        numbers: Sequence[int],
        now: int,
        account: Account | None = None,
    ) -> tuple[int, int]:
        """Check every limit of a new connection, then charge them all and hold its lease.

        When `concurrent` is among the limits and the connection is admitted, the caller gives
        its lease back with :meth:`release`.

        :param host: the client (:func:`~preforkmx.state.networks.host_octets`).
        :param numbers: :attr:`ConnectionLimits.connection_numbers
            <preforkmx.state.decisions.ConnectionLimits.connection_numbers>`.
        :param account: of the session, where there are budgets (:meth:`account`); the caller
            closes it when the session ends.
        :returns: the outcome and, where a rate refused, how many µs remain to wait.
        """
        host_interval, host_tolerance, network_interval, network_tolerance, concurrent = numbers
        stored = self._arrivals.entries
        outcome, wait = ADMITTED, 0
        host_arrival = network_arrival = 0
        of_host = of_network = b""
        if host_interval:
            of_host = host_key(name, host)
            host_arrival = next_arrival(stored.get(of_host, 0), now, host_interval, host_tolerance)
            wait = wait_for(host_arrival, now, host_tolerance)
            if wait:
                outcome = REFUSED_BY_HOST
        if network_interval:
            of_network = network_key(name, host)
            network_arrival = next_arrival(
                stored.get(of_network, 0), now, network_interval, network_tolerance
            )
            network_wait = wait_for(network_arrival, now, network_tolerance)
            if network_wait > wait:
                outcome, wait = REFUSED_BY_NETWORK, network_wait
        if account is not None:
            exhausted, budget_wait = account.shortage(now)
            if budget_wait > wait:
                outcome, wait = exhausted, budget_wait
        if outcome:
            return outcome, wait
        if concurrent:
            key = lease_key(name, host)
            held = self._leases.get(key, 0)
            if held >= concurrent:
                return REFUSED_BY_LEASES, 0
            self._leases[key] = held + 1
        if host_interval:
            self._arrivals.put(of_host, host_arrival, now)
        if network_interval:
            self._arrivals.put(of_network, network_arrival, now)
        if account is not None:
            account.begin(now)
        return ADMITTED, 0

    def account(self, name: bytes, host: bytes, numbers: tuple[int, ...]) -> Account:
        """Return an account of `host` with nothing reserved; the arguments are Account's."""
        return Account(self._arrivals, name, host, numbers)

    def hold(self, key: bytes) -> None:
        """Count a lease that was given before this engine began: no limit refuses it."""
        self._leases[key] = self._leases.get(key, 0) + 1

    def arrival(self, key: bytes) -> int:
        """Return the theoretical arrival time of `key`, 0 for one that is not there."""
        return self._arrivals.entries.get(key, 0)

    def held(self, key: bytes) -> int:
        """Return how many leases of `key` are held."""
        return self._leases.get(key, 0)

    def forget(self, key: bytes, now: int) -> bool:
        """Put the rate of `key` at rest: it has its whole burst again. Whether it had not."""
        used = self.arrival(key) > now
        if used:
            self._arrivals.put(key, 0, now)
        return used

    def release(self, key: bytes) -> None:
        """Give one lease of `key` back."""
        held = self._leases.get(key, 0) - 1
        if held > 0:
            self._leases[key] = held
        else:
            self._leases.pop(key, None)
