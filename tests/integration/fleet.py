"""Several masters on one Redis, and clients that come from many addresses of loopback."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.integration.mx import COMMAND, MX, serving
from tests.integration.processes import GONE, alive, children
from tests.integration.waiting import PATIENCE, PAUSE, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from tests.integration.redis_servers import Server

#: ``preforkmx`` whose leases in Redis live :data:`LEASE` seconds and not 90.
SHORT_LEASES = (sys.executable, str(Path(__file__).with_name("short_leases.py")))
LEASE = 3.0
#: How long a session waits for the store, in seconds. A machine without time must not miss it
#: where the store is there: then the next store would count.
DEADLINE = 1.0
#: What such a machine adds to a reply.
MARGIN = 1.0


@contextlib.contextmanager
def fleet(
    directory: Path,
    url: str,
    toml: str,
    *,
    masters: int = 2,
    workers: int = 4,
    command: tuple[str, ...] = COMMAND,
    servers: Sequence[Server] = (),
) -> Iterator[list[MX]]:
    """Serve the same configuration with several masters, whose state is at `url`.

    :param servers: the primaries there; every worker has a connection to each. A worker waits for
        none: where a machine has no time it would count by itself at first.
    """
    toml = f'{toml}\n[state]\nurl = "{url}"\ndeadline = "{DEADLINE}s"\n'
    toml += '[delivery]\nuse = "discard"\n'
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(
                serving(directory / f"mx{number}", toml, workers=workers, command=command)
            )
            for number in range(masters)
        ]
        for server in servers:
            until(
                lambda server=server: (
                    server.ask("CLIENT", "LIST").count(" name=preforkmx ") >= masters * workers
                ),
                "every worker has a connection to Redis",
            )
        yield running


def kill_all(mx: MX) -> None:
    """End a master and everything that it started at once, as a machine that loses its power."""
    pids = [mx.process.pid, *children(mx.process.pid)]
    for pid in pids:
        with contextlib.suppress(*GONE):
            os.kill(pid, signal.SIGKILL)
    mx.process.wait(PATIENCE)
    until(lambda: not any(map(alive, pids)), "the whole server is gone")


def every_host() -> Iterator[str]:
    """Yield addresses of loopback that nobody has used, each in a network of its own."""
    for high, low in itertools.product(range(16, 250), range(256)):
        yield f"127.{high}.{low}.1"


def hexed(host: str) -> str:
    """Return an IPv4 address as keys in Redis have it."""
    return bytes(map(int, host.split("."))).hex()


class Session:
    """One connection, and how long it waited for each of its replies."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.replies: list[tuple[str, float]] = []
        """Each reply, and the seconds from the command (or the connection) to it."""
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, port: int, host: str) -> Session:
        """Connect from `host`, and read the greeting."""
        session = cls(host)
        began = time.monotonic()
        session._reader, session._writer = await asyncio.open_connection(
            "127.0.0.1", port, local_addr=(host, 0)
        )
        await session._reply(began)
        return session

    @property
    def admitted(self) -> bool:
        return self.replies[0][0].startswith("220")

    async def say(self, line: str) -> str:
        """Send a command and return its reply; "" where the connection has ended."""
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            self._writer.write(line.encode() + b"\r\n")
        return await self._reply(began)

    async def _reply(self, began: float) -> str:
        line = b""
        with contextlib.suppress(ConnectionError):
            while (line := await self._reader.readline())[3:4] == b"-":
                pass
        reply = line.decode().rstrip()
        self.replies.append((reply, time.monotonic() - began))
        return reply

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def quit(self) -> None:
        """End the session; returns when the server has closed it."""
        await self.say("QUIT")
        with contextlib.suppress(ConnectionError):
            await self._reader.read()
        await self.close()


async def admitted(ports: Sequence[int], host: str, times: int, *, at_once: int = 8) -> Counter:
    """Connect so often from `host`, to all `ports` in turn; count who admitted it.

    :returns: how many each port admitted; under 0 how many were refused with 421. Another answer
        is an error.
    """
    turns = itertools.cycle(ports)
    counts: Counter[int] = Counter()

    async def connect(some: int) -> None:
        for _ in range(some):
            port = next(turns)
            session = await Session.open(port, host)
            if session.admitted:
                counts[port] += 1
                await session.quit()
            else:
                assert "(limit: connections)" in session.replies[0][0], session.replies
                counts[0] += 1
                await session.close()

    async with asyncio.TaskGroup() as group:
        for number in range(at_once):
            group.create_task(connect(len(range(number, times, at_once))))
    return counts


async def holding(ports: Sequence[int], host: str, wanted: int, *, tries: int) -> list[Session]:
    """Open connections until so many are admitted; they stay open.

    :param tries: how many connections it may take.
    """
    held: list[Session] = []
    for port in itertools.islice(itertools.cycle(ports), tries):
        session = await Session.open(port, host)
        if not session.admitted:
            assert "(limit: concurrent)" in session.replies[0][0]
            await session.close()
            await asyncio.sleep(PAUSE)
            continue
        held.append(session)
        if len(held) == wanted:
            break
    return held


async def close_all(sessions: Sequence[Session]) -> None:
    """End sessions."""
    await asyncio.gather(*(session.close() for session in sessions))


async def happens(condition: Callable[[], object], told: str, *, seconds: float = PATIENCE) -> None:
    """Wait for what other processes do while this one serves its tasks."""
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, f"did not happen in {seconds} s: {told}"
        await asyncio.sleep(PAUSE)


def leases(*servers: Server) -> int:
    """Return how many leases are in these servers, those that have expired as well."""
    return sum(
        server.ask("ZCARD", key) for server in servers for key in server.ask("KEYS", "*:l:*")
    )


@dataclass
class Visits:
    """What visitors saw: each of them delivers nothing and comes from a host of its own."""

    hosts: Iterator[str]
    sessions: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, str, int] = (0.0, "", 0)
    """The longest wait for a reply in seconds, the reply, and which of its session it was."""
    wrong: list[str] = field(default_factory=list)
    """Replies that nobody should get because of a store."""

    def note(self, session: Session) -> None:
        """Count what `session` saw."""
        self.sessions += 1
        for number, (reply, seconds) in enumerate(session.replies):
            self.codes[reply[:3]] += 1
            self.slowest = max(self.slowest, (seconds, reply, number))
            if reply[:1] not in {"2", "4"} or reply.startswith("421"):
                self.wrong.append(reply)

    async def more(self, count: int) -> None:
        """Wait until so many more have been there."""
        wanted = self.sessions + count
        await happens(lambda: self.sessions >= wanted, f"{count} more visitors come")


@contextlib.asynccontextmanager
async def visiting(
    ports: Sequence[int], hosts: Iterator[str], *, visitors: int = 6
) -> AsyncIterator[Visits]:
    """Let strangers come meanwhile: each says EHLO, MAIL, RCPT, QUIT."""
    visits = Visits(hosts)
    leaving = asyncio.Event()
    turns = itertools.cycle(ports)

    async def visit() -> None:
        while not leaving.is_set():
            session = await Session.open(next(turns), next(hosts))
            if session.admitted:
                await session.say("EHLO client.example")
                await session.say("MAIL FROM:<joe@example.org>")
                await session.say("RCPT TO:<box@example.com>")
                await session.quit()
            else:
                await session.close()
            visits.note(session)
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        for _ in range(visitors):
            group.create_task(visit())
        try:
            yield visits
        finally:
            leaving.set()
