"""AUTH: who decides about credentials, and where being authenticated is required (RFC 4954)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.errors import SMTPError
from preforkmx.middleware.base import Middleware
from preforkmx.middleware.phase import at_phase

if TYPE_CHECKING:
    from preforkmx.context import Context
    from preforkmx.middleware.base import AuthenticateHook
    from preforkmx.middleware.phase import At
    from preforkmx.model import Peer


def authenticator(check: AuthenticateHook) -> Middleware:
    """Let ``check(ctx, peer, user, password)`` decide about credentials.

    It returns None, or a Context to replace the session's, to let the client in, and raises
    ``SMTPError(535, …, enhanced=(5, 7, 8))`` to refuse it, with the same text and after the
    same time for an unknown user and a wrong password. Anything else that it returns or
    raises is a crash, and lets nobody in. With several authenticators all have to agree.

    AUTH is offered under TLS, or everywhere with ``Server(allow_insecure_auth=True)``.
    Nobody has to use it: that is :func:`require_auth`.
    """
    return Middleware(authenticate=check)


def require_auth(at: At = "mail") -> Middleware:
    """Refuse clients that have not authenticated: 530 5.7.0 (RFC 4954 section 6).

    :param at: where: at MAIL, at each RCPT, or when the message was sent.
    :raises ValueError: for another `at`.
    """

    async def check(_ctx: Context, peer: Peer) -> None:
        if peer.username is None:
            raise SMTPError(530, "Authentication required", enhanced=(5, 7, 0))

    return at_phase(at, check, name="require_auth")
