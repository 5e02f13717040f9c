"""What the service manager is told, on a real socket of its kind."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest
from test_plan import PLAN
from test_pool import Agency, Process

from preforkmx.master.notify import (
    EXTEND_SECONDS,
    FRESH_SECONDS,
    STATUS_SECONDS,
    ServiceManager,
    healthy,
)
from preforkmx.master.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from preforkmx.master.hiring import Hiring


class Worker(Process):
    """A worker whose heartbeat is as old as the test says."""

    silent = 0.0

    def silent_seconds(self, now: float) -> float:
        return self.silent

    def reading(self) -> None:
        return None


class Team(Agency):
    """Hires such workers, who are ready."""

    def worker(self, slot: int, plan: object, generation: int) -> Process:
        worker = Worker(f"worker {slot}", generation)
        worker.state = "ready"
        return worker


def pool_of(count: int) -> Pool:
    """Return a pool with so many ready workers."""
    pool = Pool(replace(PLAN, count=count, store=None), cast("Hiring", Team()), lambda: 0.0)
    for slot in pool.slots:
        slot.holder = pool.hire(slot)
    return pool


def worker(pool: Pool, slot: int) -> Worker:
    """Return who holds a slot."""
    return cast("Worker", pool.slots[slot].holder)


class Systemd:
    """The other side."""

    def __init__(self, address: str | bytes) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """Return what has come since the last call."""
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return messages


class Clock:
    """Seconds that the test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    systemd = Systemd(str(tmp_path / "notify"))
    yield systemd
    systemd.socket.close()


def manager(systemd: Systemd, clock: Clock, **variables: str) -> ServiceManager:
    return ServiceManager({"NOTIFY_SOCKET": systemd.socket.getsockname(), **variables}, clock)


def test_start_reload_and_stop_are_told(systemd: Systemd) -> None:
    told = manager(systemd, Clock())
    told.ready()
    told.reloading()
    told.stopping()
    ready, reloading, stopping = systemd.heard()
    assert ready == f"READY=1\nMAINPID={os.getpid()}"
    assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert int(reloading.rpartition("=")[2]) > 0
    assert stopping == "STOPPING=1"


def test_an_abstract_socket_is_one_too() -> None:
    name = f"preforkmx-test-{os.getpid()}"
    systemd = Systemd(b"\0" + name.encode())
    ServiceManager({"NOTIFY_SOCKET": f"@{name}"}, Clock()).stopping()
    assert systemd.heard() == ["STOPPING=1"]
    systemd.socket.close()


def test_the_variables_leave_the_environment_and_are_kept_for_a_re_execution() -> None:
    environ = {"NOTIFY_SOCKET": "/gone", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
    told = ServiceManager(environ, Clock())
    assert environ == {"HOME": "/"}
    assert told.environment == {
        "NOTIFY_SOCKET": "/gone",
        "WATCHDOG_USEC": "1",
        "WATCHDOG_PID": "1",
    }


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "/no/such/socket"])
def test_nobody_to_be_told_is_no_trouble(address: str) -> None:
    told = ServiceManager({"NOTIFY_SOCKET": address}, Clock())
    told.ready()
    told.look("ready", pool_of(1))


def test_a_full_queue_is_no_trouble_and_holds_nobody_up(systemd: Systemd) -> None:
    told = manager(systemd, Clock())
    for _ in range(2000):
        told.stopping()
    assert 0 < len(systemd.heard()) < 2000


def test_the_status_line_comes_when_it_changes_and_not_too_often(systemd: Systemd) -> None:
    clock, pool = Clock(), pool_of(2)
    told = manager(systemd, clock)
    told.look("ready", pool)
    assert systemd.heard() == ["STATUS=ready: 2 of 2 workers ready, 0 sessions"]
    worker(pool, 0).state = "booting"
    told.look("ready", pool)
    assert systemd.heard() == []
    clock.now += STATUS_SECONDS
    told.look("ready", pool)
    assert systemd.heard() == ["STATUS=ready: 1 of 2 workers ready, 0 sessions"]
    clock.now += STATUS_SECONDS
    told.look("ready", pool)
    assert systemd.heard() == []


def test_signs_of_life_come_in_half_of_the_watchdogs_time_while_all_is_well(
    systemd: Systemd,
) -> None:
    clock, pool = Clock(), pool_of(2)
    told = manager(systemd, clock, WATCHDOG_USEC="4000000", WATCHDOG_PID=str(os.getpid()))
    told.look("ready", pool)
    assert systemd.heard().count("WATCHDOG=1") == 1, "who was the master before may be long silent"
    clock.now += 1.9
    told.look("ready", pool)
    assert "WATCHDOG=1" not in systemd.heard()
    clock.now += 0.1
    told.look("ready", pool)
    told.look("ready", pool)
    assert systemd.heard().count("WATCHDOG=1") == 1
    clock.now += 2.0
    for slot in (0, 1):
        worker(pool, slot).silent = FRESH_SECONDS
    told.look("ready", pool)
    assert "WATCHDOG=1" not in systemd.heard()
    worker(pool, 0).silent = 0.0
    told.look("ready", pool)
    assert "WATCHDOG=1" in systemd.heard()


def test_a_sign_of_life_can_be_given_at_any_time_and_counts(systemd: Systemd) -> None:
    clock, pool = Clock(), pool_of(1)
    told = manager(systemd, clock, WATCHDOG_USEC="4000000")
    told.alive()
    told.look("ready", pool)
    assert systemd.heard().count("WATCHDOG=1") == 1
    manager(systemd, clock).alive()
    assert "WATCHDOG=1" not in systemd.heard()


def test_a_long_reload_asks_for_more_time_and_is_watched_all_the_same(systemd: Systemd) -> None:
    clock, pool = Clock(), pool_of(1)
    told = manager(systemd, clock, WATCHDOG_USEC="2000000")
    for _ in range(2):
        told.reloading()
        for _ in range(3):
            told.look("reloading", pool)
            told.look("reloading", pool)
            heard = systemd.heard()
            assert heard.count("EXTEND_TIMEOUT_USEC=30000000") == 1
            assert heard.count("WATCHDOG=1") == 1
            clock.now += EXTEND_SECONDS
        told.ready()
    worker(pool, 0).silent = FRESH_SECONDS
    systemd.heard()
    told.look("reloading", pool)
    assert "WATCHDOG=1" not in systemd.heard()


def test_a_watchdog_of_another_process_gets_no_sign(systemd: Systemd) -> None:
    clock = Clock()
    told = manager(systemd, clock, WATCHDOG_USEC="2000000", WATCHDOG_PID="1")
    clock.now += 100
    told.look("ready", pool_of(1))
    assert "WATCHDOG=1" not in systemd.heard()


@pytest.mark.parametrize(
    ("sick", "count", "well"), [(0, 1, True), (1, 1, False), (1, 2, True), (1, 3, True)]
)
def test_less_than_half_of_the_slots_may_be_sick(sick: int, count: int, well: bool) -> None:  # noqa: FBT001
    pool = pool_of(count)
    for slot in range(sick):
        worker(pool, slot).state = "booting"
    assert healthy(pool, 0.0) is well
    if count == 3:
        worker(pool, 1).silent = FRESH_SECONDS
        assert not healthy(pool, 0.0)


@pytest.mark.parametrize("state", ["booting", "draining"])
def test_a_long_start_or_drain_asks_for_more_time_and_gives_signs_of_life(
    systemd: Systemd, state: str
) -> None:
    clock, pool = Clock(), pool_of(1)
    worker(pool, 0).state = "booting"
    told = manager(systemd, clock, WATCHDOG_USEC="2000000")
    for _ in range(3):
        clock.now += EXTEND_SECONDS
        told.look(state, pool)
        told.look(state, pool)
        heard = systemd.heard()
        assert heard.count("EXTEND_TIMEOUT_USEC=30000000") == 1
        assert heard.count("WATCHDOG=1") == 1
    clock.now += EXTEND_SECONDS
    told.look("ready", pool)
    assert not any("EXTEND" in message for message in systemd.heard())
