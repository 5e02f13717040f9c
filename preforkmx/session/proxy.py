"""Reading the PROXY header from a connection on which nothing else was read yet."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from preforkmx.errors import ProxyError
from preforkmx.protocol.proxy import HeaderReader

if TYPE_CHECKING:
    import asyncio

    from preforkmx.protocol.proxy import ProxyInfo


async def read_proxy_header(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> ProxyInfo:
    """Read the PROXY header that `sock` begins with, and not one octet more.

    A transport would read on into what follows, and no TLS layer takes octets back; so this
    is done on the raw socket, before there is one.

    There is no deadline here: the caller cancels. It closes the socket, and only after this
    has ended: until then its file descriptor is watched.

    :param sock: non-blocking, connected, without a transport.
    :raises ProxyError: there is no good header, or the peer closed before it was whole.
    """
    reader = HeaderReader()
    while (info := _read(sock, reader)) is None:
        await _readable(loop, sock.fileno())
    return info


def _read(sock: socket.socket, reader: HeaderReader) -> ProxyInfo | None:
    """Read what is there: what the header says, or None while it is not whole."""
    while True:
        try:
            octets = _receive(sock, reader)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            reason = f"the connection broke before its header was whole: {error.strerror}"
            raise ProxyError(reason, closed=True) from error
        if not octets:
            received = reader.received
            where = f"after {received} octets of its header" if received else "without a header"
            raise ProxyError(f"the peer closed {where}", closed=True)
        info = reader.feed(octets)
        if info is not None:
            return info


def _receive(sock: socket.socket, reader: HeaderReader) -> bytes:
    most, until_lf = reader.wanted
    if until_lf:
        peeked = sock.recv(most, socket.MSG_PEEK)
        # Without an LF all of it is the header's: taken now, it does not wake us again.
        most = peeked.find(b"\n") + 1 or len(peeked)
        if not most:
            return b""
    return sock.recv(most)


async def _readable(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, wake)
    try:
        await ready
    finally:
        loop.remove_reader(fd)
