"""What hooks and handlers are given: the Peer and the Envelope."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from preforkmx.protocol.dsn import DSN, RecipientDSN
from preforkmx.protocol.proxy import ProxyInfo, ProxyTLS

if TYPE_CHECKING:
    from collections.abc import Callable

    from preforkmx.body import MessageStream
    from preforkmx.errors import SMTPError

__all__ = [
    "DSN",
    "Envelope",
    "IPAddress",
    "Peer",
    "ProxyInfo",
    "ProxyTLS",
    "RecipientDSN",
    "TLSInfo",
    "Verification",
]

IPAddress = IPv4Address | IPv6Address


class TLSInfo(NamedTuple):
    """The TLS layer of a session, as both sides agreed on it."""

    version: str
    """``"TLSv1.3"``, as :meth:`ssl.SSLSocket.version` says."""
    cipher: str
    """The cipher suite's name in OpenSSL's spelling."""
    bits: int
    """The cipher's secret bits."""


class Verification(NamedTuple):
    """What a verify hook answers to VRFY (RFC 5321 section 3.5)."""

    mailbox: str
    """The mailbox that the string names, written into the 250 reply."""


class Peer(NamedTuple):
    """What a session knows of its client: a value, replaced as the session learns more.

    A hook that keeps a Peer keeps what was true at that time.
    """

    address: IPAddress | None
    """The client's address (IPv4-mapped IPv6 is IPv4); ``None`` on a unix socket."""
    port: int
    """The client's port; 0 on a unix socket."""
    server_name: str
    """This server's host name."""
    listener: str
    """The listener's address as it is configured, ``"0.0.0.0:25"``."""
    helo_name: str = ""
    """The argument of HELO or EHLO; ``""`` before it."""
    protocol: str = ""
    """How mail arrives, in the words of RFC 3848: SMTP; ESMTP, ESMTPS, ESMTPA, ESMTPSA; LMTP,
    LMTPS, LMTPA, LMTPSA; and of RFC 6531 where a transaction uses SMTPUTF8 (:attr:`Envelope`
    knows)."""
    tls: TLSInfo | None = None
    """The TLS layer; ``None`` in plain text."""
    username: str | None = None
    """Who authenticated with AUTH; ``None`` before."""
    proxy: ProxyInfo | None = None
    """What the PROXY header said; ``None`` on a listener without."""
    name: str | None = None
    """The client's name, where XCLIENT told it."""
    server_address: IPAddress | None = None
    """The address that the client connected to, where PROXY or XCLIENT told it."""
    server_port: int = 0
    """The port that the client connected to; 0: not told."""

    @property
    def is_health_check(self) -> bool:
        """A balancer's own connection (PROXY ``LOCAL``): no limit, list or greylist is for it."""
        return self.proxy is not None and self.proxy.local

    @property
    def host(self) -> str:
        """The address as text, ``"unix"`` where there is none."""
        return "unix" if self.address is None else str(self.address)


@dataclass(slots=True)
class Envelope:
    """One mail transaction: shared by its hooks, and theirs to change.

    Made at MAIL, grown by RCPT, given its data at DATA; gone after delivery, RSET or a new
    greeting.
    """

    sender: str
    """The reverse path without its angle brackets; ``""`` is the null reverse path."""
    data: MessageStream
    """The message. Before DATA it is an empty stream."""
    recipients: list[str] = field(default_factory=list)
    """The accepted forward paths in their order, without angle brackets."""
    id: str = ""
    """The transaction's id: in the log, in Received and in the reply after the message."""
    size: int | None = None
    """What the client declared with SIZE (RFC 1870), in octets."""
    body: str = "7BIT"
    """``"7BIT"``, ``"8BITMIME"`` (RFC 6152) or ``"BINARYMIME"`` (RFC 3030)."""
    auth: str | None = None
    """AUTH on MAIL (RFC 4954 section 5): who first submitted the message, ``""`` for ``<>``.
    ``None``: not said. From a client that did not authenticate it is ``""``, whatever it said."""
    smtputf8: bool = False
    """The client asked for SMTPUTF8 (RFC 6531): addresses and headers may hold UTF-8."""
    require_tls: bool = False
    """The client asked for REQUIRETLS (RFC 8689): send the message on under TLS or not at all."""
    dsn: DSN | None = None
    """What the client asked about notifications (RFC 3461); ``None``: nothing."""
    tap: Callable[[bytes], object] | None = None
    """Called with each piece of the message as the client sent it, whatever handlers make of
    :attr:`data`, and with ``b""`` once it is whole. To be set before the message begins."""
    rejections: dict[int, SMTPError] = field(default_factory=dict)
    """What :meth:`reject_recipient` recorded, by index."""
    targets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What :meth:`redirect` recorded, by forward path as it stands in :attr:`recipients`."""

    def redirect(self, recipient: str, *targets: str) -> None:
        """Let others have the mail of one recipient: an alias, or a mailbox without its extension.

        In check_recipient, before the recipient is one. Other hooks go on seeing the forward
        path that the client gave, and so does the log; the delivery has the targets in its
        place, each of them once, at RCPT already where it is asked then. What it refuses for a
        target is refused for the recipient.

        :param targets: ASCII addresses, since mail without SMTPUTF8 goes there too; at least one.
        :raises ValueError: there is none.
        """
        if not targets:
            raise ValueError("a recipient is redirected to at least one address")
        self.targets[recipient] = targets

    def reject_recipient(self, index: int, error: SMTPError) -> None:
        """Refuse the message for one recipient, while others have it.

        LMTP answers each recipient (RFC 2033 section 4.2). SMTP has one answer for all: where
        a rejection is 4xx the message is answered with it, and comes again for everybody;
        where all are 5xx it is answered with one that names the refused recipients.

        :param index: in :attr:`recipients`.
        :raises IndexError: there is no such recipient.
        """
        if not 0 <= index < len(self.recipients):
            raise IndexError(f"there is no recipient {index}")
        self.rejections[index] = error
