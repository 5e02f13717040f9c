"""Which host and which network an address belongs to, and sets of networks."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from preforkmx.model import IPAddress

IPNetwork = IPv4Network | IPv6Network


def host_octets(address: IPAddress) -> bytes:
    """Return the part of `address` that stands for one host.

    That is all 4 octets of an IPv4 address and the first 8 of an IPv6 one: a /64 is what one
    customer has at least, so its addresses count as one. An IPv4-mapped IPv6 address
    (RFC 4291 section 2.5.5.2) counts as IPv4.
    """
    if isinstance(address, IPv4Address):
        return address.packed
    if int(address) >> 32 == 0xFFFF:
        return address.packed[12:]
    return address.packed[:8]


def network_octets(host: bytes) -> bytes:
    """Return the network of `host` (:func:`host_octets`): IPv4 /24, IPv6 /48."""
    return host[:3] if len(host) == 4 else host[:6]


class NetworkSet:
    """Networks to look addresses up in: one dictionary look-up for each prefix length in use.

    IPv4-mapped IPv6 addresses count as IPv4.
    """

    __slots__ = ("_v4", "_v6")

    def __init__(self, networks: Iterable[IPNetwork] = ()) -> None:
        v4: dict[int, set[int]] = {}
        v6: dict[int, set[int]] = {}
        for network in networks:
            table = v4 if isinstance(network, IPv4Network) else v6
            shift = network.max_prefixlen - network.prefixlen
            table.setdefault(shift, set()).add(int(network.network_address) >> shift)
        self._v4 = tuple((shift, frozenset(prefixes)) for shift, prefixes in v4.items())
        self._v6 = tuple((shift, frozenset(prefixes)) for shift, prefixes in v6.items())

    def __contains__(self, address: IPAddress) -> bool:
        number = int(address)
        if isinstance(address, IPv4Address):
            table = self._v4
        elif number >> 32 == 0xFFFF:
            table, number = self._v4, number & 0xFFFFFFFF
        else:
            table = self._v6
        return any(number >> shift in prefixes for shift, prefixes in table)

    def __bool__(self) -> bool:
        return bool(self._v4 or self._v6)


#: Networks that only a site's own hosts have: RFC 1918, RFC 4193, loopback and link-local.
#: Unlike :attr:`ipaddress.IPv4Address.is_private` without the documentation networks and the
#: like, which no neighbour can have.
PRIVATE = NetworkSet(
    ip_network(text)
    for text in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)
