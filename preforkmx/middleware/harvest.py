"""The limit on unknown recipients: who guesses addresses is not told which ones there are."""

from __future__ import annotations

import time
from math import inf
from typing import TYPE_CHECKING

from preforkmx.errors import SMTPError, StoreUnavailable
from preforkmx.middleware.blocked import Blocked, Refusal
from preforkmx.state.networks import NetworkSet, host_octets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from preforkmx.model import Peer
    from preforkmx.state.decisions import Rate, Store
    from preforkmx.state.networks import IPNetwork


class Harvest:
    """Counts the unknown recipients of each host over all workers.

    A host above the limit is refused without a look at the address, by each worker from the
    moment on at which it learns of it, until the limit admits again.

    :param rate: unknown recipients of one host: an IPv4 address or an IPv6 /64.
    :param store: who counts. While it gives no answer nobody is refused.
    :param name: keeps the counts of two limits on one store apart.
    :param allow: networks without the limit; a client on a unix socket has none either, nor has
        a balancer's health check.
    :param clock: seconds, from any beginning.
    """

    def __init__(
        self,
        rate: Rate,
        store: Store,
        *,
        name: str,
        allow: Iterable[IPNetwork] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = rate
        self._store = store
        self._prefix = f"{name}:unknown:"
        self._allow = NetworkSet(allow)
        self._blocked = Blocked(clock)

    def look(self, peer: Peer) -> None:
        """Refuse a host that is known to be above the limit.

        :raises SMTPError: 450 4.7.1.
        """
        if peer.address is None:
            return
        # Most are not blocked, and no list of networks is searched for them.
        refusal = self._blocked.look(host_octets(peer.address))
        if refusal is not None and self._host(peer) is not None:
            raise _refused(refusal)

    async def count(self, peer: Peer) -> None:
        """Count an unknown recipient.

        :raises SMTPError: 450 4.7.1, it is one too many.
        """
        host = self._host(peer)
        if host is None:
            return
        try:
            decision = await self._store.take(self._rate, self._prefix + host.hex())
        except StoreUnavailable:
            return
        if not decision.allowed:
            refusal = Refusal("unknown", decision.wait)
            self._blocked.block(host, refusal, at_most=inf)
            raise _refused(refusal)

    def _host(self, peer: Peer) -> bytes | None:
        address = peer.address
        if address is None or peer.is_health_check or address in self._allow:
            return None
        return host_octets(address)


def _refused(refusal: Refusal) -> SMTPError:
    return SMTPError(
        450,
        "Too many unknown recipients from your address (limit: unknown), "
        f"try again in {refusal.seconds} s",
        enhanced=(4, 7, 1),
        limit=refusal.limit,
    )
