"""The load: smtp-source, and connections that stay idle."""

from __future__ import annotations

import asyncio
import resource
import ssl
import subprocess
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from benchmarks.peers import program
from benchmarks.server import Failed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIMIT = 120
"""Seconds after which one run of smtp-source is given up."""
_AT_ONCE = 50


def smtp_source(port: int, *, messages: int, sessions: int, size: int, kept: bool) -> float:
    """Send messages, and return the seconds that it took.

    :param size: octets of a message's body.
    :param kept: one connection for many messages, instead of one for each.
    :raises Failed: when the server refused anything, or after :data:`LIMIT` seconds.
    """
    command = [
        *(program("smtp-source"), "-4", "-s", str(sessions), "-m", str(messages)),
        *("-l", str(size), "-f", "from@client.example", "-t", "joe@bench.example"),
        *("-M", "client.example", *(["-d"] if kept else []), f"127.0.0.1:{port}"),
    ]
    began = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        raise Failed(f"smtp-source was not done after {LIMIT} s") from None
    seconds = time.monotonic() - began
    if done.returncode != 0:
        raise Failed(f"smtp-source: {done.stderr.strip()[-500:]}")
    return seconds


def may_open(count: int) -> int:
    """Raise the limit of open files, for this process and the servers it starts.

    :returns: how many connections are possible then, at most `count`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 500
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(count, soft - 500)


@asynccontextmanager
async def idle_connections(port: int, count: int, *, tls: bool) -> AsyncIterator[None]:
    """Hold `count` connections that have said EHLO and heard the answer."""
    context = None
    if tls:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    turn = asyncio.Semaphore(_AT_ONCE)
    writers: list[asyncio.StreamWriter] = []

    async def connect() -> None:
        async with turn, asyncio.timeout(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            writers.append(writer)
            await _greet(reader, writer)

    try:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    group.create_task(connect())
        except* (OSError, TimeoutError) as errors:
            raise Failed(f"an idle connection: {errors.exceptions[0]!r}") from None
        yield
    finally:
        for writer in writers:
            writer.transport.abort()
        for writer in writers:
            with suppress(OSError, ssl.SSLError):
                await writer.wait_closed()


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if not (await reader.readline()).startswith(b"220"):
        raise Failed("no greeting")
    writer.write(b"EHLO client.example\r\n")
    while line := await reader.readline():
        if line.startswith(b"250 "):
            return
    raise Failed("no answer to EHLO")
