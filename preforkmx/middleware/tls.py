"""TLS: where it is required (RFC 3207)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.errors import SMTPError
from preforkmx.middleware.phase import at_phase

if TYPE_CHECKING:
    from preforkmx.context import Context
    from preforkmx.middleware.base import Middleware
    from preforkmx.middleware.phase import At
    from preforkmx.model import Peer


def require_tls(at: At = "mail") -> Middleware:
    """Refuse clients in plain text: 530 5.7.0 (RFC 3207 section 4).

    The session goes on, so that the client may say STARTTLS. EHLO cannot be refused: it comes
    before STARTTLS. A host that takes mail from anywhere must not require TLS of everybody
    (RFC 3207 section 4).

    :param at: where: at MAIL, at each RCPT, or when the message was sent.
    :raises ValueError: for another `at`.
    """

    async def check(_ctx: Context, peer: Peer) -> None:
        if peer.tls is None:
            raise SMTPError(530, "Must issue a STARTTLS command first", enhanced=(5, 7, 0))

    return at_phase(at, check, name="require_tls")
