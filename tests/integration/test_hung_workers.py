"""Workers that hang, crash again and again, or have taken enough: clients do not wait for them.

``TEST_HUNG_SECONDS``, for how long clients come while a worker hangs, and
``TEST_CRASH_SECONDS``, for how long one crashes again and again, make it longer than CI has it.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.mx import Generator
from tests.integration.processes import alive, dead, title
from tests.integration.sites import Client, Site, replaced
from tests.integration.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

pytestmark = pytest.mark.integration

SECONDS = float(os.environ.get("TEST_HUNG_SECONDS", "4"))
CRASH_SECONDS = float(os.environ.get("TEST_CRASH_SECONDS", "2"))
LONGEST_WAIT = 4.0
"""Seconds from connect to greeting, with a worker that hangs."""
PROMPT = 2.0
"""Seconds to a greeting by a worker that is well, on a machine that is busy."""
EVERY = 0.02
"""Seconds between two clients."""
FORKS = [0.0, 0.25, 0.75, 1.75, 3.75, 7.75, 15.75, *range(31, 3600, 30)]
"""When a worker that ends at once is forked, at the earliest, in seconds after its first crash."""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Start sites, and end them after the test."""
    with ExitStack() as stack:

        def start(**settings: Any) -> Site:
            messages = tmp_path / "messages"
            messages.mkdir(exist_ok=True)
            site = Site(tmp_path, messages=str(messages), **settings)
            stack.callback(site.close)
            return site.wait_ready()

        yield start


@dataclass
class Greetings:
    """Clients that come one after the other and wait, each by itself, for a greeting."""

    port: int
    waits: dict[float, float] = field(default_factory=dict)
    """When each came, and how long it waited for its greeting."""
    failures: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def coming(self) -> AsyncIterator[None]:
        """Let clients come; at the end wait until the last of them is greeted."""
        async with asyncio.TaskGroup() as group:
            source = group.create_task(self._come(group))
            try:
                yield
            finally:
                source.cancel()

    async def _come(self, group: asyncio.TaskGroup) -> None:
        while True:
            group.create_task(self._client())
            await asyncio.sleep(EVERY)

    async def _client(self) -> None:
        came = time.monotonic()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            async with asyncio.timeout(60):
                greeting = await reader.readline()
            self.waits[came] = time.monotonic() - came
            if not greeting.startswith(b"220 "):
                self.failures.append(repr(greeting))
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        except OSError as error:
            self.failures.append(f"{type(error).__name__}: {error}")


def for_a_while(site: Site, trouble: Callable[[], None]) -> tuple[Greetings, float]:
    """Let clients come, and trouble after half a second; return what they saw, and when it began."""
    greetings = Greetings(site.port)

    async def run() -> float:
        async with greetings.coming():
            await asyncio.sleep(0.5)
            began = time.monotonic()
            await asyncio.to_thread(trouble)
            await asyncio.sleep(SECONDS)
        return began

    return greetings, asyncio.run(run())


def stand_in(site: Site, slot: int = 0) -> int | None:
    """Return the pid of a slot's stand-in that is ready."""
    for pid in site.children():
        with suppress(OSError):
            if title(pid).startswith(f"preforkmx: worker {slot} stand-in ready"):
                site.pids.add(pid)
                return pid
    return None


@contextmanager
def transactions(site: Site, slot: int) -> Iterator[list[Client]]:
    """Have clients in the middle of transactions, at least one of them in this slot."""

    def here() -> int:
        return next(w["sessions"] for w in site.status()["workers"] if w["slot"] == slot)

    with ExitStack() as stack:
        clients: list[Client] = []
        # A heartbeat may take 0.25 s to tell.
        while not here():
            assert len(clients) < 200
            client = stack.enter_context(Client(site.port))
            client.begin()
            clients.append(client)
        yield clients


def finish(client: Client) -> str:
    """Deliver the message of a transaction that has begun, and quit."""
    assert client.say("DATA").startswith("354 ")
    answer = client.say("Subject: x\r\n\r\nx\r\n.")
    client.say("QUIT")
    return answer


def stored(site: Site) -> int:
    """Return how many messages are stored."""
    return len(list(Path(site.settings["messages"]).iterdir()))


@pytest.mark.parametrize("workers", [2, 4])
def test_with_a_stopped_worker_no_new_connection_waits_longer_than_four_seconds(
    start: Callable[..., Site], workers: int
) -> None:
    """What the stopped worker had is finished when it is continued."""
    site = start(count=workers)
    victim = site.workers()[0]
    with transactions(site, 0) as clients:
        greetings, began = for_a_while(site, lambda: os.kill(victim, signal.SIGSTOP))
        longest = max(greetings.waits.values())
        assert greetings.failures == []
        assert longest < LONGEST_WAIT
        assert longest > 1.0, "nobody was queued at the worker that was stopped"
        # From 3.5 s on everybody was led past the slot, and then served by the stand-in.
        late = [wait for came, wait in greetings.waits.items() if came > began + 3.5]
        assert late
        assert max(late) < PROMPT
        assert site.workers()[0] == stand_in(site)
        assert site.workers("draining") == {0: victim}
        os.kill(victim, signal.SIGCONT)
        answers = [finish(client)[:4] for client in clients]
        assert answers == ["250 "] * len(clients)
        until(lambda: dead(victim))
    assert stored(site) == len(clients)
    until(lambda: site.status()["totals"]["messages"] == len(clients), "the last counters")
    assert site.status()["totals"]["worker_crashes"] == 0
    assert "new connections go past slot 0" in site.log()
    assert "slot 0 gets new connections again" in site.log()


def test_a_worker_whose_loop_returns_retires_and_a_reload_meanwhile_is_done(
    start: Callable[..., Site],
) -> None:
    """A hook sleeps for 4 s: the transaction goes on in the retired worker."""
    site = start(count=2, drain_seconds=1.0)
    before = site.workers()
    with Client(site.port) as client:
        assert client.reply().startswith("220 ")
        assert client.say("HELO client.example.net").startswith("250 ")
        client.socket.sendall(b"MAIL FROM:<sleep-4@example.net>\r\n")
        until(lambda: stand_in(site, 0) or stand_in(site, 1))
        (slot,) = (slot for slot in before if stand_in(site, slot))
        assert site.workers("draining") == {slot: before[slot]}
        assert site.command("reload") == {"ok": True, "generation": 2}
        assert client.reply().startswith(("250 ", "421 ")), "it sleeps no more"
    until(lambda: dead(before[slot]))
    assert "turns again" in site.log()
    assert set(site.workers()) == {0, 1}
    assert site.status()["totals"]["worker_crashes"] == 0


def test_a_blocked_loop_with_live_threads_is_replaced_and_dumped_after_hang_seconds(
    start: Callable[..., Site],
) -> None:
    """The thread that writes the log goes on while the hook sleeps; the heartbeat does not."""
    site = start(count=2, hang_seconds=4.0)
    before = site.workers()
    with Client(site.port) as client:
        assert client.reply().startswith("220 ")
        assert client.say("HELO client.example.net").startswith("250 ")
        client.socket.sendall(b"MAIL FROM:<hang@example.net>\r\n")
        until(lambda: stand_in(site, 0) or stand_in(site, 1))
        (slot,) = (slot for slot in before if stand_in(site, slot))
        successor = stand_in(site, slot)
        assert alive(before[slot])
        for _ in range(20):
            with Client(site.port) as other:
                assert other.deliver().startswith("250 ")
        until(lambda: dead(before[slot]))
        assert client.reply() == ""
    log = site.log()
    assert "has been silent for 4 s: SIGABRT" in log
    assert re.search(r"File .*process_site\.py.* in misbehave", log), "the stack"
    assert site.workers()[slot] == successor, "the stand-in holds the slot"
    assert site.status()["totals"]["worker_crashes"] == 1


def test_while_a_worker_crashes_again_and_again_the_other_slots_serve_everybody(
    start: Callable[..., Site], tmp_path: Path
) -> None:
    """Only who was queued at the moment of the first crash waits for the slot."""
    crashing = tmp_path / "crashing"
    site = start(count=3, crash_slot_0_while=str(crashing))
    victim = site.workers()[0]
    greetings = Greetings(site.port)

    def forks() -> int:
        return site.log().count("worker 0 started: process ") - 1

    async def run() -> float:
        async with greetings.coming():
            await asyncio.sleep(0.5)
            crashing.touch()
            os.kill(victim, signal.SIGKILL)
            began = time.monotonic()
            await asyncio.sleep(CRASH_SECONDS)
            await asyncio.to_thread(until, lambda: forks() >= 3)
            seen, elapsed = forks(), time.monotonic() - began
            crashing.unlink()
            await asyncio.to_thread(until, lambda: replaced(site, victim), seconds=60)
        sys.stdout.write(f"\n{seen} forks of a crashing worker in {elapsed:.1f} s\n")
        assert seen <= sum(moment <= elapsed for moment in FORKS)
        return began

    began = asyncio.run(run())
    assert greetings.failures == []
    late = [wait for came, wait in greetings.waits.items() if came > began + 0.5]
    assert len(late) > CRASH_SECONDS / EVERY / 10
    assert max(late) < PROMPT
    assert "slot 0 gets new connections again" in site.log()


def test_recycling_under_load_loses_nothing(start: Callable[..., Site]) -> None:
    site = start(count=2, recycle_after_messages=100)
    before = set(site.workers().values())
    generator = Generator(site.port, sessions=6, messages=1)

    async def run() -> None:
        async with generator.sending():
            await asyncio.to_thread(until, lambda: before.isdisjoint(site.workers().values()))

    asyncio.run(run())
    load = generator.load
    assert load.failures == 0, load
    until(lambda: all(dead(pid) for pid in before))
    assert stored(site) == len(load.acknowledged)
    until(
        lambda: site.status()["totals"]["messages"] == len(load.acknowledged), "the last counters"
    )
    assert site.status()["totals"]["worker_crashes"] == 0
    asked = re.findall(r"(worker \d) \(process \d+\) asks to be replaced", site.log())
    assert {"worker 0", "worker 1"} <= set(asked)
