"""A worker that leaves a unix socket which others read too; the test is the master and they."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from preforkmx.server import Server
from preforkmx.session.listener import Listener
from preforkmx.workers import process
from preforkmx.workers.channel import Channel
from preforkmx.workers.heartbeat import HeartbeatMemory
from preforkmx.workers.seat import WorkerSeat
from preforkmx.workers.worker import Worker, WorkerSetup

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUEUED = 40
"""More than an accept loop takes at a time."""


@dataclass
class Post:
    """A worker's place, its master's end of the channel, and the socket that all share."""

    setup: WorkerSetup
    channel: Channel
    sock: socket.socket
    path: str

    def connect(self) -> socket.socket:
        """Connect without waiting for anything; it is queued when this returns."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.setblocking(False)
        client.connect(self.path)
        return client

    def employ(self) -> asyncio.Task[int]:
        server = Server(hostname="mx.example.com")
        seat = WorkerSeat(slot=0, count=1, generation=1)
        return asyncio.ensure_future(asyncio.wait_for(Worker(self.setup, server, seat).run(), 15))

    def hears_ready(self) -> bool:
        return any(message["type"] == "ready" for message in self.channel.receive())


@pytest.fixture
def post(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Post]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process, "set_title", lambda title: None)
    earlier = signal.getsignal(signal.SIGTERM)
    ours, theirs = Channel.pair()
    memory = HeartbeatMemory(1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind("smtp.sock")
        sock.listen(128)
        setup = WorkerSetup(
            slot=0,
            count=2,
            generation=1,
            sockets=[(sock.dup(), Listener("unix:/run/smtp.sock"))],
            channel=theirs,
            cell=memory.cells[0],
            loop_factory=asyncio.new_event_loop,
            build_server=lambda seat: Server(hostname="mx.example.com"),
            drain_seconds=60.0,
            log_format="logfmt",
            log_level="info",
            master_pid=os.getppid(),
        )
        yield Post(setup, ours, sock, "smtp.sock")
        signal.signal(signal.SIGTERM, earlier)
        ours.close()
        theirs.close()
        memory.close()


async def first_line(client: socket.socket) -> bytes:
    reader, writer = await asyncio.open_unix_connection(sock=client)
    line = await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    await writer.wait_closed()
    return line


def test_a_worker_that_retires_takes_nothing_from_the_queue_any_more(
    post: Post, run: Any, until: Any
) -> None:
    async def scenario() -> None:
        worker = post.employ()
        await until(post.hears_ready)
        assert (await first_line(post.connect())).startswith(b"220 ")
        post.channel.post("retire", seconds=60.0)
        assert await worker == process.EXIT_ASKED
        with post.connect():
            post.sock.setblocking(False)
            served, _ = post.sock.accept()
            served.close()

    run(scenario())
    assert post.setup.sockets[0][0].fileno() < 0


def test_a_worker_that_drains_greets_all_that_are_queued(post: Post, run: Any, until: Any) -> None:
    async def scenario() -> None:
        worker = post.employ()
        await until(post.hears_ready)
        # Its loop runs none of this: it finds the order and the queue at the same time.
        clients = [post.connect() for _ in range(QUEUED)]
        post.channel.post("drain", seconds=60.0)
        lines = await asyncio.gather(*map(first_line, clients))
        assert all(line.startswith((b"220 ", b"421 ")) for line in lines)
        assert await worker == process.EXIT_ASKED

    run(scenario())
