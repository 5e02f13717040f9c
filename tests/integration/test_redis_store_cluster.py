"""The scripts on a real cluster: keys of one decision in one slot, and every limit exact."""

from __future__ import annotations

import asyncio
from collections import Counter
from ipaddress import ip_address

import pytest

from preforkmx.state.decisions import (
    ConnectionLimits,
    GreylistSettings,
    GreylistState,
    Rate,
    Spent,
    running,
)
from preforkmx.state.redis import nodes_for, parse
from preforkmx.state.redis.store import RedisStore
from tests.integration.redis_servers import redis_cluster

pytestmark = pytest.mark.integration

HOURLY = Rate(1, 3600.0, 20)
HOSTS = [ip_address(f"192.0.{number}.1") for number in range(20)] + [
    ip_address(f"2001:db8:{number}::1") for number in range(20)
]
LIMITS = ConnectionLimits(
    "{limits}",
    host=HOURLY,
    network=HOURLY,
    concurrent=20,
    messages=HOURLY,
    recipients=HOURLY,
    auth_failures=HOURLY,
    octets=HOURLY,
    errors=HOURLY,
)


@pytest.fixture(scope="module")
def cluster():
    with redis_cluster() as cluster:
        yield cluster


@pytest.fixture
def run_on_two(cluster):
    """Run a scenario, ``async def (one, other)``, with two stores on the cluster."""

    def run(scenario):
        async def main():
            nodes = [nodes_for(parse(cluster.url), deadline=10.0) for _ in range(2)]
            async with running(RedisStore(nodes[0])) as one, running(RedisStore(nodes[1])) as other:
                await scenario(one, other)

        for primary in cluster.primaries():
            primary.ask("FLUSHALL")
        asyncio.run(main())

    return run


def test_limits_are_exact_on_a_cluster(cluster, run_on_two):
    async def scenario(one, other):
        asked = [(store, host) for host in HOSTS for store in (one, other) * 15]
        for store in (one, other):  # every node has the script
            for host in HOSTS:
                unlimited = ConnectionLimits("none")
                assert (await store.open_connection(host, unlimited)).admitted
        admissions = await asyncio.gather(
            *(store.open_connection(host, LIMITS) for store, host in asked)
        )
        admitted = Counter(
            host
            for (_, host), admission in zip(asked, admissions, strict=True)
            if admission.admitted
        )
        assert admitted == dict.fromkeys(HOSTS, 20)
        # They are all over the cluster.
        assert all(primary.ask("DBSIZE") >= 9 for primary in cluster.primaries())
        # A decision that has keys in several slots would be refused, as would a key that is
        # not named; here is every script.
        one.renew(float("inf"))
        for admission in admissions:
            if (lease := admission.lease) is not None:
                settlement = await lease.store.settle(lease, Spent(messages=1), Spent(messages=1))
                assert settlement.limit == "messages"
                await lease.store.close_connection(lease, Spent(errors=1))
        for host in HOSTS:
            await asyncio.gather(*(store.take(HOURLY, str(host)) for store in (one, other)))
        refused = await one.open_connection(HOSTS[0], LIMITS)
        assert refused.limit in {"connections", "network", "messages", "errors"}

    run_on_two(scenario)


def test_marks_are_known_to_everybody_on_a_cluster(cluster, run_on_two):
    async def scenario(one, other):
        marks = [bytes([sender]) * 4 + bytes([n]) * 16 for sender in range(60) for n in range(9)]
        await one.remember(marks, 600.0)
        assert await other.known(marks) == set(marks)
        assert all(primary.ask("DBSIZE") for primary in cluster.primaries())
        await other.forget(marks[:90])
        assert await one.known(marks) == set(marks[90:])

    run_on_two(scenario)


def test_a_triplet_passes_on_a_cluster(run_on_two):
    async def scenario(one, other):
        settings = GreylistSettings(delay=0.0)
        for number in range(20):
            triplet = (f"192.0.{number}.0/24", "a@example.com", "b@example.net")
            states = [
                (await store.greylist(*triplet, settings)).state for store in (one, other, one)
            ]
            assert states == [GreylistState.NEW, GreylistState.PASSED, GreylistState.KNOWN]

    run_on_two(scenario)
