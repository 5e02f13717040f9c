"""Greylisting: a stranger is asked to try again later, which mail servers do and bots do not.

What is remembered is the triplet of network, reverse path and forward path, by the store. The
rules of who is known are in :mod:`preforkmx.state.greylisting`.
"""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import TYPE_CHECKING, Final, Literal

from preforkmx.body import prepend
from preforkmx.errors import SMTPError, StoreUnavailable
from preforkmx.middleware.base import Middleware
from preforkmx.middleware.exemption import Exemption
from preforkmx.middleware.verdicts import ALLOW_LISTED, SPF_PASSED
from preforkmx.state.decisions import GreylistSettings, GreylistState
from preforkmx.state.expiring import ExpiringMap
from preforkmx.state.local import LocalStore
from preforkmx.state.triplets import (
    network_of,
    normalise_recipient,
    normalise_sender,
    recipients_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from preforkmx.context import Context
    from preforkmx.model import Envelope, Peer
    from preforkmx.state.decisions import Store
    from preforkmx.state.networks import IPNetwork

#: How long a worker remembers that a triplet or a network is allowed, in seconds.
ALLOWED_SECONDS: Final = 60.0
#: The most triplets and networks that a worker remembers as allowed, about 400 octets each.
MAX_ALLOWED: Final = 20_000

_Allowed = tuple[str, str, str] | str


class Greylist:
    """A greylist over one store, with a check for each phase that it serves.

    ``server.use(Greylist(store).middleware())`` defers at RCPT with 451 4.7.1 and the seconds
    that are left. The null reverse path is deferred when the message arrives instead, because
    hosts that call back to verify an address stop after RCPT.

    Never deferred: who has authenticated, who is on a unix socket, `allow`, private networks
    (unless told to), `exempt_recipients`, and whom an allow list vouches for
    (:data:`~preforkmx.middleware.verdicts.ALLOW_LISTED`).

    A client is known by its network. Where SPF passed it is known by the domain instead
    (:data:`~preforkmx.middleware.verdicts.SPF_PASSED`): large senders try again from anywhere
    in their networks. Who sets either stands in front of the greylist.

    :param store: who remembers; None remembers in this process alone.
    :param delay: how long a stranger is deferred, in seconds.
    :param window: how long after its first try its retry counts, in seconds.
    :param life: how long it is known after it was last seen, in seconds.
    :param on_store_failure: while the store gives no answer, ``"accept"`` lets everybody
        pass, ``"tempfail"`` defers everybody with 451 4.3.2.
    :param allow: networks that are not greylisted.
    :param exempt_private: leave out private networks, loopback among them
        (:data:`~preforkmx.state.networks.PRIVATE`).
    :param exempt_recipients: addresses whose mail is not greylisted: ``"abuse@example.com"``,
        or ``"@example.com"`` for a whole domain. Case does not matter.
    :param clock: seconds, from any beginning.
    :raises ValueError: a duration is out of range.
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        delay: float = 300.0,
        window: float = 86_400.0,
        life: float = 36 * 86_400.0,
        on_store_failure: Literal["accept", "tempfail"] = "accept",
        allow: Iterable[IPNetwork] = (),
        exempt_private: bool = True,
        exempt_recipients: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store if store is not None else LocalStore()
        self._settings = GreylistSettings(delay=delay, window=window, life=life)
        self._tempfail = on_store_failure == "tempfail"
        self._exemption = Exemption(allow, private=exempt_private)
        self._exempt_recipients = frozenset(address.lower() for address in exempt_recipients)
        self._clock = clock
        self._allowed: ExpiringMap[_Allowed, float] = ExpiringMap(MAX_ALLOWED, float)
        self._waited = object()

    async def recipient_check(self, ctx: Context, peer: Peer, address: str) -> Context | None:
        """Defer a stranger at RCPT; the null reverse path passes, for :meth:`data_check`.

        :returns: a Context that tells :meth:`data_check` of a first pass.
        :raises SMTPError: 451.
        """
        if not ctx.sender or self._exempt(ctx, peer) or self._exempt_recipient(address):
            return None
        waited = await self._ask(
            ctx, peer, normalise_sender(ctx.sender), normalise_recipient(address)
        )
        if waited <= ctx.value(self._waited, 0.0):
            return None
        return ctx.with_value(self._waited, waited)

    async def data_check(self, ctx: Context, peer: Peer, envelope: Envelope) -> None:
        """Defer a stranger's bounce; on a first pass write how long the message was delayed.

        The header ``X-Greylist`` goes in front of ``envelope.data``.

        :raises SMTPError: 451.
        """
        waited: float = ctx.value(self._waited, 0.0)
        if not envelope.sender and not self._exempt(ctx, peer):
            asked = [to for to in envelope.recipients if not self._exempt_recipient(to)]
            if asked:
                # One reply is for all recipients, so they are one triplet.
                waited = await self._ask(ctx, peer, "", recipients_of(asked))
        if waited > 0:
            date = format_datetime(datetime.now(UTC))
            envelope.data = prepend(
                envelope.data,
                f"X-Greylist: delayed {round(waited)} seconds by {peer.server_name}; {date}\r\n".encode(),
            )

    def middleware(self) -> Middleware:
        """Return both checks as one Middleware."""
        return Middleware(
            check_recipient=self.recipient_check,
            handler=self.data_check,
            reset=self._reset,
            name="greylist",
        )

    async def _reset(self, ctx: Context, _peer: Peer) -> Context | None:
        # The next message of the session was not delayed because this one was.
        return ctx.with_value(self._waited, 0.0) if ctx.value(self._waited) else None

    def _exempt(self, ctx: Context, peer: Peer) -> bool:
        return self._exemption.covers(peer) or ctx.value(ALLOW_LISTED) is not None

    def _exempt_recipient(self, address: str) -> bool:
        if not self._exempt_recipients:
            return False
        address = address.lower()
        _, at, domain = address.rpartition("@")
        return address in self._exempt_recipients or f"{at}{domain}" in self._exempt_recipients

    async def _ask(self, ctx: Context, peer: Peer, sender: str, recipient: str) -> float:
        """Return how many seconds the triplet waited if this is its first pass, else 0.

        :raises SMTPError: 451, it has to wait or the store is away.
        """
        assert peer.address is not None
        # No domain looks like a network: those have a slash.
        network: str = ctx.value(SPF_PASSED) or network_of(peer.address)
        triplet = (network, sender, recipient)
        now = self._clock()
        allowed = self._allowed
        if allowed.get(triplet, now) is not None or allowed.get(network, now) is not None:
            return 0.0
        try:
            verdict = await self._store.greylist(network, sender, recipient, self._settings)
        except StoreUnavailable:
            if self._tempfail:
                raise SMTPError(
                    451, "Greylisting is not available, try again later", enhanced=(4, 3, 2)
                ) from None
            return 0.0
        if verdict.deferred:
            raise SMTPError(
                451,
                f"Greylisted, try again in {max(1, math.ceil(verdict.seconds_left))} s",
                enhanced=(4, 7, 1),
            )
        whole_network = verdict.state is GreylistState.AUTO_ALLOWED
        allowed.put(network if whole_network else triplet, now + ALLOWED_SECONDS, now)
        return verdict.waited
