"""What is left behind by many reloads under load: descriptors, processes, memory.

``TEST_LEAK_RELOADS`` is how many are counted.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
from typing import TYPE_CHECKING

import pytest

from tests.integration.mx import MX, Generator, serving
from tests.integration.peers.certificate import tls_table
from tests.integration.processes import children, resident, steady_descriptors, title
from tests.integration.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

RELOADS = int(os.environ.get("TEST_LEAK_RELOADS", "12"))
WARM_UP = 5
"""Reloads after which everything has been used once."""
OCTETS_A_RELOAD = 500
"""What memory may grow by in each."""
OCTETS_ONCE = 80_000
"""By how much two processes of a kind may differ, and by pages that come now and then."""
KINDS = ["admin", "store", "worker 0", "worker 1"]


def configuration(folder: Path) -> str:
    """Everything that a reload makes anew: TLS, unix socket, admin process, middleware."""
    return f"""
[[listener]]
address = "127.0.0.1:0"
[[listener]]
address = "unix:{folder}/smtp.sock"
[admin]
address = "127.0.0.1:0"
control = "{folder}/control.sock"
[[middleware]]
use = "rate_limit"
connections = "1000000/hour"
{tls_table(folder)}"""


def processes(mx: MX) -> dict[str, int]:
    """Return the process ids by what the title says first: ``worker 0``, ``store``."""
    found = {}
    for pid in children(mx.process.pid):
        kind, *more = title(pid).removeprefix("preforkmx: ").split()
        found[f"{kind} {more[0]}" if kind == "worker" else kind] = pid
    return found


def settled(mx: MX) -> bool:
    """Whether all who retired are gone, and each place has somebody who is ready."""
    return (
        len(children(mx.process.pid)) == len(KINDS)
        and sorted(processes(mx)) == KINDS
        and [worker["state"] for worker in mx.status()["workers"]] == ["ready", "ready"]
    )


def holdings(mx: MX) -> dict[str, list[str]]:
    """Return the descriptors of the master and of each of its children."""
    pids = {"master": mx.process.pid, **processes(mx)}
    return {kind: steady_descriptors(pid) for kind, pid in sorted(pids.items())}


def slope(values: list[int]) -> float:
    """Return how much more each value is than the one before it.

    It is the median over pairs that are a quarter of all apart, which one step, as an arena of
    the allocator is, does not move: only a third of the pairs have it between them.
    """
    apart = len(values) // 4
    pairs = zip(values, values[apart:], strict=False)
    return statistics.median(later - earlier for earlier, later in pairs) / apart


def test_many_reloads_under_load_leave_nothing_behind(tmp_path):
    memory: dict[str, list[int]] = {kind: [] for kind in ("master", *KINDS)}
    with serving(tmp_path, configuration(tmp_path)) as mx:

        def once() -> None:
            assert mx.command("reload")["ok"], mx.log
            until(lambda: settled(mx), mx)
            for kind, pid in {"master": mx.process.pid, **processes(mx)}.items():
                memory[kind].append(resident(pid))

        async def reloads(number: int) -> Generator:
            generator = Generator(mx.ports[0], sessions=4, messages=2)
            async with generator.sending():
                for _ in range(number):
                    await generator.acknowledged(4)
                    await asyncio.to_thread(once)
            assert generator.load.failures == 0, generator.load
            return generator

        asyncio.run(reloads(WARM_UP))
        until(lambda: mx.status()["totals"]["connections"] and settled(mx), mx)
        before = holdings(mx)
        for values in memory.values():
            values.clear()
        generator = asyncio.run(reloads(RELOADS))
        until(lambda: settled(mx), mx)
        after = holdings(mx)
        grown = {kind: slope(values) for kind, values in memory.items()}
        sys.stdout.write(
            f"\n{RELOADS} reloads, {len(generator.load.acknowledged)} transactions; descriptors "
            f"{ {kind: len(held) for kind, held in after.items()} }; octets a reload "
            f"{ {kind: round(octets) for kind, octets in grown.items()} }\n"
        )
        assert after == before
        assert max(grown.values()) < OCTETS_A_RELOAD + OCTETS_ONCE / RELOADS, memory
        assert mx.status()["generation"] == 1 + WARM_UP + RELOADS
