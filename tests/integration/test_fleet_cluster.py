"""Two masters on a Redis cluster of six: limits are exact, and a dead primary is felt by its slots."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from ipaddress import ip_address

import pytest

from preforkmx.state.networks import host_octets
from preforkmx.state.redis.keys import Keys
from preforkmx.state.redis.slots import slot_of
from tests.integration.fleet import (
    DEADLINE,
    MARGIN,
    admitted,
    close_all,
    every_host,
    fleet,
    happens,
    hexed,
    holding,
    leases,
    visiting,
)
from tests.integration.redis_servers import redis_cluster

pytestmark = pytest.mark.integration

LIMIT = 20

LIMITS = f"""
[[middleware]]
use = "rate_limit"
connections = "{LIMIT}/day"
allow = ["127.2.0.0/16"]

[[middleware]]
use = "rate_limit"
concurrent = 12
allow = [
    "127.0.0.0/15", "127.4.0.0/14", "127.8.0.0/13", "127.16.0.0/12", "127.32.0.0/11",
    "127.64.0.0/10", "127.128.0.0/9",
]

[[middleware]]
use = "greylist"
exempt_private = false
"""


def slot(host: str) -> int:
    """Return the slot of a host's connections."""
    return slot_of(Keys("preforkmx").connection(b"", host_octets(ip_address(host)))[0])


@pytest.fixture(scope="module")
def cluster():
    with redis_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def masters(cluster, tmp_path_factory):
    with fleet(
        tmp_path_factory.mktemp("fleet"), cluster.url, LIMITS, servers=cluster.primaries()
    ) as masters:
        yield masters


def test_limits_of_two_masters_on_a_cluster_are_exact(cluster, masters):
    async def scenario(ports):
        hosts = every_host()
        nodes = set()
        while len(nodes) < 3:
            host = next(hosts)
            owner = cluster.owner(slot(host))
            if owner in nodes:
                continue
            nodes.add(owner)
            counts = await admitted(ports, host, 3 * LIMIT)
            assert counts[ports[0]] + counts[ports[1]] == LIMIT
            assert min(counts[port] for port in ports) > 0
            assert owner.ask("KEYS", f"*:h:*:{hexed(host)}")
            held = await holding(ports, f"127.2.{len(nodes)}.1", 13, tries=13)
            assert len(held) == 12
            await close_all(held)
        await happens(lambda: not leases(*cluster.primaries()), "the leases are given back")

    asyncio.run(scenario([mx.ports[0] for mx in masters]))


def test_the_state_in_a_cluster_is_shown_forgotten_and_allowed(masters):
    def asked(*arguments):
        result = masters[0].run("state", *arguments, "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    host, ports = "127.99.1.1", [mx.ports[0] for mx in masters]
    asyncio.run(admitted(ports, host, 3))
    shown = asked("show", host)["rate_limit"]
    assert shown[0]["limits"]["connections"]["left"] == LIMIT - 3
    assert shown[1]["exempt"]
    assert asked("forget", host)["known"]
    assert asked("show", host)["rate_limit"][0]["limits"]["connections"]["left"] == LIMIT
    # 256 networks, each of them in a slot of its own.
    assert len(asked("allow", "127.99.0.0/16")["allowed"]) == 256
    assert asked("show", "127.99.255.1")["greylist"][0]["allowed"]


def test_while_a_cluster_fails_over_healthy_slots_go_on_and_nobody_waits(cluster, masters):
    ports = [mx.ports[0] for mx in masters]
    hosts = every_host()
    # Networks of this test alone.
    for _ in range(2000):
        next(hosts)
    victim = cluster.primaries()[0]
    slots = {
        number
        for first, last, primary, *_ in victim.ask("CLUSTER", "SLOTS")
        if primary[1] == victim.port
        for number in range(first, last + 1)
    }
    healthy = (host for host in hosts if slot(host) not in slots)
    lost = (host for host in every_host() if slot(host) in slots)
    lost = itertools.islice(lost, 1000, None)

    async def counted(host, node):
        """See that a host is limited to the connection, by this node."""
        counts = await admitted(ports, host, 2 * LIMIT)
        assert counts[ports[0]] + counts[ports[1]] == LIMIT
        assert await asyncio.to_thread(node.ask, "KEYS", f"*:h:*:{hexed(host)}")

    async def scenario():
        mixed = (next(each) for each in itertools.cycle((healthy, lost)))
        survivors = [node for node in cluster.primaries() if node is not victim]
        async with visiting(ports, mixed) as visits:
            await visits.more(30)
            victim.kill()
            began = time.monotonic()
            over = asyncio.create_task(
                happens(
                    lambda: cluster.owner(next(iter(slots)), seen_by=survivors[0]) is not victim,
                    "a replica has its slots",
                )
            )
            during = 0
            while not over.done():
                host = next(healthy)
                await counted(host, cluster.owner(slot(host), seen_by=survivors[0]))
                during += 1
            await over
            took = time.monotonic() - began
            # With the slots of the dead one the others did not stand still.
            assert during >= 3
            heir = cluster.owner(next(iter(slots)), seen_by=survivors[0])

            # Every worker has learnt of it: no host is admitted by each master on its own.
            async with asyncio.timeout(15):
                while (await admitted(ports, next(lost), 2 * LIMIT))[0] < LIMIT:
                    pass
            await visits.more(30)
        await counted(next(lost), heir)
        assert not visits.wrong
        assert visits.slowest[0] < DEADLINE + MARGIN, visits.slowest
        print(f"failover in {took:.1f} s, {during} hosts counted meanwhile", end=" ")  # noqa: T201
        for mx in masters:
            # An operation that its slot alone cannot answer opens no breaker.
            assert mx.status()["store"]["state"] == "ready"
            assert "each worker" not in mx.log
            assert mx.log.count(f"the Redis node {victim.address} is away") == 4

    asyncio.run(scenario())
