"""The names that an SPF record leads to: asked for together, before pyspf asks one by one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from preforkmx.dns import MX, reverse_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Address, IPv6Address

    from preforkmx.dns import Answer, RecordType

    Key = tuple[str, RecordType]
    """A name and a type of records."""

#: Octets of a record. RFC 7208 section 3.4 wants it to fit a datagram of 512.
MAX_RECORD: Final = 4096
#: Octets of one term: an ``include:`` with the longest name that there is has 261.
MAX_TERM: Final = 320
#: Macros in a record; what one costs grows with the length of the sender's address.
MAX_MACROS: Final = 32
#: Terms that ask the DNS (RFC 7208 section 4.6.4), and exchangers or names of one of them.
MOST_TERMS: Final = 10
MOST_OF_A_TERM: Final = 10

_RECORD: Final = re.compile(rb"v=spf1(?: |\Z)", re.IGNORECASE)
#: A term whose name has no macro: ``a``, ``mx:example.org/24``, ``redirect=example.org``.
_TERM: Final = re.compile(
    r"[+?~-]?(?P<mechanism>a|mx|ptr|include|exists)(?::(?P<name>[^%/]+))?(?:/[0-9/]*)?"
    r"|redirect=(?P<redirect>[^%/]+)",
    re.IGNORECASE,
)
_ALL: Final = re.compile(r"[+?~-]?all", re.IGNORECASE)


def is_spf_record(text: bytes) -> bool:
    """Say whether a TXT record is one of SPF (RFC 7208 section 4.5)."""
    return _RECORD.match(text) is not None


def is_too_costly(text: bytes) -> bool:
    """Say whether a record is longer than any that is meant well.

    pyspf's time grows with the square of a term's length, and a record of 16 KiB made it think
    for seconds. What is longer than these bounds is a permerror.
    """
    return (
        len(text) > MAX_RECORD
        or text.count(b"%{") > MAX_MACROS
        or any(len(term) > MAX_TERM for term in text.split(b" "))
    )


def names_in_record(text: bytes, domain: str, address: IPv4Address | IPv6Address) -> list[Key]:
    """Return what the terms of a record will ask for, in their order, as far as it is plain.

    Terms that cannot be reached, behind ``all`` or beyond the tenth look-up, are left out.

    :param domain: whose record it is.
    :param address: the client's.
    """
    if not is_spf_record(text) or is_too_costly(text):
        return []
    keys: list[Key] = []
    redirect: list[Key] = []
    for term in text.decode("ascii", "replace").split(" ")[1:]:
        if _ALL.fullmatch(term):
            return keys[:MOST_TERMS]
        if match := _TERM.fullmatch(term):
            if match["redirect"]:
                redirect = [(_normal(match["redirect"]), "TXT")]
                continue
            mechanism = match["mechanism"].lower()
            name = _normal(match["name"] or domain)
            if mechanism in {"include", "exists"} and not match["name"]:
                continue
            keys.append(_key(mechanism, name, address))
    return (keys + redirect)[:MOST_TERMS]


def names_in_answer(key: Key, answer: Answer, address: IPv4Address | IPv6Address) -> Iterator[Key]:
    """Return what pyspf asks for next when it has looked up `key`: records, addresses."""
    rdtype = key[1]
    if rdtype == "TXT":
        for text in answer.records:
            if isinstance(text, bytes):
                yield from names_in_record(text, key[0], address)
    elif rdtype == "PTR" or (rdtype == "MX" and len(answer.records) <= MOST_OF_A_TERM):
        for record in answer.records[:MOST_OF_A_TERM]:
            host = record.exchange if isinstance(record, MX) else str(record)
            if host != ".":
                yield (_normal(host), _addresses(address))


def _key(mechanism: str, name: str, address: IPv4Address | IPv6Address) -> Key:
    match mechanism:
        case "include":
            return (name, "TXT")
        case "mx":
            return (name, "MX")
        case "ptr":
            return (reverse_name(address), "PTR")
        case "exists":
            # RFC 7208 section 5.7: A records, even of a client with an IPv6 address.
            return (name, "A")
        case _:
            return (name, _addresses(address))


def _addresses(address: IPv4Address | IPv6Address) -> RecordType:
    return "A" if address.version == 4 else "AAAA"


def _normal(name: str) -> str:
    return name.lower().removesuffix(".")
