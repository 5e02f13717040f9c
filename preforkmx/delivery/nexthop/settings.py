"""What a delivery to a next hop is told: one value for all its links."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

TLSMode = Literal["off", "may", "must", "verify"]
Forward = Literal["no", "xclient", "proxy"]

SHARE = 0.9
"""Of the time that a delivery may take, what one phase may take at most: so that whoever waits
for the next hop ends, and not the session that waits for the delivery."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds for each phase; RFC 5321 section 4.5.3.2 has the numbers but the first."""

    connect: float = 30.0
    """For the connection, and again for each TLS handshake."""
    greeting: float = 300.0
    """For the greeting, and for the replies to EHLO, STARTTLS and AUTH."""
    command: float = 300.0
    """For the replies to MAIL, RCPT and RSET."""
    data: float = 120.0
    """For the reply to DATA."""
    block: float = 180.0
    """Until the server takes octets of the message again."""
    end: float = 600.0
    """For the reply after the message, and in LMTP for each of them."""

    def within(self, seconds: float) -> Timeouts:
        """Return them with none longer than :data:`SHARE` of `seconds`."""
        most = seconds * SHARE
        values = {each.name: min(getattr(self, each.name), most) for each in fields(self)}
        return Timeouts(**values)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who this server is to the next hop (AUTH PLAIN or LOGIN)."""

    user: str
    password: str = field(repr=False)

    @classmethod
    def read(cls, user: str, file: Path) -> Credentials:
        """Take the password from the first line of `file`.

        :raises ValueError: it cannot be read, or has none; the text is for the operator.
        """
        try:
            with file.open(encoding="utf-8") as lines:
                password = lines.readline(4096).rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ValueError(f"the password in {file} cannot be read: {reason}") from error
        if not password or "\0" in password:
            raise ValueError(f"{file} has no password in its first line")
        return cls(user, password)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What holds for every link of a delivery."""

    hostname: str
    """What EHLO or LHLO says."""
    lmtp: bool
    tls: TLSMode = "may"
    context: ssl.SSLContext | None = None
    """Of TLS; None only with ``"off"``."""
    tls_name: str = ""
    """The name in the servers' certificates; "" is the host that is connected to."""
    credentials: Credentials | None = None
    forward: Forward = "no"
    """How the next hop learns who the client is."""
    chunking: bool = False
    """Use BDAT where it is offered; for BODY=BINARYMIME it is used in any case."""
    connections: int = 50
    """Links of one worker at most."""
    idle: float = 30.0
    """Seconds for which a link is kept between two transactions."""
    reuse: int = 100
    """Transactions of one link at most."""
    timeouts: Timeouts = Timeouts()
    patience: float = 216.0
    """Seconds in which a link must be there, waiting for a free one and all servers included."""
