"""A listener: one address that takes mail, and how it does."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

TLSMode = Literal["starttls", "implicit", "off"]


@dataclass(frozen=True, slots=True)
class Listener:
    """One address that takes mail.

    :param address: ``"HOST:PORT"`` with HOST an IPv4 address or an IPv6 address in brackets;
        port 0 is any free port.
    :param tls: ``"starttls"`` offers STARTTLS where the server has a TLS context,
        ``"implicit"`` begins with a TLS handshake (RFC 8314), ``"off"`` stays plain.
    :param backlog: the length of the accept queue, in connections.
    """

    address: str
    tls: TLSMode = "starttls"
    backlog: int = 1024

    def __post_init__(self) -> None:
        split_address(self.address)


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
