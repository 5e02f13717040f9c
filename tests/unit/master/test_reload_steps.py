"""What a reload does in which order, with processes that do what the test says."""

from __future__ import annotations

import gc
import socket
import weakref
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest
from test_plan import PLAN
from test_pool import Agency, Process

from preforkmx.errors import ConfigError
from preforkmx.master.listeners import ListenerSockets
from preforkmx.master.pool import Pool
from preforkmx.master.procedure import Procedure
from preforkmx.master.reload import Reload
from preforkmx.master.resizing import GRACE_SECONDS
from preforkmx.master.slot import PROCESSES
from preforkmx.master.sockets import bind_tcp, queue_length
from preforkmx.master.steering import Steering
from preforkmx.session.listener import Listener, split_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from preforkmx.master.hiring import Hiring
    from preforkmx.master.plan import Plan

OLD = replace(PLAN, store=None, listeners=(Listener("127.0.0.1:0"),))
NEW = replace(OLD, hostname="mx2.example.com")


class Worker(Process):
    """A worker that also hears what a reload says to those that still drain."""

    hung = False
    kill_at: float | None = None
    status: int | None = 0

    def drain(self, seconds: float) -> None:
        self.orders.append("drain")

    def kill_by(self, when: float) -> None:
        self.kill_at = when


class Recruiter(Agency):
    """Hires workers, and checkers that are done already."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def worker(self, slot: int, plan: Any, generation: int) -> Process:
        if self.trouble is not None:
            raise self.trouble
        self.hired.append(Worker(f"worker {slot}", generation))
        return self.hired[-1]

    def stand_in(self, slot: int, plan: Any, generation: int) -> Process:
        self.hired.append(Worker(f"worker {slot} stand-in", generation))
        return self.hired[-1]

    def checker(self, plan: Any, generation: int) -> Process:
        checker = Worker("checker", generation)
        checker.state, checker.problems = "gone", self.found
        checker.status = 2 if self.found else 0
        return checker


class Plant:
    """A pool of two ready workers, and a reload of it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sockets = ListenerSockets(OLD.listeners, OLD.count)
        self.sockets.open()
        self.agency = Recruiter()
        steering = Steering(self.sockets.groups)
        self.pool = Pool(OLD, cast("Hiring", self.agency), lambda: self.now, steering.steer)
        for slot in self.pool.slots:
            slot.holder = self.pool.hire(slot)
        for process in self.agency.hired:
            process.state = "ready"
        self.old = self.agency.hired[:]
        self.pool.supervise()
        self.reload: Reload

    def begin(self, load: Callable[[], Plan] = lambda: NEW) -> Procedure:
        """Begin a reload."""
        hiring = cast("Hiring", self.agency)
        self.reload = Reload(
            self.pool, hiring, self.sockets, load, number=2, clock=lambda: self.now
        )
        procedure = Procedure(self.reload.steps(), lambda: self.now)
        procedure.advance()
        return procedure

    def step(self, procedure: Procedure) -> None:
        """Do what a turn of the master's loop does."""
        self.pool.reconcile()
        procedure.advance()

    @property
    def new(self) -> list[Process]:
        """Who was hired for the new generation."""
        return [process for process in self.agency.hired if process.generation == 2]

    def let_back_off(self, slot: int) -> None:
        """Let the worker of a slot crash until the next one is waited for."""
        while (process := self.holders()[slot]) is not None:
            process.state = "gone"
            self.pool.reconcile()

    def holders(self) -> list[Any]:
        """Who holds the slots."""
        return [slot.holder for slot in self.pool.slots]

    def shares(self, clients: int = 24) -> list[int]:
        """Connect so many clients, and return how many were led to each slot."""
        address = split_address(self.sockets.listeners[0].address)
        (group,) = self.sockets.groups()
        with ExitStack() as stack:
            for _ in range(clients):
                stack.enter_context(socket.create_connection(address))
            shares = [queue_length(sock) for sock in group]
            for sock, count in zip(group, shares, strict=True):
                for _ in range(count):
                    sock.accept()[0].close()
        return shares


@pytest.fixture
def plant() -> Iterator[Plant]:
    plant = Plant()
    yield plant
    plant.sockets.close()


def test_the_old_ones_retire_when_the_last_new_one_is_ready(plant: Plant) -> None:
    procedure = plant.begin()
    assert [process.name for process in plant.new] == ["worker 0"]
    plant.new[0].state = "ready"
    plant.step(procedure)
    assert [process.name for process in plant.new] == ["worker 0", "worker 1"]
    assert plant.holders() == plant.old
    assert [process.orders for process in plant.old] == [[], []]
    plant.new[1].state = "ready"
    plant.step(procedure)
    assert procedure.done
    assert plant.holders() == plant.new
    assert [process.orders for process in plant.old] == [["retire"], ["retire"]]
    assert (plant.pool.plan, plant.pool.generation) == (NEW, 2)
    assert plant.reload.problems == []


def test_a_worker_that_cannot_boot_leaves_the_old_ones_in_every_slot(plant: Plant) -> None:
    procedure = plant.begin()
    plant.new[0].state = "ready"
    plant.step(procedure)
    plant.new[1].problems = ["no such certificate"]
    plant.new[1].state = "gone"
    plant.step(procedure)
    assert procedure.done
    assert plant.reload.problems == ["no such certificate"]
    assert plant.holders() == plant.old
    assert [process.orders for process in plant.old] == [[], []]
    assert plant.new[0].orders == ["retire"], "it may have sessions already"
    assert (plant.pool.plan, plant.pool.generation) == (OLD, 1)
    assert not plant.pool.reloading


def test_a_new_worker_that_crashes_before_the_others_are_ready_breaks_it_off(plant: Plant) -> None:
    procedure = plant.begin()
    plant.new[0].state = "ready"
    plant.step(procedure)
    plant.new[0].state = "gone"
    plant.step(procedure)
    assert procedure.done
    assert plant.reload.problems == ["worker 0 could not be started: killed by SIGKILL"]
    assert plant.new[1].orders == ["kill"]
    assert plant.holders() == plant.old


@pytest.mark.parametrize(("state", "order"), [("ready", "retire"), ("booting", "kill")])
def test_an_old_worker_that_crashes_meanwhile_is_replaced_by_an_old_one(
    plant: Plant, state: str, order: str
) -> None:
    procedure = plant.begin()
    plant.old[1].state = "gone"
    plant.step(procedure)
    again = plant.holders()[1]
    assert again.generation == 1
    again.state = state
    plant.new[0].state = "ready"
    plant.step(procedure)
    plant.new[1].state = "ready"
    plant.step(procedure)
    assert plant.holders() == plant.new
    assert again.orders == [order], "nobody waits for a boot that is not wanted any more"


def test_it_waits_for_a_worker_that_is_being_replaced_for_another_reason(plant: Plant) -> None:
    plant.old[0].wants_replacement = True
    plant.pool.reconcile()
    between = plant.agency.hired[-1]
    procedure = plant.begin()
    assert plant.new == []
    between.state = "ready"
    plant.step(procedure)
    assert plant.holders()[0] is between
    assert plant.new == [], "the slot has two processes: the one that retires must go first"
    assert cast("Worker", plant.old[0]).orders == ["retire"], "its sessions may end by themselves"
    plant.now += GRACE_SECONDS
    plant.step(procedure)
    assert cast("Worker", plant.old[0]).orders == ["retire", "drain"]
    assert cast("Worker", plant.old[0]).kill_at == plant.now + OLD.drain_seconds + 5 + 2
    plant.old[0].state = "gone"
    plant.step(procedure)
    assert [process.name for process in plant.new] == ["worker 0"]


def test_who_still_drains_from_the_one_before_is_waited_for_in_all_slots_together(
    plant: Plant,
) -> None:
    procedure = plant.begin()
    for number in range(2):
        plant.new[number].state = "ready"
        plant.step(procedure)
    assert procedure.done
    procedure = plant.begin()
    plant.now += GRACE_SECONDS
    plant.step(procedure)
    assert [process.orders for process in plant.old] == [["retire", "drain"]] * 2
    assert {cast("Worker", process).kill_at for process in plant.old} == {
        plant.now + OLD.drain_seconds + 5 + 2
    }
    hired = len(plant.agency.hired)
    plant.old[0].state = "gone"
    plant.step(procedure)
    assert len(plant.agency.hired) == hired, "all slots, and not one after the other"
    plant.old[1].state = "gone"
    plant.step(procedure)
    assert len(plant.agency.hired) == hired + 1
    procedure.cancel()


def test_a_process_that_cannot_be_ended_is_a_refusal(plant: Plant) -> None:
    for slot in plant.pool.slots:
        slot.retire_holder(1.0)
        slot.holder = plant.pool.hire(slot)
        plant.agency.hired[-1].state = "ready"
    plant.old[0].state = "gone"
    procedure = plant.begin()
    for seconds in (GRACE_SECONDS, 3600):
        plant.now += seconds
        plant.step(procedure)
    assert procedure.done
    assert plant.reload.problems == ["slot 1 still has a process that cannot be ended"]
    assert plant.new == []


def test_the_slots_that_go_are_led_past_before_their_queues_are_waited_for(plant: Plant) -> None:
    procedure = plant.begin(lambda: replace(NEW, count=1))
    plant.new[0].state = "ready"
    plant.step(procedure)
    assert not procedure.done
    assert plant.shares()[1] == 0
    procedure.cancel()


def test_an_empty_slot_that_goes_is_filled_once_more_while_its_queue_is_emptied(
    plant: Plant,
) -> None:
    plant.let_back_off(1)
    procedure = plant.begin(lambda: replace(NEW, count=1))
    plant.new[0].state = "ready"
    plant.step(procedure)
    assert plant.holders()[1].generation == 1
    procedure.cancel()


def test_what_load_or_the_checker_find_is_told_and_nobody_is_forked(plant: Plant) -> None:
    def load() -> Plan:
        raise ConfigError(["mx.toml:1: bad", "mx.toml:2: worse"])

    assert plant.begin(load).done
    assert plant.reload.problems == ["mx.toml:1: bad", "mx.toml:2: worse"]
    plant.agency.found = ["mymx.checks cannot be imported"]
    assert plant.begin().done
    assert plant.reload.problems == ["mymx.checks cannot be imported"]
    assert plant.new == []


def test_an_error_of_ours_while_reading_is_a_refusal_and_not_the_end(plant: Plant) -> None:
    def load() -> Plan:
        raise RuntimeError("a bug")

    assert plant.begin(load).done
    assert plant.reload.problems[0].startswith("RuntimeError: a bug (")


def test_what_a_reading_leaves_in_cycles_is_collected_by_the_next_one(plant: Plant) -> None:
    class Cycle:
        def __init__(self) -> None:
            self.itself = self

    left: list[weakref.ref[Cycle]] = []

    def load() -> Plan:
        left.append(weakref.ref(Cycle()))
        # Each fork does so.
        gc.freeze()
        gc.unfreeze()
        raise ConfigError(["mx.toml:1: bad"])

    for _ in range(3):
        assert plant.begin(load).done
    assert [cycle() for cycle in left] == [None] * 3


def test_an_error_of_ours_anywhere_before_it_serves_is_a_refusal_and_not_the_end(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    procedure = plant.begin(lambda: replace(MORE, listeners=(*OLD.listeners, *OLD.listeners)))
    plant.new[0].state = "ready"
    plant.agency.trouble = cast("Any", RuntimeError("a bug"))
    plant.step(procedure)
    assert procedure.done
    assert plant.reload.problems[0].startswith("RuntimeError: a bug (")
    assert plant.holders() == plant.old
    assert plant.new[0].orders == ["retire"]
    assert (plant.sockets.count, len(plant.sockets.ports)) == (2, 1)
    plant.agency.trouble = None
    plant.new[0].state = "gone"
    plant.pool.reconcile()
    monkeypatch.setattr(plant.sockets, "add", cast("Any", None))
    assert plant.begin(lambda: MORE).done
    assert plant.reload.problems[0].startswith("TypeError: ")
    assert plant.sockets.count == 2, "the sockets that were made before it are closed"


def test_a_port_that_is_taken_while_it_is_checked_is_a_refusal(plant: Plant) -> None:
    with closing(bind_tcp("127.0.0.1", 0, reuse_port=True)) as free:
        new = Listener(f"127.0.0.1:{free.getsockname()[1]}")
    with ExitStack() as stack:

        def checker(plan: Any, generation: int) -> Process:
            # Another server of the same user, who would let ours join.
            other = stack.enter_context(
                closing(bind_tcp(*split_address(new.address), reuse_port=True))
            )
            other.listen()
            return Recruiter.checker(plant.agency, plan, generation)

        plant.agency.checker = checker  # type: ignore[method-assign]
        assert plant.begin(lambda: replace(NEW, listeners=(*OLD.listeners, new))).done
    assert plant.reload.problems == [f"{new.address} is taken: another process listens there"]
    assert len(plant.sockets.ports) == 1


def test_a_fork_that_fails_is_a_refusal(plant: Plant) -> None:
    plant.agency.trouble = OSError("Resource temporarily unavailable")
    assert plant.begin().done
    assert "no process could be forked" in plant.reload.problems[0]
    assert plant.holders() == plant.old


def test_a_reload_that_is_broken_off_says_so(plant: Plant) -> None:
    procedure = plant.begin()
    procedure.cancel()
    assert "the server is stopping" in plant.reload.problems[0]
    assert not plant.pool.reloading


def test_a_worker_that_hangs_behind_its_stand_in_does_not_hold_up_a_reload(plant: Plant) -> None:
    plant.old[0].hung = True
    plant.pool.reconcile()
    plant.agency.hired[-1].state = "ready"
    plant.pool.reconcile()
    procedure = plant.begin()
    assert [process.name for process in plant.new] == ["worker 0"]
    assert plant.old[0].orders == ["retire"], "it is not told to hurry: it hears nothing"
    for number in range(2):
        plant.new[number].state = "ready"
        plant.step(procedure)
    assert procedure.done
    assert len(plant.pool.slots[0]) == PROCESSES
    procedure = plant.begin()
    assert "drain" not in plant.old[0].orders
    plant.now += GRACE_SECONDS
    plant.step(procedure)
    assert "drain" in plant.old[0].orders, "the next one waits: the slot has three processes"


# The slots that it adds.


MORE = replace(NEW, count=4)


def test_nobody_is_led_to_the_slots_that_it_adds_before_it_is_done(plant: Plant) -> None:
    procedure = plant.begin(lambda: MORE)
    for number in range(4):
        assert plant.shares()[2:] == [0, 0]
        plant.step(procedure)
        assert plant.shares()[2:] == [0, 0]
        plant.new[number].state = "ready"
        plant.step(procedure)
    assert procedure.done
    plant.pool.reconcile()
    assert all(plant.shares(80))


def test_a_slot_that_is_steered_past_stays_so_while_it_adds_others(plant: Plant) -> None:
    plant.old[0].hung = True
    plant.pool.reconcile()
    assert plant.pool.away == {0}
    procedure = plant.begin(lambda: MORE)
    assert plant.shares()[0] == 0, "in the very turn in which the sockets were made"
    assert plant.shares()[2:] == [0, 0]
    procedure.cancel()
