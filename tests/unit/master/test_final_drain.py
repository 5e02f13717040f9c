"""What the final drain does in which order, with processes that do what the test says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest
from test_plan import PLAN
from test_pool import Agency, Process

from preforkmx.master.backoff import Backoff
from preforkmx.master.leaving import Drain
from preforkmx.master.pool import Pool
from preforkmx.master.procedure import Procedure

if TYPE_CHECKING:
    from preforkmx.master.child import Child
    from preforkmx.master.hiring import Hiring
    from preforkmx.master.holdings import Holdings


class Worker(Process):
    """A worker that notes its orders."""

    numbers = iter(range(1, 1000))

    def __init__(self, name: str, generation: int) -> None:
        super().__init__(name, generation)
        self.pid = next(self.numbers)
        self.state = "ready"
        self.hung = False

    def lame_duck(self) -> None:
        self.orders.append("lame_duck")

    def drain(self, seconds: float) -> None:
        self.orders.append("drain")

    def kill_by(self, when: float) -> None:
        pass


class Team(Agency):
    """Hires such workers."""

    def worker(self, slot: int, plan: object, generation: int) -> Process:
        self.hired.append(Worker(f"worker {slot}", generation))
        return self.hired[-1]


class Doors:
    """The listeners, and the holdings that have them."""

    def __init__(self) -> None:
        self.state = "open"
        self.ports: list[object] = []
        self.listeners = self

    def shut(self) -> None:
        self.state = "shut"

    def close(self) -> None:
        self.state = "closed"

    def waiting(self, ports: object, slots: object) -> int:
        return 0


class House:
    """A pool of one slot, and its final drain."""

    def __init__(self, lame_duck_seconds: float) -> None:
        self.now = 0.0
        self.team = Team()
        self.doors = Doors()
        plan = replace(PLAN, count=1, store=None)
        self.pool = Pool(plan, cast("Hiring", self.team), self.clock)
        (self.slot,) = self.pool.slots
        self.slot.holder = self.pool.hire(self.slot)
        self.pool.supervise()
        self.drain = Drain(
            self.pool,
            cast("Holdings", self.doors),
            self.clock,
            lame_duck_seconds=lame_duck_seconds,
        )
        self.procedure = Procedure(self.drain.steps(), self.clock)
        self.step()

    def clock(self) -> float:
        return self.now

    def step(self, seconds: float = 0.0) -> None:
        """Let time pass, in turns as the master has them."""
        until = self.now + seconds
        while True:
            self.pool.reconcile()
            self.procedure.advance()
            if self.now >= until:
                return
            self.now = min(self.now + 0.25, until)


def test_the_lame_duck_comes_first_and_then_no_connection_begins() -> None:
    house = House(5.0)
    assert house.team.hired[0].orders == ["lame_duck"]
    house.step(4.75)
    assert house.doors.state == "open"
    house.step(0.5)
    assert house.doors.state == "shut"
    assert house.team.hired[0].orders == ["lame_duck"]
    house.step(2.0)
    assert house.doors.state == "closed"
    assert house.team.hired[0].orders == ["lame_duck", "drain"]


def test_without_a_lame_duck_no_connection_begins_at_once() -> None:
    house = House(0.0)
    assert house.doors.state == "shut"
    house.step(2.0)
    assert house.team.hired[0].orders == ["drain"]


def test_a_replacement_during_the_lame_duck_is_lame_too() -> None:
    house = House(5.0)
    house.team.hired[0].state = "gone"
    house.step(0.5)
    assert house.team.hired[1].orders == ["lame_duck"]


def test_an_empty_slot_is_filled_once_more_while_the_queues_are_emptied() -> None:
    house = House(5.0)
    house.slot.backoff = Backoff(20)
    house.team.hired[0].state = "gone"
    house.step(4.75)
    assert house.slot.holder is None
    house.step(0.5)
    assert (house.doors.state, len(house.team.hired)) == ("shut", 2)


def test_workers_that_ask_to_be_replaced_meanwhile_are_not() -> None:
    """A TERM to the whole control group makes each of them ask."""
    house = House(5.0)
    house.team.hired[0].wants_replacement = True
    house.step(4.0)
    assert len(house.team.hired) == 1


def test_both_generations_of_a_reload_that_it_breaks_off_serve_to_its_end() -> None:
    house = House(5.0)
    old, new = house.team.hired[0], cast("Worker", house.pool.hire(house.slot))
    house.slot.successor = cast("Child", new)
    house.step(4.75)
    assert [old.orders, new.orders] == [["lame_duck"], ["lame_duck"]]
    house.step(3.0)
    assert [old.orders, new.orders] == [["lame_duck", "drain"], ["lame_duck", "drain"]]


def test_a_successor_that_is_ready_when_it_begins_does_not_take_over() -> None:
    team = Team()
    pool = Pool(replace(PLAN, count=1, store=None), cast("Hiring", team), lambda: 0.0)
    (slot,) = pool.slots
    slot.holder, slot.successor = pool.hire(slot), pool.hire(slot)
    pool.supervise()
    Drain(pool, cast("Holdings", Doors()), lambda: 0.0, lame_duck_seconds=5.0)
    pool.reconcile()
    assert [worker.orders for worker in team.hired] == [[], []]


def test_the_old_generation_is_still_replaced_by_the_old_one_when_a_reload_is_broken_off() -> None:
    house = House(5.0)
    old, new = house.team.hired[0], cast("Worker", house.pool.hire(house.slot))
    house.slot.successor = cast("Child", new)
    old.state = "gone"
    house.step(0.5)
    assert house.slot.successor is cast("Child", new)
    assert house.slot.holder is cast("Child", house.team.hired[2])


@pytest.mark.parametrize("after", [0.0, 3.0])
def test_it_can_be_cut_short(after: float) -> None:
    house = House(3600.0)
    house.step(after)
    house.drain.cut_short()
    house.step(0.25)
    assert house.doors.state == "shut"
    house.drain.cut_short()
    house.step(3.0)
    assert house.doors.state == "closed"
