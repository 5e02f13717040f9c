"""Looks names up, 50 at a time: ``python -m … preforkmx|dnspython PORT COUNT``.

Prints the seconds and the seconds of CPU that fresh names took, then those of the same ones out
of the cache.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

import dns.asyncresolver
import dns.resolver
import uvloop

from preforkmx.dns import Resolver

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    LookUp = Callable[[str], Awaitable[object]]

TASKS = 50


async def _turn(look_up: LookUp, count: int, times: int) -> None:
    names = iter(range(count))

    async def task() -> None:
        for number in names:
            name = f"{number & 255}.{number >> 8 & 255}.0.192.zen.bench.example"
            for _ in range(times):
                await look_up(name)

    await asyncio.gather(*(task() for _ in range(TASKS)))


async def _measure(look_up: LookUp, count: int) -> None:
    await _turn(look_up, 200, 1)
    for times in (1, 10):
        seconds, cpu = time.perf_counter(), time.process_time()
        await _turn(look_up, count, times)
        cpu, seconds = time.process_time() - cpu, time.perf_counter() - seconds
        print(seconds / times, cpu / times)


async def preforkmx(port: int, count: int) -> None:
    async with Resolver([f"127.0.0.1:{port}"]) as resolver:

        async def look_up(name: str) -> None:
            await resolver.query(name, "A")

        await _measure(look_up, count)


async def dnspython(port: int, count: int) -> None:
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = ["127.0.0.1"]
    resolver.port = port
    resolver.cache = dns.resolver.LRUCache(count + 1000)

    async def look_up(name: str) -> None:
        await resolver.resolve(name, "A")

    await _measure(look_up, count)


if __name__ == "__main__":
    measured = {"preforkmx": preforkmx, "dnspython": dnspython}[sys.argv[1]]
    uvloop.run(measured(int(sys.argv[2]), int(sys.argv[3])))
