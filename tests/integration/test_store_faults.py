"""Every fault of a Redis under load: it costs nobody a wait, a 5xx or a limit."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families as prometheus

from tests.integration.fleet import (
    DEADLINE,
    MARGIN,
    admitted,
    every_host,
    fleet,
    happens,
    hexed,
    visiting,
)
from tests.integration.redis_servers import redis_server, sentinel_trio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.mx import MX
    from tests.integration.redis_servers import Server

pytestmark = pytest.mark.integration

WORKERS = 2
#: Connections of a host; nothing of it is earned back while a test runs.
LIMIT = 10
#: How many visitors come while the store is away, and after it is back.
VISITS = int(os.environ.get("TEST_FAULT_VISITS", "40"))

AWAY, OUTAGES, FALLBACKS = (
    f"preforkmx_store_{name}" for name in ("away", "outages_total", "fallbacks_total")
)

SITE = f"""
[[middleware]]
use = "rate_limit"
connections = "{LIMIT}/day"
concurrent = 100
messages = "1000/day"

[[middleware]]
use = "greylist"
exempt_private = false

[admin]
address = "127.0.0.1:0"
control = "CONTROL"
"""


@dataclass
class Watched:
    """A running server, and what it tells of its store."""

    mx: MX
    hosts: Iterator[str]

    @property
    def port(self) -> int:
        return self.mx.ports[0]

    def store(self) -> dict:
        """Return what ``preforkmx status --json`` says of the store."""
        return self.mx.status()["store"]

    def is_away(self) -> bool:
        store = self.store()
        return (store["state"], store["away"]) == ("away", WORKERS)

    def is_back(self) -> bool:
        store = self.store()
        return (store["state"], store["away"]) == ("ready", 0)

    def lines(self) -> tuple[int, int]:
        """Return how many lines of the log say that Redis is away, and that it is back."""
        said = re.findall(r"Redis at \S+ is (away|back)", self.mx.log)
        return said.count("away"), said.count("back")

    def metrics(self) -> dict[str, float]:
        """Return the samples about the store."""
        address = self.mx.status()["admin"]["address"]
        connection = http.client.HTTPConnection(address, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        return {
            sample.name: sample.value
            for family in prometheus(text)
            for sample in family.samples
            if sample.name.startswith("preforkmx_store") and not sample.labels
        }

    async def limits(self) -> str:
        """See that a host is limited to the connection; return the host."""
        host = next(self.hosts)
        counts = await admitted([self.port], host, 3 * LIMIT, at_once=4)
        assert counts[self.port] == LIMIT
        return host


def counts(server: Server, host: str) -> bool:
    """Whether this Redis has counted the connections of `host`."""
    return bool(server.ask("KEYS", f"*:h:*:{hexed(host)}"))


@contextlib.contextmanager
def watched(folder, url, server) -> Iterator[Watched]:
    toml = SITE.replace("CONTROL", str(folder / "mx0" / "control.sock"))
    with fleet(folder, url, toml, masters=1, workers=WORKERS, servers=[server]) as (mx,):
        yield Watched(mx, every_host())


@pytest.fixture(scope="module")
def server():
    """A Redis that is this module's own: it is killed, and is nobody's any more."""
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def site(server, tmp_path_factory):
    with watched(tmp_path_factory.mktemp("faults"), f"redis://{server.address}", server) as site:
        yield site


async def through(site, breaks, mends, *, redis, seconds=20.0):
    """Let Redis break and come back under load, and see that nobody notices.

    :param mends: None where it comes back by itself, sooner than can be looked at all.
    :param redis: the server that is to count afterwards.
    """
    lines, metrics = site.lines(), site.metrics()
    async with visiting([site.port], site.hosts) as visits:
        await visits.more(VISITS // 2)
        # The greylist defers strangers as long as its store is there.
        assert visits.codes["451"]
        breaks()
        await happens(site.is_away, "status says that the store is away")
        if mends is not None:
            visits.codes.clear()
            meanwhile = await site.limits()
            await visits.more(VISITS)
            # on_store_failure = "accept": strangers pass.
            assert not visits.codes["451"]
            await happens(lambda: site.metrics()[AWAY] == WORKERS, "the metrics say so too")
            # Here and in no thread: a server ends with the one that started it.
            mends()
        await happens(site.is_back, "status says that the store is back", seconds=seconds)
        visits.codes.clear()
        after = await site.limits()
        await visits.more(VISITS // 2)
        assert visits.codes["451"]
    assert not visits.wrong
    assert visits.slowest[0] < DEADLINE + MARGIN, visits.slowest
    assert counts(redis, after)
    if mends is not None:
        assert not counts(redis, meanwhile)
    away, back = (now - then for now, then in zip(site.lines(), lines, strict=True))
    # One line each way, of each worker.
    assert (away, back) == (WORKERS, WORKERS)
    wanted = {AWAY: 0, OUTAGES: metrics[OUTAGES] + WORKERS}
    await happens(
        lambda: wanted.items() <= site.metrics().items(), "the metrics say that it was away"
    )
    assert site.metrics()[FALLBACKS] > metrics[FALLBACKS] + (VISITS if mends is not None else 0)
    print(f"{visits.sessions} sessions, slowest reply {visits.slowest[0] * 1e3:.0f} ms", end=" ")  # noqa: T201


def kills(server):
    return server.kill, server.start


def stops(server):
    return server.stand_still, server.go_on


def pauses_writes(server):
    return (
        lambda: server.ask("CLIENT", "PAUSE", 60_000, "WRITE"),
        lambda: server.ask("CLIENT", "UNPAUSE"),
    )


def is_full(server):
    return (
        lambda: server.ask("CONFIG", "SET", "maxmemory", "1mb"),
        lambda: server.ask("CONFIG", "SET", "maxmemory", "512mb"),
    )


def wants_a_replica(server):
    return (
        lambda: server.ask("CONFIG", "SET", "min-replicas-to-write", 1),
        lambda: server.ask("CONFIG", "SET", "min-replicas-to-write", 0),
    )


def becomes_a_replica(server):
    return (
        # Of nobody: of a port where nobody answers.
        lambda: server.ask("REPLICAOF", "127.0.0.1", 1),
        lambda: server.ask("REPLICAOF", "NO", "ONE"),
    )


@pytest.mark.parametrize(
    "fault", [stops, pauses_writes, is_full, wants_a_replica, becomes_a_replica, kills]
)
def test_a_redis_that_fails_costs_nobody_a_wait_and_limits_go_on(site, server, fault):
    asyncio.run(through(site, *fault(server), redis=server))


def test_scripts_that_are_gone_are_sent_again_and_nobody_notices(site, server):
    async def scenario():
        lines = site.lines()
        async with visiting([site.port], site.hosts) as visits:
            for _ in range(3):
                await visits.more(VISITS // 2)
                await asyncio.to_thread(server.ask, "SCRIPT", "FLUSH")
                host = await site.limits()
                assert counts(server, host)
        assert not visits.wrong
        assert visits.codes["451"] == visits.sessions, "no operation was left without an answer"
        assert visits.slowest[0] < DEADLINE + MARGIN, visits.slowest
        assert site.lines() == lines

    asyncio.run(scenario())


def test_a_sentinel_failover_costs_nobody_a_wait_and_the_new_primary_counts(tmp_path):
    with sentinel_trio() as trio, watched(tmp_path, trio.url, trio.primary) as site:
        asyncio.run(through(site, trio.primary.kill, None, redis=trio.replica))
        assert trio.primary_port() == trio.replica.port
        shown = json.loads(site.mx.run("state", "show", "127.16.0.1", "--json").stdout)
        assert shown["rate_limit"][0]["limits"]["connections"]["of"] == LIMIT


def test_status_says_it_as_json_and_for_people(site, server):
    assert json.loads(site.mx.run("status", "--json").stdout)["store"]["state"] == "ready"
    server.stand_still()
    try:

        async def somebody_asks():
            async with visiting([site.port], site.hosts):
                await happens(site.is_away, "status says that the store is away")

        asyncio.run(somebody_asks())
        said = site.mx.run("status").stdout
        assert f"store redis://{server.address} is away: 2 workers ask nearer by" in said
        document = json.loads(site.mx.run("status", "--json").stdout)
        assert document["store"]["state"] == "away"
        assert document["state"] == "ready"
    finally:
        server.go_on()
