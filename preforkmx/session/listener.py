"""A listener: one address that takes mail, and how it does."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Literal

TLSMode = Literal["starttls", "implicit", "off"]
ProtocolName = Literal["smtp", "lmtp"]
IPNetwork = IPv4Network | IPv6Network


MAX_UNIX_PATH = 107
"""Octets of a unix socket's path (unix(7): sun_path)."""


@dataclass(frozen=True, slots=True)
class Listener:
    """One address that takes mail.

    :param address: ``"HOST:PORT"`` with HOST an IPv4 address or an IPv6 address in brackets,
        port 0 being any free port; or ``"unix:/PATH"``.
    :param tls: ``"starttls"`` offers STARTTLS where the server has a TLS context,
        ``"implicit"`` begins with a TLS handshake (RFC 8314), ``"off"`` stays plain.
    :param backlog: the length of the accept queue, in connections.
    :param protocol: ``"smtp"``, or ``"lmtp"`` (RFC 2033).
    :param proxy_protocol: each connection begins with a PROXY header, version 1 or 2.
    :param proxy_from: whose headers are believed: networks of the socket's own addresses.
        Everybody's who may connect, on a unix socket.
    :param xclient_from: who may use XCLIENT: networks of the addresses after PROXY.
    """

    address: str
    tls: TLSMode = "starttls"
    backlog: int = 1024
    protocol: ProtocolName = "smtp"
    proxy_protocol: bool = False
    proxy_from: tuple[IPNetwork, ...] = ()
    xclient_from: tuple[IPNetwork, ...] = ()

    def __post_init__(self) -> None:
        if self.unix_path is None:
            split_address(self.address)
            if self.proxy_protocol and not self.proxy_from:
                raise ValueError(f"{self.address} expects PROXY headers: from whom? proxy_from=…")

    @property
    def unix_path(self) -> Path | None:
        """The path of ``"unix:/PATH"``; None for a TCP listener.

        :raises ValueError: the path is relative, or too long for a socket.
        """
        scheme, colon, path = self.address.partition(":")
        if scheme != "unix" or not colon:
            return None
        if not path.startswith("/") or "\0" in path or len(path.encode()) > MAX_UNIX_PATH:
            raise ValueError(
                f"{self.address!r} is not unix:/PATH with at most {MAX_UNIX_PATH} octets"
            )
        return Path(path)


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``"192.0.2.1:25"`` or ``"[2001:db8::1]:25"``.

    :raises ValueError: with a text for the operator when it is neither.
    """
    host, colon, port_text = address.rpartition(":")
    if not colon or not host:
        raise ValueError(f"{address!r} is not HOST:PORT")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        bracketed = True
    else:
        bracketed = False
    try:
        parsed = ip_address(host)
    except ValueError:
        raise ValueError(
            f"{host!r} is not an IP address (0.0.0.0 is every IPv4 address, [::] every IPv6 one)"
        ) from None
    if (parsed.version == 6) != bracketed:
        raise ValueError(f"write {address!r} as [ADDRESS]:PORT for IPv6, ADDRESS:PORT for IPv4")
    if not (port_text.isascii() and port_text.isdigit()) or int(port_text) > 65535:
        raise ValueError(f"{port_text!r} is not a port from 0 to 65535")
    return host, int(port_text)
