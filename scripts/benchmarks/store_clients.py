"""``python -m benchmarks.store_clients WHO URL CONNECTIONS``: what Redis costs its client.

The operations of a connection (open, a known triplet, close), 20 connections at once, by the same
store: over preforkmx' own links, or over redis-py's pool. Prints seconds and seconds of CPU.
"""

from __future__ import annotations

import asyncio
import sys
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import redis.asyncio
import uvloop
from redis.exceptions import NoScriptError

from preforkmx.state.decisions import ConnectionLimits, GreylistSettings, GreylistState, Rate
from preforkmx.state.redis import nodes_for, parse
from preforkmx.state.redis.store import RedisStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from preforkmx.state.redis.script import Script, Word

AT_ONCE = 20
PREFIX = "clients"
LIMITS = ConnectionLimits("bench", host=Rate(1_000_000, 1.0, 1_000_000), concurrent=100_000)


class Pool:
    """redis-py's asyncio client with its plain pool, in the place of preforkmx' links."""

    def __init__(self, url: str) -> None:
        self._client = redis.asyncio.Redis.from_url(url)
        self._told: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        await self._client.ping()

    async def close(self) -> None:
        await asyncio.gather(*self._told)
        await self._client.aclose()

    async def run(self, script: Script, keys: Sequence[bytes], args: Sequence[Word]) -> Any:
        try:
            return await self._client.evalsha(script.sha1.decode(), len(keys), *keys, *args)
        except NoScriptError:
            return await self._client.eval(script.text, len(keys), *keys, *args)

    def tell(self, script: Script, keys: Sequence[bytes], args: Sequence[Word]) -> None:
        task = asyncio.create_task(self.run(script, keys, args))
        self._told.add(task)
        task.add_done_callback(self._told.discard)


async def main(who: str, url: str, connections: int) -> None:
    nodes = Pool(url) if who == "redis-py" else nodes_for(parse(url), deadline=10.0)
    store = RedisStore(nodes, prefix=PREFIX)  # type: ignore[arg-type]
    settings = GreylistSettings(delay=0.0)
    host, triplet = ip_address("192.0.2.1"), ("192.0.2.0/24", "a@client.example", "b@bench.example")
    await store.start()

    async def connect(some: range) -> None:
        for _ in some:
            admission = await store.open_connection(host, LIMITS)
            assert admission.lease is not None
            verdict = await store.greylist(*triplet, settings)
            assert verdict.state is GreylistState.KNOWN
            await store.close_connection(admission.lease)

    for _ in range(2):  # new, then passed
        await store.greylist(*triplet, settings)
    await connect(range(200))
    began, cpu = time.monotonic(), time.process_time()
    async with asyncio.TaskGroup() as group:
        for number in range(AT_ONCE):
            group.create_task(connect(range(number, connections, AT_ONCE)))
    print(time.monotonic() - began, time.process_time() - cpu)
    await store.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
