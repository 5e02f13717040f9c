"""Store and admin process: a "ready" that the channel did not take at once still goes out."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from preforkmx.workers.admin import AdminProcess, AdminSetup
from preforkmx.workers.channel import Channel
from preforkmx.workers.heartbeat import BEAT_SECONDS, Heart, HeartbeatMemory
from preforkmx.workers.store import StoreProcess, StoreSetup


def admin_process(channel, cell, sock):
    return AdminProcess(
        AdminSetup(
            sock=sock,
            channel=channel,
            cell=cell,
            loop_factory=asyncio.new_event_loop,
            log_format="logfmt",
            log_level="info",
        )
    )


def store_process(channel, cell, sock):
    return StoreProcess(
        StoreSetup(
            sock=sock,
            database=Path("/none"),
            lifeline=-1,
            channel=channel,
            cell=cell,
            loop_factory=asyncio.new_event_loop,
            drain_seconds=1.0,
            log_format="logfmt",
            log_level="info",
        )
    )


@pytest.mark.parametrize("make", [admin_process, store_process])
def test_what_the_channel_did_not_take_goes_out_with_a_later_beat(run, until, make):
    """Nothing else is said by them for long, and who is not ready in 60 s is killed."""
    ours, theirs = Channel.pair()
    memory = HeartbeatMemory(1)
    said = []

    def hears_ready():
        said.extend(message["type"] for message in ours.receive())
        return "ready" in said

    async def test():
        with suppress(BlockingIOError):
            while True:
                theirs._socket.send(b'{"type": "filler"}')
        with socket.create_server(("127.0.0.1", 0)) as sock:
            process = make(theirs, memory.cells[0], sock)
            process._serves()
            Heart(asyncio.get_running_loop(), memory.cells[0], process._vitals).start()
            while ours.receive():
                pass
            await until(hears_ready)

    assert BEAT_SECONDS < 1
    run(test())
    ours.close()
    theirs.close()
    memory.close()
