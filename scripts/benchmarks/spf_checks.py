"""Checks clients with SPF, 20 at a time: ``python -m … PORT COUNT``.

Every domain has a record with eight includes, and the client is in none of them. Prints the
seconds and the seconds of CPU that fresh domains took, then those of the same ones again.
"""

from __future__ import annotations

import asyncio
import sys
import time
from ipaddress import ip_address

import uvloop

from preforkmx.dns import Resolver
from preforkmx.middleware.spf_check import check_host, load_pyspf

TASKS = 20
_CLIENT = ip_address("192.0.2.1")


async def _turn(resolver: Resolver, count: int) -> None:
    numbers = iter(range(count))

    async def task() -> None:
        for number in numbers:
            domain = f"d{number}.bench.example"
            found = await check_host(resolver, _CLIENT, "mail.bench.example", f"joe@{domain}")
            if (found.result, found.lookups) != ("softfail", 8):
                raise SystemExit(f"a check went wrong: {found}")

    await asyncio.gather(*(task() for _ in range(TASKS)))


async def main(port: int, count: int) -> None:
    load_pyspf()
    async with Resolver([f"127.0.0.1:{port}"], entries=count * 9 + 1000) as resolver:
        for _ in range(2):
            seconds, cpu = time.perf_counter(), time.process_time()
            await _turn(resolver, count)
            print(time.perf_counter() - seconds, time.process_time() - cpu)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
