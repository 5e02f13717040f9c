"""TTIN and TTOU: a worker slot more, a slot less, while clients come and go."""

from __future__ import annotations

import asyncio
import os
import signal
import smtplib
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.integration.mx import MX, Generator, serving

pytestmark = pytest.mark.integration

PATIENCE = 20.0
LISTENERS = '[[listener]]\naddress = "127.0.0.1:0"\n'


def until(condition, mx: MX):
    """Wait for what nothing tells of."""
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < deadline, mx.log
        time.sleep(0.02)
    return result


def ready(mx: MX) -> list[int]:
    """Return the slots that have a ready worker."""
    return sorted(w["slot"] for w in mx.status()["workers"] if w["state"] == "ready")


def sockets_of(pid: int) -> int:
    """Return how many descriptors of a process are sockets."""
    count = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        # A control connection may be gone by now.
        with suppress(FileNotFoundError):
            count += str(link.readlink()).startswith("socket:")
    return count


def test_ttin_adds_a_slot_and_ttou_takes_the_highest_away_without_losing_a_client(tmp_path):
    with serving(tmp_path, LISTENERS) as mx:
        generator = Generator(mx.ports[0], sessions=8)
        descriptors = sockets_of(mx.process.pid)

        async def scenario():
            running = asyncio.create_task(generator.run())
            for number, slots in (
                (signal.SIGTTIN, [0, 1, 2]),
                (signal.SIGTTIN, [0, 1, 2, 3]),
                (signal.SIGTTOU, [0, 1, 2]),
                (signal.SIGTTOU, [0, 1]),
                (signal.SIGTTOU, [0]),
                (signal.SIGTTIN, [0, 1]),
            ):
                mx.process.send_signal(number)
                await asyncio.to_thread(until, lambda slots=slots: ready(mx) == slots, mx)
                await generator.acknowledged(50)
            generator.stopping.set()
            await running

        asyncio.run(scenario())
        load = generator.load
        assert (load.resets, load.refused, load.busy, load.lost) == (0, 0, 0, 0), mx.log
        # Those who still drained are gone, and nothing of them is left in the master.
        until(lambda: len(mx.status()["workers"]) == 2, mx)
        until(lambda: sockets_of(mx.process.pid) <= descriptors, mx)
        assert "cannot accept" not in mx.log


def test_a_new_slot_gets_a_share_of_the_connections(tmp_path):
    with serving(tmp_path, LISTENERS, workers=1) as mx, ExitStack() as stack:
        mx.process.send_signal(signal.SIGTTIN)
        until(lambda: ready(mx) == [0, 1], mx)
        for _ in range(40):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", mx.ports[0])))
            assert client.recv(100).startswith(b"220 ")
        until(lambda: all(w["sessions"] > 0 for w in mx.status()["workers"]), mx)


def test_what_is_queued_in_the_slot_that_goes_is_greeted_first(tmp_path):
    with serving(tmp_path, LISTENERS) as mx, ExitStack() as stack:
        [pid] = [w["pid"] for w in mx.status()["workers"] if w["slot"] == 1]
        os.kill(pid, signal.SIGSTOP)
        try:
            clients = [
                stack.enter_context(socket.create_connection(("127.0.0.1", mx.ports[0]), PATIENCE))
                for _ in range(20)
            ]
            mx.process.send_signal(signal.SIGTTOU)
            until(lambda: "SIGTTOU" in mx.log, mx)
        finally:
            os.kill(pid, signal.SIGCONT)
        for client in clients:
            assert client.recv(100).startswith(b"220 ")
        until(lambda: ready(mx) == [0], mx)


def test_a_session_in_the_slot_that_goes_is_served_to_its_end(tmp_path):
    with serving(tmp_path, LISTENERS) as mx, ExitStack() as stack:
        clients = [
            stack.enter_context(smtplib.SMTP("127.0.0.1", mx.ports[0], timeout=PATIENCE))
            for _ in range(16)
        ]
        until(lambda: all(w["sessions"] > 0 for w in mx.status()["workers"]), mx)
        mx.process.send_signal(signal.SIGTTOU)
        until(lambda: ready(mx) == [0], mx)
        assert len(mx.status()["workers"]) == 2
        for client in clients:
            client.sendmail("a@example.org", ["box@example.com"], "Subject: x\r\n\r\nx\r\n")
            client.quit()
        until(lambda: len(mx.status()["workers"]) == 1, mx)


def test_the_last_slot_stays_and_a_reload_sets_the_count_that_is_configured(tmp_path):
    with serving(tmp_path, LISTENERS) as mx:

        def refused() -> bool:
            # Pending signals of one number are one.
            mx.process.send_signal(signal.SIGTTOU)
            return "fewer there may not be" in mx.log

        until(refused, mx)
        assert ready(mx) == [0]
        assert mx.command("reload")["ok"]
        assert ready(mx) == [0, 1]


BOOTS_WHEN_IT_IS_TOLD_HOW = """\
import asyncio
import contextlib
import os
from pathlib import Path
from preforkmx.errors import BootError
from preforkmx.middleware.base import Middleware

def make(**options):
    return Middleware(lifespan=lifespan)

@contextlib.asynccontextmanager
async def lifespan():
    Path("boots").touch()
    while not Path("well").exists():
        if Path("ill").exists():
            raise BootError("as the test wants it")
        await asyncio.sleep(0.02)
    yield
"""
"""In the folder of the server, which is its working directory."""


@pytest.mark.parametrize("how", ["well", "ill"])
def test_while_a_reload_adds_workers_every_client_is_greeted_at_once(tmp_path, how):
    with serving(tmp_path, LISTENERS) as mx, ExitStack() as stack:
        text = mx.config.read_text()
        (tmp_path / "mymx.py").write_text(BOOTS_WHEN_IT_IS_TOLD_HOW)
        middleware = '[[middleware]]\nuse = "mymx:make"\n'
        mx.config.write_text(text.replace("count = 2", "count = 4") + middleware)
        mx.process.send_signal(signal.SIGHUP)
        until((tmp_path / "boots").exists, mx)
        clients = []
        for _ in range(40):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", mx.ports[0]), 5))
            assert client.recv(200).startswith(b"220 ")
            clients.append(client)
        (tmp_path / how).touch()
        last = "generation 2 serves" if how == "well" else "the reload is refused: as the test"
        until(lambda: last in mx.log, mx)
        for client in clients:
            client.sendall(b"NOOP\r\n")
            assert client.recv(200).startswith(b"250 ")
        assert ready(mx) == ([0, 1, 2, 3] if how == "well" else [0, 1])


@pytest.mark.parametrize("workers", [1, 4])
def test_a_reload_changes_the_number_of_workers_under_load(tmp_path, workers):
    with serving(tmp_path, LISTENERS) as mx:
        generator = Generator(mx.ports[0], sessions=8)
        text = mx.config.read_text()

        async def scenario():
            running = asyncio.create_task(generator.run())
            await generator.acknowledged(20)
            for count in (workers, 2):
                mx.config.write_text(text.replace("count = 2", f"count = {count}"))
                answer = await asyncio.to_thread(mx.command, "reload")
                assert answer["ok"], answer
                assert await asyncio.to_thread(ready, mx) == list(range(count))
                await generator.acknowledged(50)
            generator.stopping.set()
            await running

        asyncio.run(scenario())
        load = generator.load
        assert (load.resets, load.refused, load.busy, load.lost) == (0, 0, 0, 0), mx.log
