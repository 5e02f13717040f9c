"""One question over TCP (RFC 7766), for answers that are too long for a datagram."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from preforkmx.dns.servers import Server

#: The most octets of an answer. The TXT records of a busy domain are a tenth of that together.
MAX_TCP_ANSWER: Final = 1 << 14


async def ask(server: Server, query: bytes) -> bytes:
    """Return what the server answers first. The caller sets a deadline: it cancels.

    :raises OSError: there is no connection, or it ended early, or the answer is too long.
    """
    loop = asyncio.get_running_loop()
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    with socket.socket(server.family, kind) as sock:
        await loop.sock_connect(sock, server.address)
        await loop.sock_sendall(sock, len(query).to_bytes(2) + query)
        length = int.from_bytes(await _read(sock, 2))
        if length > MAX_TCP_ANSWER:
            raise OSError(f"an answer of {length} octets is too long")
        return await _read(sock, length)


async def _read(sock: socket.socket, length: int) -> bytes:
    loop = asyncio.get_running_loop()
    octets = bytearray()
    while len(octets) < length:
        chunk = await loop.sock_recv(sock, length - len(octets))
        if not chunk:
            raise OSError("the connection ended before the answer did")
        octets += chunk
    return bytes(octets)
