"""The stores under test: a test of the semantics is written once and runs on each."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from preforkmx.state.decisions import Store, running
from preforkmx.state.embedded import EmbeddedStore, serve_store
from preforkmx.state.embedded.operator import EmbeddedOperator
from preforkmx.state.local import LocalStore
from preforkmx.state.local_operator import LocalOperator
from preforkmx.state.redis import nodes_for, parse
from preforkmx.state.redis.operator import RedisOperator
from preforkmx.state.redis.store import RedisStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Scenario = Callable[[Store, "Clock"], Awaitable[None]]


class Clock:
    """Seconds since 1970 that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@asynccontextmanager
async def served(directory: Path, clock: Callable[[], float]) -> AsyncIterator[Path]:
    """Serve the state as the store process does, and yield its socket's path."""
    path = directory / "store.sock"
    stop = asyncio.Event()
    ready = asyncio.Event()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen(16)
        server = asyncio.create_task(
            serve_store(sock, directory / "greylist.db", ready.set, stop, clock=clock)
        )
        await asyncio.wait(
            [server, waiting := asyncio.create_task(ready.wait())],
            return_when=asyncio.FIRST_COMPLETED,
        )
        waiting.cancel()
        try:
            yield path
        finally:
            stop.set()
            await server
            path.unlink()


@asynccontextmanager
async def _local(_directory: Path, clock: Clock) -> AsyncIterator[Store]:
    async with running(LocalStore(clock)) as store:
        yield store


@asynccontextmanager
async def _embedded(directory: Path, clock: Clock) -> AsyncIterator[Store]:
    async with (
        served(directory, clock) as path,
        running(EmbeddedStore(path, deadline=30.0)) as store,
    ):
        yield store


@asynccontextmanager
async def _redis(path: Path, clock: Clock) -> AsyncIterator[Store]:
    nodes = nodes_for(parse(f"unix://{path}"), deadline=30.0)
    async with running(RedisStore(nodes, clock=clock)) as store:
        await nodes.command("FLUSHALL")
        yield store


STORES = {"local": _local, "embedded": _embedded, "redis": _redis}


@pytest.fixture(params=["local", "embedded", pytest.param("redis", marks=pytest.mark.integration)])
def with_store(request, tmp_path) -> Callable[[Scenario], None]:
    """Run a scenario, ``async def (store, clock)``, on every kind of store."""
    place = tmp_path
    if request.param == "redis":
        place = request.getfixturevalue("redis").path

    def run(scenario: Scenario) -> None:
        async def main() -> None:
            clock = Clock()
            async with STORES[request.param](place, clock) as store:
                await scenario(store, clock)

        asyncio.run(main())

    return run


@asynccontextmanager
async def _local_and_operator(_place, clock):
    store = LocalStore(clock)
    yield store, LocalOperator(store)


@asynccontextmanager
async def _embedded_and_operator(directory, clock):
    async with (
        served(directory, clock) as path,
        running(EmbeddedStore(path, deadline=30.0)) as store,
        running(EmbeddedOperator(path, deadline=30.0)) as operator,
    ):
        yield store, operator


@asynccontextmanager
async def _redis_and_operator(path, clock):
    async with _redis(path, clock) as store:
        nodes = nodes_for(parse(f"unix://{path}"), deadline=30.0)
        async with running(RedisOperator(nodes, clock=clock)) as operator:
            yield store, operator


OPERATED = {
    "local": _local_and_operator,
    "embedded": _embedded_and_operator,
    "redis": _redis_and_operator,
}


@pytest.fixture(params=["local", "embedded", pytest.param("redis", marks=pytest.mark.integration)])
def with_operator(request, tmp_path):
    """Run a scenario, ``async def (store, operator, clock)``, on every kind of store."""
    place = request.getfixturevalue("redis").path if request.param == "redis" else tmp_path

    def run(scenario) -> None:
        async def main() -> None:
            clock = Clock()
            async with OPERATED[request.param](place, clock) as (store, operator):
                await scenario(store, operator, clock)

        asyncio.run(main())

    return run


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def serve(tmp_path) -> Callable[..., object]:
    """``async with serve(clock) as path``: the store process' server, in this process."""
    return lambda clock: served(tmp_path, clock)
