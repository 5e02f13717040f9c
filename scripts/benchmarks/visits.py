"""The load that smtp-source cannot make: a sender of its own for each connection."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING, cast

import uvloop

from benchmarks.server import Failed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LIMIT = 120
"""Seconds after which a load is given up."""
RECIPIENT = "joe@bench.example"
_BODY = b"Subject: bench\r\n\r\n" + (b"x" * 78 + b"\r\n") * 12 + b".\r\n"


def senders(count: int, first: int = 0) -> list[str]:
    """Return reverse paths that a greylist tells apart; digits are all the same to it."""
    names = itertools.product("abcdefghijklmnopqrstuvwxyz", repeat=4)
    some = itertools.islice(names, first, first + count)
    return [f"{''.join(name)}@client.example" for name in some]


class _Visit(asyncio.Protocol):
    """One connection: it sends a message, or is refused by the greeting."""

    def __init__(self, sender: str, *, refused: bool) -> None:
        self._steps: Iterator[tuple[bytes, bytes]] = iter(
            (
                (b"220", b"EHLO client.example\r\n"),
                (b"250", f"MAIL FROM:<{sender}>\r\n".encode()),
                (b"250", f"RCPT TO:<{RECIPIENT}>\r\n".encode()),
                (b"250", b"DATA\r\n"),
                (b"354", _BODY),
                (b"250", b"QUIT\r\n"),
                (b"221", b""),
            )
            if not refused
            else ((b"4", b""),)
        )
        self._heard = b""
        self._transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._heard += data
        last = self._heard[:-2].rpartition(b"\r\n")[2]
        if not self._heard.endswith(b"\r\n") or last[3:4] != b" ":
            return
        self._heard = b""
        expected, says = next(self._steps, (b"none", b""))
        if not last.startswith(expected):
            self._fail(f"{last.decode(errors='replace')!r} in place of {expected.decode()}")
        elif self._transport is not None:
            if says:
                self._transport.write(says)
            else:
                self._transport.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        if not self.ended.done():
            if next(self._steps, None) is None:
                self.ended.set_result(None)
            else:
                self._fail("the connection ended too early")

    def _fail(self, why: str) -> None:
        if not self.ended.done():
            self.ended.set_exception(Failed(f"a visitor: {why}"))
        if self._transport is not None:
            self._transport.abort()


def visit(port: int, paths: Sequence[str], *, sessions: int, refused: bool = False) -> float:
    """Make one connection for each reverse path, and return the seconds that it took.

    :param refused: every connection is refused, by its greeting.
    :raises Failed: something else was answered, or it takes too long.
    """

    async def everybody() -> None:
        left = iter(paths)
        loop = asyncio.get_running_loop()

        async def one_after_the_other() -> None:
            for sender in left:
                _, protocol = await loop.create_connection(
                    lambda sender=sender: _Visit(sender, refused=refused), "127.0.0.1", port
                )
                await protocol.ended

        try:
            async with asyncio.timeout(LIMIT), asyncio.TaskGroup() as group:
                for _ in range(sessions):
                    group.create_task(one_after_the_other())
        except* (OSError, Failed) as errors:
            raise Failed(str(errors.exceptions[0])) from None

    began = time.monotonic()
    try:
        uvloop.run(everybody())
    except TimeoutError:
        raise Failed(f"the visitors were not done after {LIMIT} s") from None
    except BaseExceptionGroup as errors:
        raise Failed(str(errors.exceptions[0])) from None
    return time.monotonic() - began
