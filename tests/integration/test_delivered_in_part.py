"""LMTP's mixed answers, and retries that come to other workers, machines and servers.

Each recipient has one copy, whoever is asked the next time.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections import Counter

import pytest

from preforkmx.testing import Client
from tests.integration.fleet import DEADLINE, happens
from tests.integration.mx import serving
from tests.unit.delivery.next_hops import backend

pytestmark = pytest.mark.integration

WORKERS = 4
NAMES = ("a@example.com", "b@example.com", "c@example.com")
FULL = "452 4.2.2 the mailbox is full"
#: So many tries, each on a connection of its own: that all of them come to the same of four
#: workers happens once in 10^6.
TRIES = 12


async def offer(port: int, text: str = "one", names=NAMES) -> int:
    """Send a message on a connection of its own, and return the reply's code."""
    async with await Client.connect(("127.0.0.1", port), seconds=30) as client:
        await client.hello()
        assert (await client.command("MAIL FROM:<sender@example.org>")).code == 250
        for name in names:
            assert (await client.command(f"RCPT TO:<{name}>")).code == 250
        assert (await client.command("DATA")).code == 354
        code = (await client.command(f"Subject: {text}\r\n\r\n{text}\r\n.")).code
        await client.command("QUIT")
        return code


async def workers_in(mx, messages: int) -> set[str]:
    """Return the workers that were offered these messages, by the log."""

    def offered() -> list[str]:
        lines = [line for line in mx.log.splitlines() if "event=transaction" in line]
        return [re.findall(r" worker=(\d+)", line)[0] for line in lines]

    await happens(lambda: len(offered()) >= messages, "every message is in the log")
    return set(offered())


@contextlib.asynccontextmanager
async def in_front(hop, directory, more=""):
    """A server whose next hop is served by this loop, which therefore must not stand still."""
    toml = f'[delivery]\nuse = "lmtp"\nservers = ["{hop.address}"]\n{more}'
    if "[state]" not in more:
        toml += f'[state]\ndeadline = "{DEADLINE}s"\n'
    server = serving(directory, toml, workers=WORKERS)
    mx = await asyncio.to_thread(server.__enter__)
    try:
        yield mx
    finally:
        await asyncio.to_thread(server.__exit__, None, None, None)


def copies(hop, text="one") -> Counter[str]:
    return Counter(name for name, message in hop.delivered if text.encode() in message)


def test_retries_that_come_to_other_workers_and_behind_a_restart_double_nothing(tmp_path):
    async def scenario():
        async with backend(lmtp=True) as hop:
            hop.answers[f".{NAMES[1]}"] = FULL
            async with in_front(hop, tmp_path) as mx:
                assert [await offer(mx.ports[0]) for _ in range(TRIES)] == [451] * TRIES
                assert len(await workers_in(mx, TRIES)) > 1
                assert copies(hop) == {NAMES[0]: 1, NAMES[2]: 1}
                assert await asyncio.to_thread(mx.stop) == 0
            async with in_front(hop, tmp_path) as mx:
                assert await offer(mx.ports[0]) == 451
                hop.answers.clear()
                assert await offer(mx.ports[0]) == 250
                assert copies(hop) == dict.fromkeys(NAMES, 1)
                # It is answered now: who sends it once more means it.
                assert await offer(mx.ports[0]) == 250
                assert copies(hop) == dict.fromkeys(NAMES, 2)
                assert await asyncio.to_thread(mx.stop) == 0

    asyncio.run(scenario())


def test_messages_that_come_again_at_the_same_time_double_nothing(tmp_path):
    async def comes_again(port, text):
        while await offer(port, text) == 451:
            pass

    async def scenario():
        async with backend(lmtp=True) as hop, in_front(hop, tmp_path) as mx:
            refusals = itertools.cycle((FULL, FULL, "250 2.0.0 taken"))
            hop.answers[f".{NAMES[1]}"] = lambda *_: next(refusals)
            async with asyncio.TaskGroup() as group:
                for number in range(20):
                    group.create_task(comes_again(mx.ports[0], f"number {number:03}"))
            for number in range(20):
                assert copies(hop, f"number {number:03}") == dict.fromkeys(NAMES, 1)
            assert len(await workers_in(mx, 20)) > 1

    asyncio.run(scenario())


def test_a_fleet_on_one_redis_doubles_nothing(tmp_path, redis):
    state = f'[state]\nurl = "redis://{redis.address}"\ndeadline = "{DEADLINE}s"\n'
    redis.ask("FLUSHALL")

    def connected() -> bool:
        return redis.ask("CLIENT", "LIST").count(" name=preforkmx ") >= 2 * WORKERS

    async def scenario():
        async with backend(lmtp=True) as hop:
            hop.answers[f".{NAMES[1]}"] = FULL
            async with (
                in_front(hop, tmp_path / "one", state) as one,
                in_front(hop, tmp_path / "other", state) as other,
            ):
                await happens(connected, "every worker has a connection to Redis")
                for mx in (one, other) * TRIES:
                    assert await offer(mx.ports[0]) == 451
                for mx in (one, other):
                    assert len(await workers_in(mx, TRIES)) > 1
                assert copies(hop) == {NAMES[0]: 1, NAMES[2]: 1}
                assert await asyncio.to_thread(one.stop) == 0
                hop.answers.clear()
                assert await offer(other.ports[0]) == 250
                assert copies(hop) == dict.fromkeys(NAMES, 1)
            # What is left are the marks of the pairs, each with an expiry.
            keys = redis.ask("KEYS", "*:d:*")
            assert len(keys) == 2
            assert all(redis.ask("PTTL", key) > 0 for key in keys)

    asyncio.run(scenario())
