"""Who holds a slot after what."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest
from test_plan import PLAN

from preforkmx.errors import BootError
from preforkmx.master.pool import Pool
from preforkmx.master.slot import PROCESSES

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
        self.hung = False
        self.aborted = False
        self.problems: list[str] = []
        self.wants_replacement = False
        self.healthy_seconds = 0.0
        self.end = "killed by SIGKILL"
        self.orders: list[str] = []
        self.slots = 0

    @property
    def alive(self) -> bool:
        return self.state != "gone"

    def retire(self, seconds: float) -> None:
        self.state = "draining"
        self.orders.append("retire")

    def share_with(self, slots: int) -> None:
        self.slots = slots

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

    def stand_in(self, slot: int, plan: Any, generation: int) -> Process:
        if self.trouble is not None:
            raise self.trouble
        self.hired.append(Process(f"worker {slot} stand-in", generation))
        return self.hired[-1]

    def store(self, plan: Any, generation: int) -> Process:
        self.hired.append(Process("store", generation))
        return self.hired[-1]


class Staff:
    """A pool whose workers are ready, and no store; its first slot is what a test looks at."""

    def __init__(self, count: int = 1) -> None:
        self.now = 0.0
        self.agency = Agency()
        self.steered: list[frozenset[int]] = []
        plan = replace(PLAN, count=count, store=None)
        self.pool = Pool(
            plan,
            cast("Hiring", self.agency),
            lambda: self.now,
            lambda away, _slots: self.steered.append(away),
        )
        self.slot = self.pool.slots[0]
        for slot in self.pool.slots:
            slot.holder = self.pool.hire(slot)
            self.last.state = "ready"
        self.pool.supervise()

    @property
    def last(self) -> Process:
        return self.agency.hired[-1]

    @property
    def names(self) -> list[str]:
        return [process.name for process in self.agency.hired]

    def crash(self, child: Process) -> None:
        child.state = "gone"
        self.pool.reconcile()

    def hang(self) -> tuple[Process, Process]:
        """Let the loop of the first slot's worker be silent; return it and its stand-in."""
        holder = cast("Process", self.slot.holder)
        holder.hung = True
        self.pool.reconcile()
        return holder, self.last

    def later(self, seconds: float) -> None:
        self.now += seconds
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


# A worker whose loop is silent.


def test_a_silent_worker_gets_one_stand_in_and_keeps_its_place_until_that_is_ready(
    staff: Staff,
) -> None:
    holder, stand_in = staff.hang()
    staff.later(5)
    assert staff.names == ["worker 0", "worker 0 stand-in"]
    assert same(staff.slot.holder, holder)
    stand_in.state = "ready"
    staff.pool.reconcile()
    assert same(staff.slot.holder, stand_in)
    assert holder.orders == ["retire"], "it hears that when its loop returns"
    assert staff.pool.crashes == 0


def test_a_worker_whose_loop_returns_before_its_stand_in_is_ready_is_retired_all_the_same(
    staff: Staff,
) -> None:
    holder, stand_in = staff.hang()
    holder.hung = False
    staff.pool.reconcile()
    stand_in.state = "ready"
    staff.pool.reconcile()
    assert (same(staff.slot.holder, stand_in), holder.orders) == (True, ["retire"])


def test_a_booting_or_draining_worker_gets_no_stand_in(staff: Staff) -> None:
    for state in ("booting", "draining"):
        cast("Process", staff.slot.holder).state = state
        staff.hang()
    assert staff.names == ["worker 0"]


def test_the_stand_in_holds_the_slot_when_the_silent_worker_is_killed(staff: Staff) -> None:
    holder, stand_in = staff.hang()
    staff.crash(holder)
    assert same(staff.slot.holder, stand_in)
    assert staff.pool.crashes == 1
    assert staff.pool.next_refill() is None
    staff.later(60)
    assert len(staff.agency.hired) == 2


def test_a_worker_that_is_killed_for_hanging_behind_its_stand_in_is_a_crash(staff: Staff) -> None:
    holder, stand_in = staff.hang()
    stand_in.state = "ready"
    staff.pool.reconcile()
    holder.aborted = True
    staff.crash(holder)
    assert staff.pool.crashes == 1
    assert same(staff.slot.holder, stand_in)


def test_a_stand_in_that_dies_is_a_crash_like_any_other(staff: Staff) -> None:
    _, first = staff.hang()
    staff.crash(first)
    staff.pool.reconcile()
    second = staff.last
    assert second is not first, "the first crash is made good at once"
    staff.crash(second)
    assert staff.pool.next_refill() == 0.25
    staff.later(0.24)
    assert len(staff.agency.hired) == 3
    staff.later(0.01)
    assert len(staff.agency.hired) == 4
    assert staff.pool.crashes == 2


def test_no_further_stand_in_comes_for_a_loop_that_turns_again(staff: Staff) -> None:
    holder, first = staff.hang()
    holder.hung = False
    staff.crash(first)
    staff.later(60)
    assert len(staff.agency.hired) == 2
    assert same(staff.slot.holder, holder)


def test_a_fork_of_a_stand_in_that_fails_is_tried_again_later(staff: Staff) -> None:
    staff.agency.trouble = OSError("Resource temporarily unavailable")
    staff.hang()
    due = staff.pool.next_refill()
    assert due is not None
    assert due >= 1.0
    staff.agency.trouble = None
    staff.later(due / 2)
    assert staff.slot.stand_in is None
    staff.later(due / 2)
    assert staff.slot.stand_in is not None


def test_stand_ins_that_hang_as_well_are_bounded(staff: Staff) -> None:
    """Three processes: the oldest must go before the slot gets another one."""
    for _ in range(10):
        staff.hang()[1].state = "ready"
        staff.pool.reconcile()
    assert len(staff.slot) == PROCESSES == 3
    staff.agency.hired[0].state = "gone"
    staff.pool.reconcile()
    assert len(staff.slot) == PROCESSES
    assert staff.names == ["worker 0", *["worker 0 stand-in"] * 3]


def test_a_silent_worker_that_asks_to_be_replaced_gets_a_stand_in_only(staff: Staff) -> None:
    cast("Process", staff.slot.holder).wants_replacement = True
    staff.hang()
    assert staff.names == ["worker 0", "worker 0 stand-in"]
    assert staff.slot.successor is None


def test_the_stand_in_takes_over_during_a_reload_and_goes_with_the_old_generation(
    staff: Staff,
) -> None:
    staff.pool.reloading = True
    holder, stand_in = staff.hang()
    stand_in.state = "ready"
    staff.pool.reconcile()
    assert same(staff.slot.holder, stand_in)
    staff.slot.successor = staff.pool.hire(staff.slot, None, 2)
    staff.slot.promote(1.0)
    assert [holder.orders, stand_in.orders] == [["retire"], ["retire"]]


def test_where_a_reload_brings_a_new_worker_no_stand_in_is_forked(staff: Staff) -> None:
    staff.pool.reloading = True
    staff.slot.successor = staff.pool.hire(staff.slot, None, 2)
    staff.hang()
    assert staff.slot.stand_in is None


def test_a_stand_in_that_still_boots_when_the_reload_is_done_is_not_wanted_any_more(
    staff: Staff,
) -> None:
    _, stand_in = staff.hang()
    staff.slot.successor = staff.pool.hire(staff.slot, None, 2)
    new = staff.last
    staff.slot.promote(1.0)
    assert stand_in.orders == ["kill"]
    assert same(staff.slot.holder, new)
    assert len(staff.slot) == PROCESSES
    staff.crash(stand_in)
    assert staff.pool.crashes == 0


def test_a_silent_store_gets_no_stand_in() -> None:
    agency = Agency()
    pool = Pool(PLAN, cast("Hiring", agency), lambda: 0.0)
    pool.supervise()
    pool.reconcile()
    for process in agency.hired:
        process.state = "ready"
    store = next(process for process in agency.hired if process.name == "store")
    store.hung = True
    pool.reconcile()
    assert len(agency.hired) == 3


# Steering.


def test_connections_are_steered_past_a_silent_worker_until_its_stand_in_is_ready() -> None:
    staff = Staff(3)
    _, stand_in = staff.hang()
    assert staff.steered[-1] == {0}
    staff.later(1)
    assert staff.steered[-1] == {0}
    stand_in.state = "ready"
    staff.pool.reconcile()
    assert staff.steered[-1] == set()


def test_connections_are_steered_past_a_slot_that_backs_off_until_its_worker_is_ready() -> None:
    staff = Staff(2)
    staff.crash(cast("Process", staff.slot.holder))
    assert staff.steered[-1] == {0}
    staff.crash(staff.last)
    assert staff.slot.holder is None
    staff.later(0.2)
    assert staff.steered[-1] == {0}
    staff.later(0.05)
    assert staff.slot.holder is not None
    assert staff.steered[-1] == {0}, "it boots"
    staff.last.state = "ready"
    staff.pool.reconcile()
    assert staff.steered[-1] == set()


def test_a_slot_that_a_reloads_worker_serves_already_is_not_steered_past() -> None:
    staff = Staff(2)
    staff.pool.reloading = True
    staff.slot.successor = staff.pool.hire(staff.slot, None, 2)
    staff.last.state = "ready"
    staff.hang()
    assert staff.steered[-1] == set()


def test_a_slot_that_is_to_go_is_steered_past() -> None:
    staff = Staff(2)
    staff.pool.slots[1].leaving = True
    staff.pool.reconcile()
    assert staff.steered[-1] == {1}


def test_where_nobody_serves_connections_still_go_past_a_slot_that_is_to_go() -> None:
    staff = Staff(2)
    staff.pool.slots[1].leaving = True
    staff.hang()
    assert staff.steered[-1] == {1}
    staff.pool.slots[1].leaving = False
    for slot in staff.pool.slots:
        cast("Process", slot.holder).hung = True
    staff.pool.reconcile()
    assert staff.steered[-1] == set()


def test_nobody_is_steered_before_the_start_is_over_and_in_the_final_drain(staff: Staff) -> None:
    staff.pool.refills = False
    staff.hang()
    assert staff.steered == []


# Bounds in time.


def test_forks_per_minute_of_a_crash_loop_are_bounded() -> None:
    """The worst of it: it is never ready, and dies at once."""
    staff = Staff(2)
    forks = []
    for minute in range(10):
        before = len(staff.agency.hired)
        while staff.now < 60 * (minute + 1):
            for process in staff.agency.hired[2:]:
                process.state = "gone"
            cast("Process", staff.agency.hired[0]).state = "gone"
            staff.later(0.05)
        forks.append(len(staff.agency.hired) - before)
    assert forks[0] <= 9
    assert all(number <= 3 for number in forks[1:])
    assert cast("Process", staff.pool.slots[1].holder).orders == []


def test_one_worker_at_a_time_is_replaced_on_its_own_wish() -> None:
    staff = Staff(3)
    for process in staff.agency.hired:
        process.wants_replacement = True
    for slot in range(3):
        staff.later(1)
        staff.later(1)
        assert len(staff.agency.hired) == 3 + slot + 1
        staff.last.state = "ready"
    staff.later(1)
    assert [process.orders for process in staff.agency.hired[:3]] == [["retire"]] * 3


def test_a_wish_whose_fork_failed_is_not_forgotten(staff: Staff) -> None:
    first = staff.last
    first.wants_replacement = True
    staff.agency.trouble = OSError("Resource temporarily unavailable")
    staff.pool.reconcile()
    due = staff.pool.next_refill()
    assert due is not None
    staff.agency.trouble = None
    staff.later(due)
    assert staff.slot.successor is not None
    assert same(staff.slot.holder, first)


def test_a_successor_holds_the_slot_of_a_worker_that_dies_before_it_is_ready(
    staff: Staff,
) -> None:
    first = staff.last
    first.wants_replacement = True
    staff.pool.reconcile()
    successor = staff.last
    staff.crash(first)
    assert same(staff.slot.holder, successor)
    assert staff.pool.next_refill() is None
