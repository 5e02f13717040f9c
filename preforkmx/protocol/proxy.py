"""The PROXY protocol, versions 1 and 2: what a header says of the client."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address


class ProxyTLS(NamedTuple):
    """PP2_TYPE_SSL: the TLS layer between the client and the proxy."""

    client_ssl: bool
    """The client connected with TLS."""
    client_certificate: bool
    """The client presented a certificate, on this connection or in this TLS session."""
    verified: bool
    """The certificate was presented, and verified."""
    version: str | None = None
    common_name: str | None = None
    cipher: str | None = None
    signature_algorithm: str | None = None
    key_algorithm: str | None = None


class ProxyInfo(NamedTuple):
    """What a PROXY header said."""

    version: int
    """1 or 2."""
    local: bool = False
    """``LOCAL`` (version 2): the proxy's own connection, a health check."""
    source: tuple[IPv4Address | IPv6Address, int] | None = None
    """The client's address and port; None: the header named none (UNKNOWN, LOCAL, a unix
    socket), and the socket's own hold."""
    destination: tuple[IPv4Address | IPv6Address, int] | None = None
    """The address and port that the client connected to."""
    alpn: bytes | None = None
    authority: str | None = None
    unique_id: bytes | None = None
    tls: ProxyTLS | None = None
    tlvs: tuple[tuple[int, bytes], ...] = ()
    """Every TLV of version 2 in its order, raw."""
