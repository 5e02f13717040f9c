"""Who a session's client is, when a trusted proxy tells: PROXY and XCLIENT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preforkmx.model import Peer
    from preforkmx.protocol.proxy import ProxyInfo
    from preforkmx.protocol.xclient import XClient

# The attributes of XCLIENT, and the fields of XClient and Peer that hold them.
_FIELDS = {
    "NAME": ("name", "name"),
    "ADDR": ("address", "address"),
    "PORT": ("port", "port"),
    "LOGIN": ("login", "username"),
    "DESTADDR": ("destination_address", "server_address"),
    "DESTPORT": ("destination_port", "server_port"),
}


def proxied_peer(peer: Peer, info: ProxyInfo) -> Peer:
    """Return `peer` as the PROXY header says; without addresses the socket's own hold."""
    changes: dict[str, Any] = {"proxy": info}
    if info.source is not None:
        changes["address"], changes["port"] = info.source
    if info.destination is not None:
        changes["server_address"], changes["server_port"] = info.destination
    return peer._replace(**changes)


def forwarded_peer(peer: Peer, client: XClient) -> Peer:
    """Return `peer` as XCLIENT says.

    What the command does not give, or says that it does not know, stays as it was; but for
    the name and the user, which are nobody's then.
    """
    changes: dict[str, Any] = {"helo_name": "", "protocol": ""}
    for attribute, (said, field) in _FIELDS.items():
        if attribute not in client.given:
            continue
        value = getattr(client, said)
        if value is not None or attribute in ("NAME", "LOGIN"):
            changes[field] = value
    if client.address is not None and peer.is_health_check:
        # The balancer's own connection is exempt from limits; somebody it speaks for is not.
        assert peer.proxy is not None
        changes["proxy"] = peer.proxy._replace(local=False)
    return peer._replace(**changes)
