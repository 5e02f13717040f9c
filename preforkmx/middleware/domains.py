"""Recipient domains: whose mail is taken here. Without this check a server relays for anybody."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.errors import SMTPError
from preforkmx.middleware.addresses import comparable_domain
from preforkmx.middleware.base import Middleware

if TYPE_CHECKING:
    from collections.abc import Iterable

    from preforkmx.context import Context
    from preforkmx.model import Peer

ANY = "*"
"""The domain that stands for every domain."""


def accept_domains(domains: Iterable[str], hostname: str) -> Middleware:
    """Refuse recipients of other domains with 550 5.7.1.

    ``<Postmaster>`` and postmaster at the host's own name are always accepted (RFC 5321
    section 4.5.1). Authenticated clients are bound too.

    :param domains: domains in any case, with U-labels or A-labels, address literals
        (``"[192.0.2.1]"``), or ``"*"`` for every domain.
    :param hostname: this host's name.
    """
    accepted = frozenset(comparable_domain(domain) for domain in domains)
    own = hostname.lower()
    if ANY in accepted:
        return Middleware(name="domains")

    async def check_recipient(_ctx: Context, _peer: Peer, address: str) -> None:
        local, at, domain = address.rpartition("@")
        # Only <Postmaster> has no domain: the parser lets nothing else through.
        if not at or comparable_domain(domain) in accepted:
            return
        if domain.lower() == own and local.strip('"').lower() == "postmaster":
            return
        raise SMTPError(
            550, "Relaying denied: mail for this domain is not taken here", enhanced=(5, 7, 1)
        )

    return Middleware(check_recipient=check_recipient, name="domains")
