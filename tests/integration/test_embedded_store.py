"""The embedded store with real processes: one owner, several workers, and what kills them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path

import pytest
import uvloop

import preforkmx
from preforkmx.errors import StoreUnavailable
from preforkmx.state.decisions import ConnectionLimits, GreylistSettings, GreylistState, Rate
from preforkmx.state.embedded import EmbeddedStore
from preforkmx.state.fallback import FallbackStore
from preforkmx.state.local import LocalStore

pytestmark = pytest.mark.integration

HOST = ip_address("192.0.2.1")
GREYLIST = GreylistSettings(delay=300.0)
TRIPLET = ("192.0.2.0/24", "joe@example.com", "ann@example.net")

# One event an hour: nothing is earned back while a test runs.
HOURLY = Rate(count=1, period=3600.0, burst=40)

STORE = """
import asyncio, signal, socket, sys
from pathlib import Path
import uvloop
from preforkmx.state.embedded import serve_store

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    with socket.socket(fileno=int(sys.argv[2])) as sock:
        await serve_store(sock, Path(sys.argv[3]), lambda: print("ready", flush=True), stop)

{"asyncio": asyncio.run, "uvloop": uvloop.run}[sys.argv[1]](main())
"""

WORKER = """
import asyncio, sys
from ipaddress import ip_address
from pathlib import Path
import uvloop
from preforkmx.state.decisions import ConnectionLimits, Rate
from preforkmx.state.embedded import EmbeddedStore

async def main():
    store = EmbeddedStore(Path(sys.argv[2]), deadline=30.0)
    await store.start()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    limits = ConnectionLimits("in", concurrent=20)
    rate = Rate(count=1, period=3600.0, burst=40)
    taken, opened = [], []
    async def session():
        taken.append((await store.take(rate, "key")).allowed)
        opened.append(await store.open_connection(ip_address("192.0.2.1"), limits))
    await asyncio.gather(*(session() for _ in range(25)))
    print(sum(taken), sum(one.admitted for one in opened), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await store.close()

{"asyncio": asyncio.run, "uvloop": uvloop.run}[sys.argv[1]](main())
"""


class Machine:
    """What the master does: hold the socket, start processes, and see them die."""

    def __init__(self, directory, loop):
        self.path = directory / "s"
        self.database = directory / "greylist.db"
        self._loop = loop
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(self.path))
        self._sock.listen(128)
        self._processes = []
        self.store = None

    def _start(self, code, *arguments, fds=()):
        process = subprocess.Popen(
            [sys.executable, "-c", code, self._loop, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=fds,
            env={**os.environ, "PYTHONPATH": str(Path(preforkmx.__file__).parent.parent)},
        )
        self._processes.append(process)
        assert process.stdout.readline() == b"ready\n"
        return process

    def start_store(self):
        fd = self._sock.fileno()
        self.store = self._start(STORE, fd, self.database, fds=(fd,))

    def start_worker(self):
        return self._start(WORKER, self.path)

    def end_store(self, signum):
        self.store.send_signal(signum)
        return self.store.wait(30)

    def close(self):
        self._sock.close()
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait(30)
            process.stdin.close()
            process.stdout.close()


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request):
    return request.param


@pytest.fixture
def machine(tmp_path, loop):
    machine = Machine(tmp_path, loop)
    machine.start_store()
    try:
        yield machine
    finally:
        machine.close()


@pytest.fixture
def run(loop):
    """Run a worker's coroutine on the loop under test."""
    return {"asyncio": asyncio.run, "uvloop": uvloop.run}[loop]


class Worker:
    """A worker of this process: its store as the app makes it, and what it was told."""

    def __init__(self, machine, *, deadline=30.0, share=4):
        self.primary = EmbeddedStore(machine.path, deadline=deadline)
        self.changes = asyncio.Queue()
        self.store = FallbackStore(
            self.primary, LocalStore(), share=share, on_change=self.changes.put_nowait
        )

    async def __aenter__(self):
        await self.store.start()
        return self

    async def __aexit__(self, *_):
        await self.store.close()

    async def change(self):
        return await asyncio.wait_for(self.changes.get(), 30)


def test_a_limit_holds_exactly_over_all_workers_and_a_killed_one_frees_its_places(machine, run):
    workers = [machine.start_worker() for _ in range(4)]
    for worker in workers:
        worker.stdin.write(b"go\n")
        worker.stdin.flush()
    counts = [tuple(map(int, worker.stdout.readline().split())) for worker in workers]
    assert sum(taken for taken, _ in counts) == HOURLY.burst
    assert sum(opened for _, opened in counts) == 20

    victim = max(range(4), key=lambda n: counts[n][1])
    workers[victim].kill()
    workers[victim].wait(30)
    freed = counts[victim][1]
    assert freed >= 5

    async def take_the_free_places():
        limits = ConnectionLimits("in", concurrent=20)
        admitted = 0
        async with Worker(machine) as worker:
            while admitted < freed:
                admitted += (await worker.store.open_connection(HOST, limits)).admitted
            assert not (await worker.store.open_connection(HOST, limits)).admitted

    run(take_the_free_places())


def test_a_killed_store_costs_its_limits_their_memory_but_no_mail_and_no_history(machine, run):
    async def main():
        limits = ConnectionLimits("in", concurrent=8)
        async with Worker(machine) as worker:
            store = worker.store
            held = [(await store.open_connection(HOST, limits)).lease for _ in range(3)]
            log = machine.database.with_name("greylist.db-wal")
            size = log.stat().st_size
            assert (await store.greylist(*TRIPLET, GREYLIST)).state is GreylistState.NEW
            assert await _grown(log, size) < 5.0  # a second, on a machine with time

            machine.end_store(signal.SIGKILL)
            with pytest.raises(StoreUnavailable):
                await store.greylist(*TRIPLET, GREYLIST)
            assert await worker.change() is False
            taken = [(await store.take(HOURLY, "key")).allowed for _ in range(20)]
            assert taken.count(True) == HOURLY.burst // 4
            meanwhile = [await store.open_connection(HOST, limits) for _ in range(4)]
            assert [one.admitted for one in meanwhile] == [True, True, False, False]
            with pytest.raises(StoreUnavailable):
                await store.greylist(*TRIPLET, GREYLIST)

            machine.start_store()
            assert await worker.change() is True
            verdict = await store.greylist(*TRIPLET, GREYLIST)
            assert verdict.state is GreylistState.EARLY
            # Three of eight places are held by what was opened before the crash.
            again = [await store.open_connection(HOST, limits) for _ in range(6)]
            assert [one.admitted for one in again] == [True] * 5 + [False]
            # A lease of the outage is not the store's, and frees nothing there.
            await store.close_connection(meanwhile[0].lease)
            assert not (await store.open_connection(HOST, limits)).admitted
            await store.close_connection(held[0])
            assert (await store.open_connection(HOST, limits)).admitted

    run(main())


def test_a_store_that_is_told_to_stop_saves_everything_first(machine, run):
    async def ask():
        async with Worker(machine) as worker:
            return await worker.store.greylist(*TRIPLET, GREYLIST)

    assert run(ask()).state is GreylistState.NEW
    assert machine.end_store(signal.SIGTERM) == 0
    machine.start_store()
    assert run(ask()).state is GreylistState.EARLY


def test_while_the_store_is_stopped_no_operation_waits_longer_than_its_deadline(machine, run):
    deadline = 1.0

    async def timed(operation):
        began = time.monotonic()
        with contextlib.suppress(StoreUnavailable):
            await operation
        return time.monotonic() - began

    async def main():
        limits = ConnectionLimits("in", concurrent=2)
        async with Worker(machine, deadline=deadline, share=1) as worker:
            await worker.store.take(HOURLY, "key")
            machine.store.send_signal(signal.SIGSTOP)
            caught = await asyncio.gather(
                timed(worker.store.greylist(*TRIPLET, GREYLIST)),
                *(timed(worker.store.take(HOURLY, "key")) for _ in range(50)),
                *(timed(worker.store.open_connection(HOST, limits)) for _ in range(2)),
            )
            # What is more is what a busy machine may take to run the loop.
            assert deadline - 0.01 <= min(caught)
            assert max(caught) < deadline + 0.7
            assert await worker.change() is False

            began = time.monotonic()
            for _ in range(1000):
                await timed(worker.store.take(HOURLY, "key"))
                await timed(worker.store.greylist(*TRIPLET, GREYLIST))
            assert time.monotonic() - began < deadline

            machine.store.send_signal(signal.SIGCONT)
            assert await worker.change() is True
            # The places that it gave when nobody waited any more are free again.
            primary = worker.primary
            opened = [await primary.open_connection(HOST, limits) for _ in range(3)]
            assert [one.admitted for one in opened] == [True, True, False]

    run(main())


def test_a_store_that_is_not_there_yet_is_waited_for_no_longer_than_the_deadline(tmp_path, run):
    async def main():
        store = EmbeddedStore(tmp_path / "nobody", deadline=0.3)
        began = time.monotonic()
        await store.start()
        assert time.monotonic() - began < 0.8
        await store.close()

    run(main())


async def _grown(file, size):
    """Wait until `file` is longer than `size`; return how many seconds it took."""
    began = time.monotonic()
    while True:
        if file.stat().st_size > size:
            break
        await asyncio.sleep(0.01)
    took = time.monotonic() - began
    await asyncio.sleep(0.1)  # the last pages of the transaction
    return took
