"""The rows about policy: what a connection costs more for Redis' sake, and one that is refused."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from benchmarks.peers import RefusingSink
from benchmarks.preforkmx_server import Preforkmx
from benchmarks.redis_server import Redis
from benchmarks.report import Figure
from benchmarks.server import Failed, NotHere
from benchmarks.visits import RECIPIENT, senders, visit
from preforkmx.state.redis.keys import Keys
from preforkmx.state.triplets import normalise_sender, triplet_key

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.server import Server

UNIT = "µs of CPU per connection"
CLIENTS = ("preforkmx", "redis-py")
_SESSIONS = 20
_SETTLE = 0.3
_SECONDS = 120
_NETWORK = "127.0.0.0/24"
_LIFE = 36 * 86_400

_POLICY = """
[[middleware]]
use = "rate_limit"
connections = "100000/s"
concurrent = 1000
[[middleware]]
use = "greylist"
exempt_private = false
"""

_BLOCKED = """
[[middleware]]
use = "rate_limit"
connections = "1/day"
"""


def _know(redis: Redis, paths: list[str]) -> None:
    """Make every triplet of the load a known one, as one that passed is."""
    keys = Keys("preforkmx")
    expiry = str(round((time.time() + _LIFE) * 1e6))
    some = [
        keys.greylist(_NETWORK.encode(), triplet_key(_NETWORK, normalise_sender(path), RECIPIENT))
        for path in paths
    ]
    redis.ask(*(("SET", triplet, expiry, "PX", _LIFE * 1000) for _, triplet, _ in some))


def policy(folder: Path, rounds: int, connections: int) -> list[Figure]:
    """Measure connections with limits and a greylist in Redis, beside the same without."""
    profile = "policy, a connection each"
    with ExitStack() as stack:
        redis = stack.enter_context(Redis(folder / "policy-redis"))
        state = f'[state]\nurl = "{redis.url}"\n'
        without = stack.enter_context(Preforkmx(folder / "policy-sink"))
        with_it = stack.enter_context(Preforkmx(folder / "policy", toml=_POLICY + state))
        figures = {
            name: Figure(profile, name, UNIT, rate_unit="connections/s")
            for name in ("sink", "policy in Redis")
        }
        difference = Figure(profile, "the policy's part", UNIT)
        of_redis = Figure(profile, redis.name, UNIT)
        operations = Figure(profile, "operations per connection", UNIT)
        done = 0
        for turn in range(rounds + 1):
            # A worker remembers for 60 s what it was told of a triplet: each is a new one.
            paths = senders(connections if turn else 200, done)
            done += len(paths)
            _know(redis, paths)
            cost = {}
            for name, server in (("sink", without), ("policy in Redis", with_it)):
                before, redis_before = server.tree.cpu(), redis.tree.cpu()
                scripts = redis.scripts_run()
                seconds = visit(server.port, paths, sessions=_SESSIONS)
                time.sleep(_SETTLE)
                cost[name] = server.tree.cpu().since(before) / len(paths) * 1e6
                if turn:
                    figures[name].values.append(cost[name])
                    figures[name].rates.append(len(paths) / seconds)
                    if server is with_it:
                        used = redis.tree.cpu().since(redis_before)
                        of_redis.values.append(used / len(paths) * 1e6)
                        operations.values.append((redis.scripts_run() - scripts) / len(paths))
            if turn:
                difference.values.append(cost["policy in Redis"] - cost["sink"])
    difference.at_most(100)
    return [*figures.values(), difference, of_redis, _as_count(operations)]


def _as_count(figure: Figure) -> Figure:
    figure.profile, figure.unit = "policy, store operations", "scripts per connection"
    figure.server = "preforkmx"
    figure.at_most(3)
    return figure


def clients(folder: Path, rounds: int, connections: int) -> list[Figure]:
    """Measure the same operations by the store alone, over its own links and over redis-py."""
    profile = "policy, the store alone"
    figures = {who: Figure(profile, who, UNIT, rate_unit="connections/s") for who in CLIENTS}
    with Redis(folder / "clients-redis") as redis:
        for _ in range(rounds):
            for who in CLIENTS:
                command = [sys.executable, "-m", "benchmarks.store_clients"]
                ran = subprocess.run(
                    [*command, who, redis.url, str(connections)],
                    capture_output=True,
                    text=True,
                    timeout=_SECONDS,
                    check=False,
                )
                if ran.returncode:
                    raise Failed(f"{who} could not ask Redis:\n{ran.stderr[-2000:]}")
                seconds, cpu = map(float, ran.stdout.split())
                figures[who].values.append(cpu / connections * 1e6)
                figures[who].rates.append(connections / seconds)
    ours, theirs = (figures[who] for who in CLIENTS)
    theirs.ratio = theirs.value / ours.value
    return [ours, theirs]


def blocked(folder: Path, rounds: int, connections: int) -> list[Figure]:
    """Measure connections of a host that a limit in Redis refuses."""
    profile = "blocked, connections refused by a limit"
    with ExitStack() as stack:
        redis = stack.enter_context(Redis(folder / "blocked-redis"))
        state = f'[state]\nurl = "{redis.url}"\n'
        ours = stack.enter_context(Preforkmx(folder / "blocked", toml=_BLOCKED + state))
        servers: list[Server] = [ours]
        with suppress(NotHere):
            servers.append(stack.enter_context(RefusingSink(folder / "blocked-smtp-sink")))
        figures = {
            server.name: Figure(profile, server.name, UNIT, rate_unit="connections/s")
            for server in servers
        }
        asked = Figure("blocked, store operations", ours.name, "scripts in all")
        for turn in range(rounds + 1):
            paths = [""] * (connections if turn else 200)
            scripts = redis.scripts_run()
            for server in servers:
                before = server.tree.cpu()
                seconds = visit(server.port, paths, sessions=_SESSIONS, refused=True)
                time.sleep(_SETTLE)
                if turn:
                    figure = figures[server.name]
                    figure.values.append(server.tree.cpu().since(before) / len(paths) * 1e6)
                    figure.rates.append(len(paths) / seconds)
            if turn:
                asked.values.append(redis.scripts_run() - scripts)
    figures[ours.name].at_most(60)
    if RefusingSink.name in figures:
        # No budget: what the machine asks of anybody for such a connection.
        figures[ours.name].ratio = figures[ours.name].value / figures[RefusingSink.name].value
    asked.at_most(0)
    return [*figures.values(), asked]
