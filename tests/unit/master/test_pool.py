"""Who holds a slot after what."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest
from test_plan import PLAN

from preforkmx.errors import BootError
from preforkmx.master.pool import Pool

if TYPE_CHECKING:
    from preforkmx.master.child import Child
    from preforkmx.master.hiring import Hiring


class Process:
    """A child without a process."""

    def __init__(self, name: str, generation: int) -> None:
        self.name = name
        self.pid = 1
        self.generation = generation
        self.state = "booting"
        self.problems: list[str] = []
        self.wants_replacement = False
        self.healthy_seconds = 0.0
        self.end = "killed by SIGKILL"
        self.orders: list[str] = []

    @property
    def alive(self) -> bool:
        return self.state != "gone"

    def retire(self, seconds: float) -> None:
        self.state = "draining"
        self.orders.append("retire")

    def kill(self) -> None:
        self.orders.append("kill")


class Agency:
    """Hires, or cannot."""

    def __init__(self) -> None:
        self.hired: list[Process] = []
        self.trouble: Exception | None = None

    def worker(self, slot: int, plan: Any, generation: int) -> Process:
        if self.trouble is not None:
            raise self.trouble
        self.hired.append(Process(f"worker {slot}", generation))
        return self.hired[-1]

    def store(self, plan: Any, generation: int) -> Process:
        self.hired.append(Process("store", generation))
        return self.hired[-1]


class Staff:
    """A pool of one slot whose worker is ready, and no store."""

    def __init__(self) -> None:
        self.now = 0.0
        self.agency = Agency()
        plan = replace(PLAN, count=1, store=None)
        self.pool = Pool(plan, cast("Hiring", self.agency), lambda: self.now)
        (self.slot,) = self.pool.slots
        self.slot.holder = self.pool.hire(self.slot)
        self.last.state = "ready"
        self.pool.supervise()

    @property
    def last(self) -> Process:
        return self.agency.hired[-1]

    def crash(self, child: Process) -> None:
        child.state = "gone"
        self.pool.reconcile()


@pytest.fixture
def staff() -> Staff:
    return Staff()


def same(child: Child | None, process: Process) -> bool:
    return cast("Any", child) is process


def test_the_first_crash_is_made_good_at_once(staff: Staff) -> None:
    first = staff.last
    staff.crash(first)
    assert len(staff.agency.hired) == 2
    assert same(staff.slot.holder, staff.last)
    assert staff.pool.crashes == 1


def test_the_second_crash_waits_its_time(staff: Staff) -> None:
    staff.crash(staff.last)
    staff.crash(staff.last)
    assert staff.slot.holder is None
    assert staff.pool.next_refill() == 0.25
    staff.now = 0.24
    staff.pool.reconcile()
    assert staff.slot.holder is None
    staff.now = 0.25
    staff.pool.reconcile()
    assert staff.slot.holder is not None
    assert staff.pool.next_refill() is None


def test_a_fork_that_fails_is_tried_again(staff: Staff) -> None:
    staff.agency.trouble = OSError("Resource temporarily unavailable")
    staff.crash(staff.last)
    assert staff.slot.holder is None
    due = staff.pool.next_refill()
    assert due is not None
    assert due >= 1.0
    staff.agency.trouble = BootError("uvloop is not installed")
    staff.now = due
    staff.pool.reconcile()
    assert staff.slot.holder is None
    staff.agency.trouble = None
    staff.now = 100.0
    staff.pool.reconcile()
    assert staff.slot.holder is not None


def test_nobody_is_replaced_in_the_final_drain(staff: Staff) -> None:
    staff.pool.refills = False
    staff.crash(staff.last)
    assert len(staff.agency.hired) == 1
    assert staff.pool.idle()


def test_a_worker_that_asks_for_it_is_replaced_before_it_goes(staff: Staff) -> None:
    first = staff.last
    first.wants_replacement = True
    staff.pool.reconcile()
    second = staff.last
    assert same(staff.slot.successor, second)
    assert first.orders == []
    second.state = "ready"
    staff.pool.reconcile()
    assert same(staff.slot.holder, second)
    assert first.orders == ["retire"]
    assert not staff.pool.idle()


def test_a_successor_that_fails_leaves_the_holder_where_it_is(staff: Staff) -> None:
    first = staff.last
    first.wants_replacement = True
    staff.pool.reconcile()
    staff.crash(staff.last)
    staff.pool.reconcile()
    assert same(staff.slot.holder, first)
    assert staff.slot.successor is None
    assert len(staff.agency.hired) == 2


def test_a_successor_that_is_ready_takes_the_place_of_a_holder_that_crashes(staff: Staff) -> None:
    first = staff.last
    first.wants_replacement = True
    staff.pool.reconcile()
    second = staff.last
    second.state = "ready"
    staff.crash(first)
    assert same(staff.slot.holder, second)
    assert staff.pool.next_refill() is None
    assert len(staff.agency.hired) == 2


def test_a_slot_whose_last_worker_still_drains_gets_no_third_process(staff: Staff) -> None:
    first = staff.last
    first.wants_replacement = True
    staff.pool.reconcile()
    second = staff.last
    second.state = "ready"
    staff.pool.reconcile()
    second.wants_replacement = True
    staff.pool.reconcile()
    assert len(staff.agency.hired) == 2
    first.state = "gone"
    staff.pool.reconcile()
    assert len(staff.agency.hired) == 3


def test_during_a_reload_the_reload_decides_when_a_successor_takes_over(staff: Staff) -> None:
    first = staff.last
    staff.pool.reloading = True
    staff.slot.successor = staff.pool.hire(staff.slot)
    staff.last.state = "ready"
    staff.pool.reconcile()
    assert same(staff.slot.holder, first)
    staff.crash(first)
    assert not same(staff.slot.holder, first)
    assert staff.slot.successor is not None
    assert len(staff.agency.hired) == 3


def test_a_dismissed_successor_retires_when_it_serves_and_is_killed_when_it_does_not(
    staff: Staff,
) -> None:
    staff.slot.successor = staff.pool.hire(staff.slot)
    booting = staff.last
    staff.slot.dismiss_successor(1.0)
    assert booting.orders == ["kill"]
    staff.slot.successor = staff.pool.hire(staff.slot)
    ready = staff.last
    ready.state = "ready"
    staff.slot.dismiss_successor(1.0)
    assert ready.orders == ["retire"]
    assert not staff.pool.idle()


def test_the_store_is_replaced_like_a_worker() -> None:
    agency = Agency()
    pool = Pool(PLAN, cast("Hiring", agency), lambda: 0.0)
    pool.supervise()
    pool.reconcile()
    assert sorted(process.name for process in agency.hired) == ["store", "worker 0", "worker 1"]
    store = next(process for process in agency.hired if process.name == "store")
    store.state = "gone"
    pool.reconcile()
    assert [process.name for process in agency.hired].count("store") == 2
