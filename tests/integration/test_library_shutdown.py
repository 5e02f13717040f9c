"""A server inside somebody's own program: its shutdown is the drain that a worker has.

TEST_DRAINS is how many times it is shut down under load; scripts may make it more.
"""

from __future__ import annotations

import asyncio
import os

import pytest
import uvloop

from preforkmx import Server
from preforkmx.testing import Recorder
from tests.integration.mx import Generator

pytestmark = pytest.mark.integration

DRAINS = int(os.environ.get("TEST_DRAINS", "3"))


async def drained_under_load() -> tuple[Generator, Recorder]:
    """Shut a server down while clients in another thread connect without a pause."""
    recorder = Recorder()
    server = Server(hostname="mx.example.com", handler=recorder, max_sessions=1000)
    server.listen("127.0.0.1:0")
    async with server:
        generator = Generator(server.addresses[0][1], sessions=20, messages=1)
        loading = asyncio.create_task(asyncio.to_thread(asyncio.run, generator.run()))
        while len(generator.load.acknowledged) < 50:
            assert not loading.done()
            await asyncio.sleep(0.01)
        async with asyncio.timeout(20):
            await server.shutdown(10)
        while not generator.load.refused:
            assert not loading.done()
            await asyncio.sleep(0.01)
        # Its own loop looks at it after each connection that is refused.
        generator.stopping.set()
        async with asyncio.timeout(20):
            await loading
    return generator, recorder


@pytest.mark.parametrize(
    "loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
def test_a_shutdown_under_load_resets_nobody_and_loses_nothing(loop_factory):
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        for _ in range(DRAINS):
            generator, recorder = runner.run(drained_under_load())
            load = generator.load
            assert (load.resets, load.lost) == (0, 0)
            assert load.refused > 0
            stored = [
                message.octets.rpartition(b"message ")[2].strip().decode()
                for message in recorder.messages
            ]
            assert sorted(stored) == sorted(load.acknowledged)
