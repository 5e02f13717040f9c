"""Delivery over LMTP (RFC 2033), to Dovecot say: each recipient has an answer of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.delivery.nexthop.delivered import LocalDelivered
from preforkmx.delivery.nexthop.options import Options, next_hop

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Unpack

    from preforkmx.delivery.nexthop.delivered import DeliveredMemory
    from preforkmx.middleware.base import Middleware


def lmtp(
    servers: Sequence[str],
    *,
    hostname: str,
    memory: DeliveredMemory | None = None,
    **options: Unpack[Options],
) -> Middleware:
    """Hand each message to an LMTP server while it arrives; its answers are the client's.

    SMTP has one answer for all recipients. Where the server takes the message for some of them:
    with nothing but 5xx for the others, the client gets a 5xx that names these. With a 4xx among
    them it gets 451, and when the message comes again the recipients that have it do not get it
    twice.

    :param servers: ``"unix:/PATH"`` or ``"HOST:PORT"``, the one to prefer first.
    :param hostname: this server's name: in LHLO and in Received.
    :param memory: who has what of messages that are to come again: a store
        (:class:`~preforkmx.state.decisions.Store`) that all workers share which a client may
        reach. None: this process alone.
    :param options: as :class:`~preforkmx.delivery.nexthop.options.Options` has them.
    :raises ValueError: an option cannot be used, or a file that it names; the text says why.
    """
    return next_hop(
        servers, hostname=hostname, lmtp=True, memory=memory or LocalDelivered(), options=options
    )
