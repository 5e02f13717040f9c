"""What hooks and handlers are given: the Peer and the Envelope."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from preforkmx.body import MessageStream

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
    """How mail arrives, in the words of RFC 3848: SMTP, ESMTP, ESMTPS, ESMTPA, ESMTPSA."""
    tls: TLSInfo | None = None
    """The TLS layer; ``None`` in plain text."""
    username: str | None = None
    """Who authenticated with AUTH; ``None`` before."""

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
    """``"7BIT"`` or ``"8BITMIME"`` (RFC 6152)."""
