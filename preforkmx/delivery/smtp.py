"""Delivery over SMTP: a relay that answers what its next hop answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.delivery.nexthop.options import Options, next_hop

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Unpack

    from preforkmx.middleware.base import Middleware


def smtp(servers: Sequence[str], *, hostname: str, **options: Unpack[Options]) -> Middleware:
    """Hand each message to an SMTP server while it arrives; its answers are the client's.

    Nothing is queued: a message that the next hop does not take now is answered with 451, and
    its sender keeps it.

    :param servers: ``"HOST:PORT"`` or ``"unix:/PATH"``, the one to prefer first. No MX records
        are looked up.
    :param hostname: this server's name: in EHLO and in Received.
    :param options: as :class:`~preforkmx.delivery.nexthop.options.Options` has them.
    :raises ValueError: an option cannot be used, or a file that it names; the text says why.
    """
    return next_hop(servers, hostname=hostname, lmtp=False, memory=None, options=options)
