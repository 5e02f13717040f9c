"""What a look-up gives: an answer, or a failure that is remembered like one."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from preforkmx.errors import DNSError

RecordType = Literal["A", "AAAA", "CNAME", "MX", "NS", "PTR", "TXT"]


class MX(NamedTuple):
    """A mail exchanger (RFC 5321 section 5.1)."""

    preference: int
    """The lowest is asked first."""
    exchange: str
    """The host's name; ``"."`` alone says that the domain takes no mail (RFC 7505)."""


Record = IPv4Address | IPv6Address | MX | bytes | str


class Answer(NamedTuple):
    """What the DNS knows of a name and type; that there is nothing is an answer too.

    Nothing here is authenticated: whoever can lie to the resolver can lie in it.
    """

    name: str
    """The name that was asked for, in lower case and without a dot at its end."""
    rdtype: RecordType
    records: tuple[Record, ...]
    """IPv4Address (A), IPv6Address (AAAA), :class:`MX`; octets (TXT: the strings of a record
    joined, RFC 7208 section 3.3); names without the dot at their end (CNAME, NS, PTR), as they
    came, with ``\\`` before what is special in them."""
    ttl: int
    """Seconds that it may be kept, capped; 0 for one that may not."""
    expires: float
    """When it may not be kept any longer, by the resolver's clock."""
    nxdomain: bool
    """The name does not exist: it has records of no type (RFC 8020)."""


class Failure(NamedTuple):
    """Why there is no answer."""

    kind: type[DNSError]
    reason: str
    expires: float = 0.0
    """When it is asked again, by the resolver's clock."""

    def error(self) -> DNSError:
        """Return a new exception: each caller's has a traceback of its own."""
        return self.kind(self.reason)


Outcome = Answer | Failure
