"""Limits on connections: how often a host may connect, and how many at once.

The decision is the store's, so a limit holds over every process that shares the store. Whoever
was refused is remembered here until it may come again: an attacker who is blocked costs a
look-up, and the store nothing.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final, NoReturn

from preforkmx.errors import SMTPError, StoreUnavailable
from preforkmx.middleware.base import Middleware
from preforkmx.state.decisions import ConnectionLimits, LimitName, Rate
from preforkmx.state.expiring import ExpiringMap
from preforkmx.state.local import LocalStore
from preforkmx.state.networks import NetworkSet, host_octets

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from preforkmx.context import Context
    from preforkmx.model import Peer
    from preforkmx.state.decisions import Lease, Store
    from preforkmx.state.networks import IPNetwork

#: The most hosts that one worker remembers as blocked, about 250 octets each.
MAX_BLOCKED: Final = 65_536


class _Blocked:
    """Hosts that a limit refused, and until when: asked before anything is awaited."""

    __slots__ = ("_clock", "_hosts")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._hosts: ExpiringMap[bytes, tuple[float, LimitName]] = ExpiringMap(
            MAX_BLOCKED, lambda blocked: blocked[0]
        )

    def check(self, host: bytes) -> None:
        """Refuse `host` if it is blocked.

        :raises SMTPError: 421 4.7.0.
        """
        # Most hosts are not, and pay for no clock.
        if host in self._hosts.entries:
            now = self._clock()
            blocked = self._hosts.get(host, now)
            if blocked is not None:
                _refuse(blocked[1], blocked[0] - now)

    def block(self, host: bytes, limit: LimitName, wait: float) -> NoReturn:
        """Block `host` for `wait` seconds, and refuse it.

        :raises SMTPError: 421 4.7.0.
        """
        now = self._clock()
        self._hosts.put(host, (now + wait, limit), now)
        _refuse(limit, wait)

    def lease_ended(self, host: bytes) -> None:
        """A place is free: a host that was refused for want of one need not wait."""
        blocked = self._hosts.entries.get(host)
        if blocked is not None and blocked[1] == "concurrent":
            now = self._clock()
            self._hosts.put(host, (now, "concurrent"), now)


def _refuse(limit: LimitName, wait: float) -> NoReturn:
    what = "open connections" if limit == "concurrent" else "connections"
    where = "network" if limit == "network" else "address"
    raise SMTPError(
        421,
        f"Too many {what} from your {where} (limit: {limit}), "
        f"try again in {max(1, math.ceil(wait))} s",
        enhanced=(4, 7, 0),
    )


def rate_limit(
    store: Store,
    *,
    connections: Rate | None = None,
    concurrent: int | None = None,
    allow: Iterable[IPNetwork] = (),
    name: str = "rate_limit",
    clock: Callable[[], float] = time.monotonic,
) -> Middleware:
    """Limit the connections of each host: an IPv4 address or an IPv6 /64.

    What is above a limit is refused with 421 4.7.0, which names the limit and says how many
    seconds to wait. While the store gives no answer nobody is refused; give it a
    :class:`~preforkmx.state.fallback.FallbackStore` to have limits then too.

    A host that had too many open connections is refused for a second without asking again,
    or until one of its connections to this worker ends.

    :param connections: how often a host may connect; None is no limit.
    :param concurrent: how many connections a host may have open; None is no limit.
    :param allow: networks without limits. A client on a unix socket has none either.
    :param name: keeps the counts of two rate limits on one store apart.
    :param clock: seconds, from any beginning.
    :raises ValueError: neither `connections` nor `concurrent` is given, or one is out of range.
    """
    if connections is None and concurrent is None:
        raise ValueError("rate_limit needs connections, concurrent or both")
    limits = ConnectionLimits(name, host=connections, concurrent=concurrent)
    allowed = NetworkSet(allow)
    blocked = _Blocked(clock)
    key = object()

    async def check_connection(ctx: Context, peer: Peer) -> Context | None:
        # When the check runs again for the address that XCLIENT names, the new lease takes the
        # place of the old one.
        before: Lease | None = ctx.value(key)
        lease = await admit(peer)
        if before is not None:
            await store.close_connection(before)
        if lease is None and before is None:
            return None
        return ctx.with_value(key, lease)

    async def admit(peer: Peer) -> Lease | None:
        address = peer.address
        if address is None or peer.is_health_check or address in allowed:
            return None
        host = host_octets(address)
        blocked.check(host)
        try:
            admission = await store.open_connection(address, limits)
        except StoreUnavailable:
            return None
        if not admission.admitted:
            blocked.block(host, admission.limit, admission.wait)
        return admission.lease

    async def disconnect(ctx: Context, peer: Peer, _error: BaseException | None) -> None:
        lease: Lease | None = ctx.value(key)
        if lease is not None:
            if peer.address is not None:
                blocked.lease_ended(host_octets(peer.address))
            await store.close_connection(lease)

    return Middleware(
        check_connection=check_connection,
        disconnect=None if concurrent is None else disconnect,
        name=name,
    )


def ip_rate_limit(
    rate: float,
    burst: int,
    store: Store | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[Context, Peer], Awaitable[None]]:
    """Return a check that limits each host to `rate` connections a second.

    Lift it to a phase: ``server.use(check_connection(ip_rate_limit(rate=1, burst=10)))``.
    What is above is refused with 421 4.7.0. A host is an IPv4 address or an IPv6 /64.

    :param rate: connections a second; ``1 / 60`` is one a minute.
    :param burst: connections at once after a time of silence.
    :param store: who counts; None counts in this process alone.
    :param clock: seconds, from any beginning.
    :raises ValueError: a value is out of range.
    """
    if not rate > 0:
        raise ValueError(f"{rate} is not a rate in connections a second")
    limit = Rate(count=1, period=1 / rate, burst=burst)
    # Two of them with different limits on one store count apart.
    prefix = f"ip_rate_limit:{limit.interval}:{burst}:"
    counting = store if store is not None else LocalStore()
    blocked = _Blocked(clock)

    async def ip_rate_limit(_ctx: Context, peer: Peer) -> None:
        if peer.address is None or peer.is_health_check:
            return
        host = host_octets(peer.address)
        blocked.check(host)
        try:
            decision = await counting.take(limit, f"{prefix}{host.hex()}")
        except StoreUnavailable:
            return
        if not decision.allowed:
            blocked.block(host, "connections", decision.wait)

    return ip_rate_limit
