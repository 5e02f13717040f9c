"""What a listener's sessions are told and held to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from preforkmx.protocol import replies
from preforkmx.protocol.extensions import keywords

if TYPE_CHECKING:
    from preforkmx.protocol.replies import Reply


@dataclass(slots=True, kw_only=True)
class Settings:
    """Shared by all sessions of a listener, and never changed."""

    hostname: str
    message_size: int = 10_240_000
    """Octets of a message; announced with SIZE (RFC 1870)."""
    recipients: int = 100
    """Recipients of a transaction; the rest get 452 4.5.3 (RFC 5321 section 4.5.3.1.10)."""
    errors: int = 20
    """Refused commands since the last delivered message; the next one gets 421."""
    auth_failures: int = 3
    """Failed authentications of a session; the last one gets 421."""
    starttls: bool = False
    """STARTTLS is offered in plain text."""
    auth: bool = False
    """There is somebody to ask: AUTH is offered where it may be used."""
    allow_insecure_auth: bool = False
    """AUTH may be used in plain text too."""
    lmtp: bool = False
    """LMTP (RFC 2033) instead of SMTP."""
    chunking: bool = True
    """CHUNKING is offered (RFC 3030)."""
    binarymime: bool = True
    """BINARYMIME is offered where CHUNKING is (RFC 3030 section 3)."""
    smtputf8: bool = False
    """SMTPUTF8 is offered (RFC 6531)."""
    dsn: bool = False
    """DSN is offered (RFC 3461)."""
    requiretls: bool = False
    """REQUIRETLS is offered under TLS (RFC 8689)."""
    bare_newline: Literal["reject", "normalize"] = "reject"
    """What becomes of a CR or LF that stands alone, in commands and in messages."""
    hops: int = 100
    """Received headers of a message; more are a loop: 554 5.4.6 (RFC 5321 section 6.3)."""
    commands: int = 0
    """Commands since the last delivered message, accepted MAIL, RCPT, DATA and BDAT not
    counted; the next one gets 421. 0: no limit."""
    transactions: int = 0
    """Accepted MAIL commands of a session; the next one gets 421. 0: no limit."""
    strict_flights: bool = False
    """A client that sends on where RFC 2920 makes it wait is refused, and its session ended."""

    greeting: Reply = field(init=False)
    """The first reply."""
    helo: Reply = field(init=False)
    """The reply to HELO."""
    _hellos: dict[tuple[bool, bool], Reply] = field(init=False)

    def __post_init__(self) -> None:
        self.greeting = replies.greeting(self.hostname, "LMTP" if self.lmtp else "ESMTP")
        self.helo = replies.hello(self.hostname)
        # They are made here, once.
        self._hellos = {
            (tls, xclient): replies.hello(self.hostname, *keywords(self, tls=tls, xclient=xclient))
            for tls in (False, True)
            for xclient in (False, True)
        }

    def ehlo(self, *, tls: bool, xclient: bool) -> Reply:
        """Return the reply to EHLO and LHLO.

        :param xclient: the peer may use XCLIENT.
        """
        return self._hellos[tls, xclient]
