"""The life of a worker inside its loop: a real server and sockets; the test is the master."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from preforkmx.middleware.base import Middleware
from preforkmx.server import Server
from preforkmx.session.listener import Listener
from preforkmx.workers import process
from preforkmx.workers import worker as worker_module
from preforkmx.workers.channel import Channel
from preforkmx.workers.heartbeat import HeartbeatMemory
from preforkmx.workers.seat import WorkerSeat
from preforkmx.workers.worker import Worker, WorkerSetup

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from preforkmx.middleware.base import Lifespan
    from preforkmx.workers.channel import Message


class Office:
    """What a master gives a worker, and hears of it."""

    def __init__(self) -> None:
        self.ours, theirs = Channel.pair()
        self.memory = HeartbeatMemory(1)
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.sock.getsockname()[1]
        self.titles: list[str] = []
        self.heard: list[Message] = []
        self.seat = WorkerSeat(slot=2, count=4, generation=1)
        self.setup = WorkerSetup(
            slot=2,
            count=4,
            generation=1,
            sockets=[(self.sock, Listener(f"127.0.0.1:{self.port}"))],
            channel=theirs,
            cell=self.memory.cells[0],
            loop_factory=asyncio.new_event_loop,
            build_server=lambda seat: Server(hostname="mx.example.com"),
            drain_seconds=60.0,
            log_format="logfmt",
            log_level="info",
            master_pid=os.getppid(),
        )

    def employ(self, lifespan: Lifespan | None = None) -> asyncio.Task[int]:
        """Let a worker run; it must be gone in 15 s."""
        server = Server(hostname="mx.example.com")
        server.use(Middleware(lifespan=lifespan))
        return asyncio.ensure_future(
            asyncio.wait_for(Worker(self.setup, server, self.seat).run(), 15)
        )

    async def hear(self, kind: str) -> Message:
        """Wait for a message of this kind."""
        async with asyncio.timeout(10):
            while True:
                self.heard += self.ours.receive()
                for message in self.heard:
                    if message["type"] == kind:
                        return message
                await asyncio.sleep(0.01)

    def counted(self, name: str) -> int:
        """Return the sum of what was reported."""
        while messages := self.ours.receive():
            self.heard += messages
        stats = [message["counters"] for message in self.heard if message["type"] == "stats"]
        return sum(counters.get(name, 0) for counters in stats)

    async def client(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, and go past EHLO."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        assert (await reader.readline()).startswith(b"220 ")
        writer.write(b"EHLO client.example.net\r\n")
        while not (await reader.readline()).startswith(b"250 "):
            pass
        return reader, writer

    def close(self) -> None:
        """Close everything."""
        self.ours.close()
        self.setup.channel.close()
        self.sock.close()
        self.memory.close()


@pytest.fixture
def office(monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    office = Office()
    monkeypatch.setattr(process, "set_title", office.titles.append)
    earlier = signal.getsignal(signal.SIGTERM)
    yield office
    signal.signal(signal.SIGTERM, earlier)
    office.close()


async def leave(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


def test_it_serves_tells_what_it_counted_and_drains(office: Office, run: Any) -> None:
    async def scenario() -> None:
        worker = office.employ()
        await office.hear("ready")
        reader, writer = await office.client()
        writer.write(b"MAIL FROM:<>\r\n")
        assert (await reader.readline()).startswith(b"250 ")
        office.ours.post("drain", seconds=60.0)
        writer.write(b"RSET\r\n")
        assert (await reader.readline()).startswith(b"250 ")
        assert (await reader.readline()).startswith(b"421 4.3.2 ")
        await leave(writer)
        assert await worker == process.EXIT_ASKED

    run(scenario())
    assert office.counted("connections") == 1
    assert office.counted("transactions") == 1
    assert office.titles[0] == "worker 2 ready (0 sessions)"
    assert "worker 2 draining (1 sessions)" in office.titles
    assert office.sock.fileno() < 0
    assert office.setup.cell.read().beat > 0


def test_the_end_of_the_channel_means_that_the_master_is_gone(
    office: Office, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        worker = office.employ()
        await office.hear("ready")
        reader, writer = await office.client()
        office.ours.close()
        assert (await reader.readline()).startswith(b"421 4.3.2 ")
        await leave(writer)
        assert await worker == process.EXIT_ASKED

    run(scenario())
    assert "the master is gone" in caplog.text
    assert office.sock.fileno() < 0


def test_who_is_queued_when_the_master_dies_is_greeted(office: Office, run: Any) -> None:
    async def scenario() -> None:
        worker = office.employ()
        await office.hear("ready")
        # Both happen before the worker's loop has its turn.
        clients = [socket.create_connection(("127.0.0.1", office.port)) for _ in range(30)]
        office.ours.close()
        for client in clients:
            reader, writer = await asyncio.open_connection(sock=client)
            assert (await reader.readline()).startswith((b"220 ", b"421 "))
            await leave(writer)
        assert await worker == process.EXIT_ASKED

    run(scenario())


def test_sigterm_from_others_than_a_dying_master_asks_for_a_replacement(
    office: Office, run: Any
) -> None:
    async def scenario() -> None:
        worker = office.employ()
        await office.hear("ready")
        os.kill(os.getpid(), signal.SIGTERM)
        await office.hear("replace")
        reader, writer = await office.client()
        writer.write(b"NOOP\r\n")
        assert (await reader.readline()).startswith(b"250 ")
        await leave(writer)
        office.ours.post("stop")
        assert await worker == process.EXIT_ASKED

    run(scenario())


def test_a_later_order_only_makes_it_faster(office: Office, run: Any) -> None:
    async def scenario() -> None:
        worker = office.employ()
        await office.hear("ready")
        reader, writer = await office.client()
        office.ours.post("retire", seconds=60.0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readline(), 0.1)
        office.ours.post("drain", seconds=60.0)
        assert (await reader.readline()).startswith(b"421 4.3.2 ")
        await leave(writer)
        assert await worker == process.EXIT_ASKED

    run(scenario())


def test_a_gentler_order_after_a_drain_is_too_late(office: Office, run: Any) -> None:
    async def scenario() -> None:
        worker = office.employ()
        await office.hear("ready")
        reader, writer = await office.client()
        writer.write(b"MAIL FROM:<>\r\n")
        assert (await reader.readline()).startswith(b"250 ")
        office.ours.post("drain", seconds=0.1)
        office.ours.post("retire", seconds=60.0)
        assert (await reader.readline()).startswith(b"421 4.3.2 ")
        await leave(writer)
        assert await worker == process.EXIT_ASKED

    run(scenario())


def test_a_drain_ends_even_when_a_client_never_does(
    office: Office, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "ABORT_SECONDS", 0.1)

    async def scenario() -> None:
        worker = office.employ()
        await office.hear("ready")
        reader, writer = await office.client()
        writer.write(b"MAIL FROM:<>\r\nRCPT TO:<a@example.com>\r\nDATA\r\n")
        while not (await reader.readline()).startswith(b"354 "):
            pass
        office.ours.post("drain", seconds=0.1)
        assert await worker == process.EXIT_ASKED
        await leave(writer)

    run(scenario())
    assert office.counted("messages") == 0


def test_a_lifespan_that_fails_is_a_boot_failure_with_its_reason(
    office: Office, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        raise OSError("no database")
        yield

    async def scenario() -> None:
        assert await office.employ(lifespan) == process.EXIT_BOOT
        message = await office.hear("failed")
        assert message["problems"][0].startswith("OSError: no database (")

    with caplog.at_level(logging.CRITICAL):
        run(scenario())


@pytest.mark.parametrize("order", ["stop", "drain", "retire", "end"])
def test_an_order_ends_a_worker_that_still_boots(office: Office, run: Any, order: str) -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        seen.append("entered")
        try:
            await asyncio.Event().wait()
            yield
        finally:
            seen.append("left")

    async def scenario() -> None:
        worker = office.employ(lifespan)
        await asyncio.sleep(0.05)
        if order == "end":
            office.ours.close()
        else:
            office.ours.post(order, seconds=60.0)
        assert await worker == process.EXIT_ASKED
        assert not [message for message in office.heard if message["type"] == "ready"]

    run(scenario())
    assert seen == ["entered", "left"]
    assert office.sock.fileno() < 0


def test_a_lifespan_that_does_not_close_is_left_behind(
    office: Office, run: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_module, "LIFESPAN_SECONDS", 0.05)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        yield
        await asyncio.Event().wait()

    async def scenario() -> None:
        worker = office.employ(lifespan)
        await office.hear("ready")
        office.ours.post("drain", seconds=60.0)
        assert await worker == process.EXIT_ASKED

    run(scenario())
    assert "did not close within" in caplog.text


def test_a_master_that_does_not_read_neither_stops_a_worker_nor_loses_its_counters(
    office: Office, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "REPORT_SECONDS", 0.01)

    async def scenario() -> None:
        worker = office.employ()
        await office.hear("ready")
        with suppress(BlockingIOError):
            while True:
                office.setup.channel._socket.send(b'{"type": "filler"}')
        for _ in range(3):
            reader, writer = await office.client()
            writer.write(b"QUIT\r\n")
            assert (await reader.readline()).startswith(b"221 ")
            await leave(writer)
            await asyncio.sleep(0.05)
        assert office.counted("connections") == 0
        office.ours.post("drain", seconds=60.0)
        while not worker.done():
            office.counted("connections")
            await asyncio.sleep(0.01)
        assert await worker == process.EXIT_ASKED

    run(scenario())
    assert office.counted("connections") == 3
