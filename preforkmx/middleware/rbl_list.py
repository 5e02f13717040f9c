"""One list in the DNS, and what it says of a client."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from preforkmx.dns import list_name
from preforkmx.middleware.rbl_codes import DEFAULT_CODES, Codes
from preforkmx.protocol.domains import LABEL, to_ascii

if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from preforkmx.model import IPAddress

Kind = Literal["ip", "domain"]
"""A list of addresses, or one of domains: RFC 5782 sections 2.1 and 2.2."""

_ZONE = re.compile(rf"{LABEL}(?:\.{LABEL})*\Z")
_NAME = re.compile(r"[ -~]{0,100}\Z")
_TEXT = re.compile(r"[ -~]{0,300}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class DNSList:
    """One list of RFC 5782.

    :param zone: the name below which it stands: ``"zen.example.org"``.
    :param kind: ``"ip"``: of clients' addresses, IPv4 and IPv6. ``"domain"``: of names, which it
        is asked for as they are: HELO names and the domains of reverse paths.
    :param codes: the answers that count, single ones and ranges.
    :param weight: what a listing adds to the score; below zero the list is one of those that
        vouch, as DNSWL does. Only a list of addresses can: a client chooses its names.
    :param name: what replies and logs call it; ``""``: its zone. For zones that hold a key.
    :param reason: the text of a refusal instead of the list's TXT record, ``{address}`` being
        who is listed; ``""``: the TXT record.
    :raises ValueError: something of it is wrong; the text is for the operator.
    """

    zone: str
    kind: Kind = "ip"
    codes: tuple[str, ...] = DEFAULT_CODES
    weight: int = 1
    name: str = ""
    reason: str = ""
    counted: Codes = field(init=False, repr=False, compare=False)
    """:attr:`codes`, to look answers up in."""

    def __post_init__(self) -> None:
        if len(self.zone) > 200 or _ZONE.match(self.zone) is None:
            raise ValueError(f"{self.zone!r} is no zone such as zen.example.org")
        if self.kind not in {"ip", "domain"}:
            raise ValueError(f'a list is of kind "ip" or "domain", not {self.kind!r}')
        if self.weight == 0:
            raise ValueError("a list without weight changes nothing")
        if self.weight < 0 and self.kind == "domain":
            raise ValueError("a list of domains vouches for nobody: a client chooses its names")
        if _NAME.match(self.name) is None:
            raise ValueError("a list's name has at most 100 printable ASCII characters")
        if _TEXT.match(self.reason) is None:
            raise ValueError("a reason has at most 300 printable ASCII characters")
        object.__setattr__(self, "counted", Codes(self.codes))

    @property
    def shown(self) -> str:
        """What replies and logs call it."""
        return self.name or self.zone


class Question(NamedTuple):
    """Who is looked for in one zone."""

    zone: str
    kind: Kind
    subject: str
    """An address, or a name: in ASCII and lower case."""
    name: str
    """The name that the DNS is asked for."""

    @classmethod
    def about_address(cls, zone: str, address: IPAddress) -> Self:
        """Ask a list of addresses."""
        return cls(zone, "ip", subject_of(address), list_name(address, zone))

    @classmethod
    def about_name(cls, zone: str, name: str) -> Self:
        """Ask a list of domains about what :func:`domain_subject` returned."""
        return cls(zone, "domain", name, f"{name}.{zone}")

    @property
    def never_listed(self) -> str:
        """The name that no list may have (RFC 5782 section 5)."""
        return f"{'1.0.0.127' if self.kind == 'ip' else 'invalid'}.{self.zone}"


class Listing(NamedTuple):
    """A list says that it knows the client."""

    list: str
    """The list's name."""
    subject: str
    """Who is listed: the client's address, its HELO name or the domain of a reverse path."""
    codes: tuple[IPv4Address, ...]
    """The answers that count, at most 16."""
    weight: int

    def __str__(self) -> str:
        codes = ",".join(map(str, self.codes[:4]))
        return f"{self.list} ({codes}) {self.subject} {self.weight:+}"


def subject_of(address: IPAddress) -> str:
    """Return how a list of addresses knows `address`: an IPv4-mapped one as IPv4."""
    if address.version == 6 and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    # The interface of a link-local address means something on this machine only.
    return str(address).partition("%")[0]


def domain_subject(text: str) -> str | None:
    """Return how a list of domains knows `text`, a HELO name or a domain: None if it cannot.

    Lists of domains answer addresses with errors, and a name without a dot is nobody's.
    """
    try:
        name = to_ascii(text.removesuffix("."))
    except ValueError:
        return None
    last = name.rpartition(".")
    return name if last[0] and not last[2].isdigit() and not name.startswith("[") else None
