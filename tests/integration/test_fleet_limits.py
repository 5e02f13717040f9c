"""Two masters, eight workers, one Redis: a limit is one number, whoever is killed or reloaded."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time

import pytest

from tests.integration.fleet import (
    LEASE,
    SHORT_LEASES,
    admitted,
    close_all,
    fleet,
    happens,
    holding,
    kill_all,
    leases,
)

pytestmark = pytest.mark.integration

HOST = "127.0.1.1"
#: Seconds that a machine without time may take longer.
MARGIN = 5.0

LIMITS = """
[[middleware]]
use = "rate_limit"
connections = "60/day"
allow = ["127.2.0.0/16"]

[[middleware]]
use = "rate_limit"
concurrent = 16
allow = ["127.0.0.0/16"]
"""
COUNTED = "127.2.1.1"


@pytest.fixture
def empty(redis):
    redis.ask("FLUSHALL")
    return redis


def workers_in(mx):
    """Return the workers that refused somebody, by the log."""
    lines = [line for line in mx.log.splitlines() if "event=refused" in line]
    return {re.findall(r' worker="?([^" ]+)', line)[0] for line in lines}


def test_eight_workers_of_two_masters_admit_exactly_the_limit(tmp_path, empty):
    async def scenario(ports):
        counts = await admitted(ports, HOST, 200)
        assert counts[ports[0]] + counts[ports[1]] == 60
        assert min(counts[port] for port in ports) > 0
        held = await holding(ports, COUNTED, 17, tries=17)
        assert len(held) == 16
        assert leases(empty) == 16
        await close_all(held)
        await happens(lambda: not leases(empty), "the leases are given back")

    with fleet(tmp_path, f"redis://{empty.address}", LIMITS, servers=[empty]) as masters:
        asyncio.run(scenario([mx.ports[0] for mx in masters]))
        for mx in masters:
            assert mx.stop() == 0
            # It was no single worker's limit, and nobody decided by a share.
            assert len(workers_in(mx)) == 4
            assert "away" not in mx.log


def test_places_of_a_killed_worker_and_of_a_killed_server_come_back_within_the_lease(
    tmp_path, empty
):
    async def fills(ports, wanted):
        """Take what is free; return it, and how long it took."""
        began = time.monotonic()
        held = []
        while len(held) < wanted:
            assert time.monotonic() < began + LEASE + MARGIN, f"{len(held)} of {wanted}"
            held += await holding(ports, COUNTED, wanted - len(held), tries=8)
        assert not await holding(ports, COUNTED, 1, tries=8), "one too many"
        return held, time.monotonic() - began

    async def scenario(masters):
        one, other = masters
        ports = [mx.ports[0] for mx in masters]
        held = await holding(ports, COUNTED, 16, tries=16)
        assert not await holding(ports, COUNTED, 1, tries=8)

        def sessions(mx):
            return [worker["sessions"] for worker in mx.status()["workers"]]

        await happens(lambda: sum(sessions(one)) == 8, "status shows every session")
        most = max(range(4), key=sessions(one).__getitem__)
        lost = sessions(one)[most]
        os.kill(one.pids()[most], signal.SIGKILL)
        # Nothing told Redis: the places are taken until the leases are over.
        assert leases(empty) == 16
        more, took = await fills(ports, lost)
        assert took > LEASE - 1.5 * LEASE / 3

        at_other = len(held) // 2 + sum(
            session._writer.get_extra_info("peername")[1] == ports[1] for session in more
        )
        await asyncio.to_thread(kill_all, other)
        # Those of the one that lives are older than a lease by now: they were renewed.
        last, _ = await fills(ports[:1], at_other)
        assert leases(empty) == 16
        await close_all([*held, *more, *last])
        await happens(lambda: not leases(empty), "the leases are given back")

    url = f"redis://{empty.address}"
    with fleet(tmp_path, url, LIMITS, command=SHORT_LEASES, servers=[empty]) as masters:
        asyncio.run(scenario(masters))


def test_a_rolling_reload_of_one_master_forgets_no_limit_and_leaks_no_lease(tmp_path, empty):
    async def scenario(masters):
        ports = [mx.ports[0] for mx in masters]
        reloading, other = masters
        held = await holding(ports, COUNTED, 16, tries=16)
        before = await admitted(ports, HOST, 20)
        assert not before[0]
        # One goes on asking while the workers change.
        reload = asyncio.create_task(asyncio.to_thread(reloading.run, "reload"))
        during = []
        while not reload.done():
            during.append(await admitted(ports, HOST, 4, at_once=2))
        assert (await reload).returncode == 0, (await reload).stderr
        after = await admitted(ports, HOST, 60)
        assert sum(sum(each.values()) - each[0] for each in (before, *during, after)) == 60
        assert not await holding(ports, COUNTED, 1, tries=8), "the old workers' sessions count"
        at_old = [one for one in held if one._writer.get_extra_info("peername")[1] == ports[0]]
        await close_all(at_old)
        began = time.monotonic()
        again = []
        while len(again) < len(at_old) and time.monotonic() < began + MARGIN:
            again += await holding(ports, COUNTED, len(at_old) - len(again), tries=8)
        assert len(again) == len(at_old)
        assert not await holding(ports, COUNTED, 1, tries=8)
        await close_all([*held, *again])
        await happens(lambda: not leases(empty), "the leases are given back")
        assert {worker["generation"] for worker in other.status()["workers"]} == {1}

    with fleet(tmp_path, f"redis://{empty.address}", LIMITS, workers=2, servers=[empty]) as masters:
        asyncio.run(scenario(masters))


def test_a_reload_moves_the_state_to_redis_and_back_and_leaves_nothing_behind(tmp_path, empty):
    def moves(mx, url):
        text = mx.config.read_text()
        mx.config.write_text(re.sub(r'url = ".*"', f'url = "{url}"', text))
        result = mx.run("reload")
        assert result.returncode == 0, result.stderr
        store = mx.status()["store"]
        assert (store["url"], store["state"]) == (url, "ready")

    async def scenario(mx):
        ports = mx.ports
        url = f"redis://{empty.address}"
        # Each store counts for itself: a move begins with a whole burst.
        assert (await admitted(ports, HOST, 80))[0] == 20
        held = await holding(ports, COUNTED, 16, tries=16)
        assert not empty.ask("DBSIZE")

        await asyncio.to_thread(moves, mx, url)
        assert (await admitted(ports, HOST, 80))[0] == 20
        held += await holding(ports, COUNTED, 16, tries=16)
        assert len(held) == 32
        assert leases(empty) == 16

        await asyncio.to_thread(moves, mx, "embedded:")
        # The store process lived through it all: it has forgotten nothing.
        assert (await admitted(ports, HOST, 20))[0] == 20
        # The second reload ended what was idle since before the first: its places are free.
        held += await holding(ports, COUNTED, 17, tries=17)
        assert len(held) == 48
        await close_all(held)
        await happens(lambda: not leases(empty), "the leases are given back")

    with fleet(tmp_path, "embedded:", LIMITS, masters=1, workers=2) as (mx,):
        asyncio.run(scenario(mx))
        assert mx.stop() == 0
