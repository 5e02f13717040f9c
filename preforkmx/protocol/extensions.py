"""The service extensions: the keywords of the reply to EHLO (RFC 5321 section 4.1.1.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.protocol.sasl import MECHANISMS

if TYPE_CHECKING:
    from preforkmx.protocol.settings import Settings


def auth_offered(settings: Settings, *, tls: bool) -> bool:
    """Say whether AUTH may be used: there is somebody to ask, and nobody who listens."""
    return settings.auth and (tls or settings.allow_insecure_auth)


def keywords(settings: Settings, *, tls: bool) -> list[str]:
    """Return the EHLO keywords that hold in plain text, or under TLS."""
    words = ["PIPELINING", f"SIZE {settings.message_size}", "8BITMIME"]
    if settings.starttls and not tls:
        words.append("STARTTLS")
    if auth_offered(settings, tls=tls):
        names = " ".join(name.decode("ascii") for name in MECHANISMS)
        words.append(f"AUTH {names}")
    words.append("ENHANCEDSTATUSCODES")
    return words
