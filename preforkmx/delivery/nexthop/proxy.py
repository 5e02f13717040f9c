"""How the next hop learns who the client is: PROXY version 2, and XCLIENT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.protocol import xtext
from preforkmx.protocol.proxy import V2_SIGNATURE

if TYPE_CHECKING:
    from preforkmx.delivery.nexthop.offers import Offers
    from preforkmx.model import Peer

_UNAVAILABLE = "[UNAVAILABLE]"


def proxy_header(peer: Peer | None) -> bytes:
    """Return the header of version 2 that names `peer`, or LOCAL: this server's own connection.

    The destination is the address that the client connected to where PROXY or XCLIENT told it,
    else the unspecified one.
    """
    if peer is None or peer.address is None:
        return V2_SIGNATURE + b"\x20\x00\x00\x00"
    source, destination = peer.address, peer.server_address
    six = source.version == 6
    if destination is None or (destination.version == 6) != six:
        to = bytes(16 if six else 4)
    else:
        to = destination.packed
    ports = peer.port.to_bytes(2, "big") + peer.server_port.to_bytes(2, "big")
    block = source.packed + to + ports
    return (
        V2_SIGNATURE + bytes((0x21, 0x21 if six else 0x11)) + len(block).to_bytes(2, "big") + block
    )


def xclient(peer: Peer, offers: Offers) -> str | None:
    """Return the XCLIENT command with the attributes that the server takes; None without any."""
    address = peer.address
    shown = _UNAVAILABLE
    if address is not None:
        shown = f"IPV6:{address}" if address.version == 6 else str(address)
    own = peer.server_address
    known = {
        "NAME": _encoded(peer.name),
        "ADDR": shown,
        "PORT": str(peer.port) if peer.port else _UNAVAILABLE,
        # Attributes know two protocols only.
        "PROTO": "SMTP" if peer.protocol == "SMTP" else "ESMTP",
        "HELO": _encoded(peer.helo_name or None),
        "LOGIN": _encoded(peer.username),
        "DESTADDR": _UNAVAILABLE
        if own is None
        else f"IPV6:{own}"
        if own.version == 6
        else str(own),
        "DESTPORT": str(peer.server_port) if peer.server_port else _UNAVAILABLE,
    }
    words = [f"{name}={known[name]}" for name in offers.arguments("XCLIENT") if name in known]
    return f"XCLIENT {' '.join(dict.fromkeys(words))}" if words else None


def _encoded(text: str | None) -> str:
    return _UNAVAILABLE if not text else xtext.encode(text.encode())
