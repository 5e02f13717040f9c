"""What makes two tries the same triplet: network, reverse path and forward path, normalised.

A retry often comes from a neighbour of the first host, and its reverse path may carry a new
serial number, signature or time stamp. Everything here takes away what changes between tries.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import TYPE_CHECKING

from preforkmx.state.networks import host_octets

if TYPE_CHECKING:
    from collections.abc import Iterable

    from preforkmx.model import IPAddress

#: Keys that are longer are hashed: no client decides how long a key is.
_LONGEST_KEY = 64

# draft-levine-smtp-batv: prvs=KDDDSSSSSS=mailbox, and the form that Barracuda writes.
_BATV = re.compile(r"(?:prvs=[0-9a-z]{6,16}|btv1==[^=]+=)=(?P<mailbox>.+)", re.IGNORECASE)
# SRS0=hash=stamp=domain=mailbox; SRS1=hash=forwarder==hash=stamp=domain=mailbox. The
# character behind SRS0 and SRS1 may be "-" or "+" too.
_SRS0 = re.compile(r"SRS0[=+-][^=]+=[^=]+=(?P<path>[^=]+=.+)", re.IGNORECASE)
_SRS1 = re.compile(
    r"SRS1[=+-][^=]+=(?P<forwarder>[^=]+)=[=+-][^=]+=[^=]+=(?P<path>[^=]+=.+)", re.IGNORECASE
)
_DIGITS = re.compile(r"[0-9]+")


def network_of(address: IPAddress) -> str:
    """Return the network that greylisting knows `address` by: IPv4 /24, IPv6 /64.

    An IPv4-mapped IPv6 address counts as IPv4.
    """
    host = host_octets(address)
    if len(host) == 4:
        return f"{host[0]}.{host[1]}.{host[2]}.0/24"
    return f"{host.hex(':', 2)}::/64"


def normalise_sender(sender: str) -> str:
    """Return a reverse path without what changes from try to try.

    The domain in lower case, signatures (BATV), extensions (``+ext``), the hash and time stamp
    of SRS taken away, and runs of digits in the local part as one ``#``. The null reverse path
    stays ``""``.
    """
    local, at, domain = sender.rpartition("@")
    if not at:
        local, domain = sender, ""
    if batv := _BATV.fullmatch(local):
        local = batv["mailbox"]
    if srs := _SRS0.fullmatch(local):
        local = f"SRS={srs['path']}"
    elif srs := _SRS1.fullmatch(local):
        local = f"SRS={srs['forwarder']}={srs['path']}"
    plus = local.find("+", 1)
    if plus > 0:
        local = local[:plus]
    return f"{_DIGITS.sub('#', local)}{at}{domain.lower()}"


def normalise_recipient(recipient: str) -> str:
    """Return a forward path as greylisting compares it: in lower case."""
    return recipient.lower()


def recipients_of(addresses: Iterable[str]) -> str:
    """Return the forward path that stands for all of `addresses`, in whatever order.

    A single one stands for itself; several for a hash of them, which is as short.
    """
    paths = sorted(normalise_recipient(address) for address in addresses)
    if len(paths) == 1:
        return paths[0]
    octets = "\n".join(paths).encode("utf-8", "surrogatepass")
    return blake2b(octets, digest_size=16).hexdigest()


def short_key(text: str) -> bytes:
    """Return `text` as a store's key: itself when it is short, else NUL and a hash of it."""
    # surrogatepass: whatever str comes, there is a key, and different ones for different str.
    octets = text.encode("utf-8", "surrogatepass")
    if len(octets) <= _LONGEST_KEY and not octets.startswith(b"\0"):
        return octets
    return b"\0" + blake2b(octets, digest_size=16).digest()


def triplet_key(network: str, sender: str, recipient: str) -> bytes:
    """Return the 16 octets that stand for a triplet; no address can be read from them."""
    # NUL is in no path that the protocol core lets through, so no two triplets look alike.
    text = f"{network}\0{sender}\0{recipient}"
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
