"""The service extensions: the keywords of the reply to EHLO (RFC 5321 section 4.1.1.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.protocol.sasl import MECHANISMS
from preforkmx.protocol.xclient import ATTRIBUTES

if TYPE_CHECKING:
    from preforkmx.protocol.settings import Settings


def auth_offered(settings: Settings, *, tls: bool) -> bool:
    """Say whether AUTH may be used: there is somebody to ask, and nobody who listens."""
    return settings.auth and (tls or settings.allow_insecure_auth)


def keywords(settings: Settings, *, tls: bool, xclient: bool) -> list[str]:
    """Return the EHLO keywords that hold in plain text, or under TLS.

    :param xclient: the peer may use XCLIENT.
    """
    words = ["PIPELINING", f"SIZE {settings.message_size}", "8BITMIME"]
    if settings.starttls and not tls:
        words.append("STARTTLS")
    if auth_offered(settings, tls=tls):
        names = " ".join(name.decode("ascii") for name in MECHANISMS)
        words.append(f"AUTH {names}")
    words.append("ENHANCEDSTATUSCODES")
    if settings.chunking:
        words.append("CHUNKING")
        if settings.binarymime:
            # RFC 3030 section 3: only together with CHUNKING.
            words.append("BINARYMIME")
    if settings.smtputf8:
        words.append("SMTPUTF8")
    if settings.dsn:
        words.append("DSN")
    if settings.requiretls and tls:
        # RFC 8689 section 2: never in plain text.
        words.append("REQUIRETLS")
    limits = _limits(settings)
    if limits:
        words.append(f"LIMITS {limits}")
    if xclient:
        words.append(f"XCLIENT {' '.join(ATTRIBUTES)}")
    return words


def _limits(settings: Settings) -> str:
    """Return the values of LIMITS, which have at most six digits (RFC 9422 section 4)."""
    limits = {"RCPTMAX": settings.recipients, "MAILMAX": settings.transactions}
    return " ".join(f"{name}={value}" for name, value in limits.items() if 0 < value < 1_000_000)
