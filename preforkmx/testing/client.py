"""A client for tests that are coroutines: it says what it is told, right or wrong.

The standard library's smtplib blocks, so it cannot talk to a server in its own loop; and it
speaks correct SMTP, which not every test wants.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable
    from types import TracebackType

CLOSE_SECONDS = 1.0
"""How long :meth:`Client.close` waits for the server to close too."""


class Reply(NamedTuple):
    """One reply of the server."""

    code: int
    lines: tuple[str, ...]
    """The text of each line, without code and separator; enhanced status codes are in it."""

    @property
    def text(self) -> str:
        """The lines as one text."""
        return "\n".join(self.lines)


class Client:
    """A connection to an SMTP server.

    ::

        async with running(server) as address, await Client.connect(address) as client:
            assert (await client.reply()).code == 220
            assert (await client.command("EHLO client.example")).code == 250

    Every wait ends with a TimeoutError after `seconds`, so that no test hangs.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, seconds: float = 10.0
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.seconds = seconds

    @classmethod
    async def connect(
        cls,
        address: tuple[str, int],
        *,
        tls: ssl.SSLContext | None = None,
        server_hostname: str = "localhost",
        seconds: float = 10.0,
    ) -> Self:
        """Connect, with a TLS handshake where `tls` is given, and read nothing yet."""
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(
                *address, ssl=tls, server_hostname=server_hostname if tls is not None else None
            )
        return cls(reader, writer, seconds=seconds)

    async def send(self, octets: bytes) -> None:
        """Send octets as they are."""
        self.writer.write(octets)
        async with asyncio.timeout(self.seconds):
            await self.writer.drain()

    async def reply(self) -> Reply:
        """Read one reply.

        :raises EOFError: the server closed instead.
        :raises ValueError: what it sent is no reply.
        """
        lines = []
        async with asyncio.timeout(self.seconds):
            while True:
                line = await self.reader.readuntil(b"\r\n")
                lines.append(line[4:-2].decode("ascii"))
                if not line[:3].isdigit() or line[3:4] not in (b" ", b"-"):
                    raise ValueError(f"{line!r} is no line of a reply")
                if line[3:4] == b" ":
                    return Reply(int(line[:3]), tuple(lines))

    async def replies(self, count: int) -> list[int]:
        """Read `count` replies; return their codes."""
        return [(await self.reply()).code for _ in range(count)]

    async def command(self, line: str) -> Reply:
        """Send `line` and CRLF, and read one reply."""
        await self.send(line.encode() + b"\r\n")
        return await self.reply()

    async def hello(self, name: str = "client.example") -> Reply:
        """Read the greeting, say EHLO and return the reply to it."""
        greeting = await self.reply()
        return greeting if greeting.code != 220 else await self.command(f"EHLO {name}")

    async def deliver(
        self, octets: bytes, *, sender: str = "", recipients: Iterable[str] = ("postmaster",)
    ) -> Reply:
        """Send a message after EHLO; return the reply to it, or the first refusal before it.

        :param octets: the message with CRLF line ends; transparency dots are added.
        """
        reply = await self.command(f"MAIL FROM:<{sender}>")
        for recipient in recipients:
            if reply.code == 250:
                reply = await self.command(f"RCPT TO:<{recipient}>")
        if reply.code == 250:
            reply = await self.command("DATA")
        if reply.code != 354:
            return reply
        end = b".\r\n" if octets.endswith(b"\r\n") or not octets else b"\r\n.\r\n"
        stuffed = (b"\r\n" + octets).replace(b"\r\n.", b"\r\n..")[2:]
        await self.send(stuffed + end)
        return await self.reply()

    async def starttls(
        self, context: ssl.SSLContext, *, server_hostname: str = "localhost"
    ) -> Reply:
        """Say STARTTLS, and shake hands if the reply is 220."""
        reply = await self.command("STARTTLS")
        if reply.code == 220:
            await self.handshake(context, server_hostname=server_hostname)
        return reply

    async def handshake(
        self, context: ssl.SSLContext, *, server_hostname: str = "localhost"
    ) -> None:
        """Begin a TLS handshake here and now."""
        async with asyncio.timeout(self.seconds):
            await self.writer.start_tls(context, server_hostname=server_hostname)

    async def rest(self) -> bytes:
        """Read until the server closes; return what came.

        :raises ConnectionResetError: it did not close but reset the connection.
        """
        async with asyncio.timeout(self.seconds):
            return await self.reader.read()

    def reset(self) -> None:
        """Break the connection with a reset (RST): whatever is on its way is lost.

        Where the server has closed already it only closes.
        """
        sock: socket.socket | None = self.writer.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        """Close without QUIT. A second call does nothing."""
        self.writer.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.writer.wait_closed()
        except (OSError, TimeoutError):
            self.writer.transport.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            await self.close()
