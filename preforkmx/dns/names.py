"""Names: how one goes onto the wire, and those that addresses have."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from preforkmx.errors import DNSNameError

IPAddress = IPv4Address | IPv6Address

Labels = tuple[bytes, ...]
"""The labels of a name, the empty one of the root at its end."""

_MAX_LABEL = 63
_MAX_NAME = 255
"""Octets on the wire: one more than the text for the first label's length, and the root's."""
_LENGTHS = [bytes((length,)) for length in range(_MAX_LABEL + 1)]

_SHOWN = 80
"""Characters of a name that an error shows."""


def normal_name(name: str) -> str:
    """Return `name` as it is compared: in lower case, without a dot at its end."""
    return name.lower().removesuffix(".")


def labels_of(name: str) -> Labels:
    """Return the labels of `name`, a normal name, and the empty one at its end.

    Nothing in it is special but the dots: what a session or an SPF record made a name of goes
    onto the wire as it is.

    :raises DNSNameError: a label is empty or has more than 63 octets, the name has more than
        255 on the wire (RFC 1035 section 2.3.4), or it is not ASCII: international names come
        as A-labels (RFC 5890).
    """
    if name.isascii() and len(name) <= _MAX_NAME - 2:
        labels = name.encode().split(b".")
        if all(0 < len(label) <= _MAX_LABEL for label in labels):
            return (*labels, b"")
    raise DNSNameError(f"{_shown(name)} is not a domain name")


def wire_name(labels: Labels) -> bytes:
    """Return the octets of a name (RFC 1035 section 3.1)."""
    return b"".join([_LENGTHS[len(label)] + label for label in labels])


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
