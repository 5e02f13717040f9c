"""Which resolvers there are: those of the configuration, or the system's."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

#: The most resolvers that are used.
MAX_SERVERS: Final = 8
RESOLV_CONF: Final = Path("/etc/resolv.conf")
LOCAL: Final = "127.0.0.1:53"
"""Who is asked when nobody is named (resolv.conf(5))."""
_MAX_FILE: Final = 1 << 16


class Server(NamedTuple):
    """The address of a resolver."""

    text: str
    """``"192.0.2.1:53"``, ``"[2001:db8::1]:53"``."""
    family: socket.AddressFamily
    address: Any
    """What socket.connect takes."""


def parse_server(text: str) -> Server:
    """Return the server at ``"192.0.2.1:53"`` or ``"[2001:db8::1]:53"``.

    :raises ValueError: it is neither; the text is for the operator.
    """
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ip_address(host[1:-1] if bracketed else host)
        if (address.version == 6) != bracketed or not (port.isascii() and port.isdigit()):
            raise ValueError
        if not 1 <= int(port) <= 65535:
            raise ValueError
        # Numbers only: nothing is looked up. An IPv6 address may name its interface.
        found = socket.getaddrinfo(
            str(address),
            int(port),
            type=socket.SOCK_DGRAM,
            flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
        )
    except (ValueError, OSError):
        raise ValueError(f"{text!r} is no address such as 127.0.0.1:53 or [::1]:53") from None
    family, _, _, _, where = found[0]
    return Server(text, family, where)


def system_servers(file: Path = RESOLV_CONF) -> tuple[Server, ...]:
    """Return the servers of resolv.conf(5), or :data:`LOCAL` where it names none that is one."""
    try:
        with file.open("rb") as opened:
            lines = opened.read(_MAX_FILE).decode("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    return tuple(_named(lines))[:MAX_SERVERS] or (parse_server(LOCAL),)


def _named(lines: Iterable[str]) -> Iterable[Server]:
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            host = words[1]
            try:
                yield parse_server(f"[{host}]:53" if ":" in host else f"{host}:53")
            except ValueError:
                continue
