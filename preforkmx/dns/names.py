"""Names: how one goes onto the wire, and those that addresses have."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import dns.exception
import dns.name

from preforkmx.errors import DNSNameError

IPAddress = IPv4Address | IPv6Address

_SHOWN = 80
"""Characters of a name that an error shows."""


def normal_name(name: str) -> str:
    """Return `name` as it is compared: in lower case, without a dot at its end."""
    return name.lower().removesuffix(".")


def wire_name(name: str) -> bytes:
    """Return the octets of `name`, a normal name (RFC 1035 section 3.1).

    Nothing in it is special but the dots: what a session or an SPF record made a name of goes
    onto the wire as it is.

    :raises DNSNameError: a label is empty or has more than 63 octets, the name has more than
        255 on the wire, or it is not ASCII: international names come as A-labels (RFC 5890).
    """
    try:
        labels = name.encode("ascii").split(b".")
        octets = dns.name.Name((*labels, b"")).to_wire()
    except (dns.exception.DNSException, UnicodeEncodeError):
        raise DNSNameError(f"{_shown(name)} is not a domain name") from None
    assert octets is not None  # it was not given a file
    return octets


def reverse_name(address: IPAddress) -> str:
    """Return the name of the PTR records of `address` (RFC 1035 section 3.5, RFC 3596)."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return list_name(address, "ip6.arpa")
    return list_name(address, "in-addr.arpa")


def list_name(address: IPAddress, zone: str) -> str:
    """Return the name of `address` in a DNSBL or DNSWL (RFC 5782 sections 2.1 and 2.4).

    An IPv4-mapped IPv6 address is what it maps.

    :param zone: the list's own name: ``"zen.example.org"``.
    """
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            return f"{'.'.join(reversed(address.packed.hex()))}.{zone}"
        address = address.ipv4_mapped
    four = address.packed
    return f"{four[3]}.{four[2]}.{four[1]}.{four[0]}.{zone}"


def _shown(name: str) -> str:
    shown = ascii(name)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
