"""Pool: keeps every slot, and each other process's place, held by one process.

After each turn of the master's loop :meth:`Pool.reconcile` looks at the facts (who is gone,
who is ready) and does what follows from them. It keeps no plan of its own that could differ
from the facts.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from preforkmx.errors import BootError
from preforkmx.master.handover import PoolState
from preforkmx.master.slot import PROCESSES, Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from preforkmx.master.child import Child
    from preforkmx.master.hiring import Hiring
    from preforkmx.master.plan import Plan

ADMIN_SECONDS = 5.0
"""What an admin process whose address has changed gets to finish its answers."""

_logger = logging.getLogger("preforkmx.master")


class Pool:
    """The processes of the server and their places.

    :param plan: what new processes run with; a reload changes it.
    :param steer: told in every turn which slots shall get no new connections, and how many
        slots there are.
    """

    def __init__(
        self,
        plan: Plan,
        hiring: Hiring,
        clock: Callable[[], float],
        steer: Callable[[frozenset[int], int], None] | None = None,
    ) -> None:
        self.plan = plan
        self.generation = 1
        self.slots = [Slot(index) for index in range(plan.count)]
        self.former: list[Slot] = []
        """Slots that were given up, while they have processes."""
        self.store = Slot(None, "store") if plan.store is not None else None
        self.admin = Slot(None, "admin")
        """It stays empty while the plan has no address for it."""
        self.crashes = 0
        """Processes that ended without being told to, since the start."""
        self.refills = False
        """Whether an empty place is filled again: from the end of the start to the drain."""
        self.lame_duck = False
        """Whether workers refuse health checks, also those that are hired from now on."""
        self.reloading = False
        """Whether a reload decides when a successor takes over."""
        self.leaving = False
        """Whether the final drain is under way: everybody serves to its end as they are, and only
        who dies is replaced. A reload that it broke off leaves two generations beside each other,
        and each has listeners that the other one does not."""
        self.away: frozenset[int] = frozenset()
        """The slots that nobody serves, or that are to go: connections are steered past them."""
        self._hiring = hiring
        self._clock = clock
        self._steer = steer

    def hand_over(self) -> PoolState:
        """Return what another program in this process needs to go on; nobody is gone."""
        return PoolState(
            generation=self.generation,
            crashes=self.crashes,
            slots=tuple(slot.hand_over() for slot in self.slots),
            former=tuple(slot.hand_over() for slot in self.former),
            store=None if self.store is None else self.store.hand_over(),
            admin=self.admin.hand_over(),
        )

    def take_over(self, state: PoolState, children: Iterable[Child]) -> None:
        """Go on with the pool of an earlier program in this process.

        :param children: all of its processes.
        """
        by_pid = {child.pid: child for child in children}
        self.generation, self.crashes = state.generation, state.crashes
        self.slots = [Slot.taken_over(slot, by_pid) for slot in state.slots]
        self.former = [Slot.taken_over(slot, by_pid) for slot in state.former]
        if state.store is not None:
            self.store = Slot.taken_over(state.store, by_pid, "store")
        self.admin = Slot.taken_over(state.admin, by_pid, "admin")
        self.refills = True

    def workers(self) -> Iterator[Child]:
        """Every worker that has not been reaped."""
        for slot in (*self.slots, *self.former):
            yield from slot

    def have_slots(self, count: int) -> None:
        """Plan with so many slots from now on, and tell the workers: each has its share of the
        limits while the store is away."""
        self.plan = replace(self.plan, count=count)
        for child in self.workers():
            child.share_with(count)

    def add_slot(self) -> Slot:
        """Add a slot behind the others, empty but for who still drains there."""
        index = len(self.slots)
        slot = next((slot for slot in self.former if slot.index == index), None)
        if slot is None:
            slot = Slot(index)
        else:
            self.former.remove(slot)
            slot.leaving = False
            slot.backoff.reset()
        self.slots.append(slot)
        return slot

    def drop_slot(self) -> None:
        """Let the highest slot go; its processes retire."""
        slot = self.slots.pop()
        slot.give_up(self.plan.drain_seconds)
        self.former.append(slot)

    def idle(self) -> bool:
        """Whether no worker is left."""
        return not any(True for _ in self.workers())

    def hire(self, slot: Slot, plan: Plan | None = None, generation: int | None = None) -> Child:
        """Fork a process for a place; the caller puts it there.

        :raises OSError: there is no process or descriptor to be had.
        :raises BootError: the plan's event loop is not installed.
        """
        plan = self.plan if plan is None else plan
        generation = self.generation if generation is None else generation
        if slot.kind == "store":
            return self._hiring.store(plan, generation)
        if slot.kind == "admin":
            return self._hiring.admin(plan, generation)
        assert slot.index is not None
        child = self._hiring.worker(slot.index, plan, generation)
        self._tell_newcomer(child)
        return child

    def become_lame_duck(self) -> None:
        """Let every worker refuse health checks, also those to come."""
        self.lame_duck = True
        for child in self.workers():
            child.lame_duck()

    def _tell_newcomer(self, child: Child) -> None:
        if self.lame_duck:
            # It waits in the channel, and is heard before the first connection is accepted.
            child.lame_duck()

    def supervise(self) -> None:
        """Fill empty places from now on, also one that lost its process during the start."""
        self.refills = True
        for slot in self._places():
            if slot.holder is None and (slot is not self.admin or self.plan.admin_address):
                slot.refill_at = self._clock()

    def helpers(self) -> list[Slot]:
        """Return the places of the processes that serve no mail."""
        return [self.admin] if self.store is None else [self.store, self.admin]

    def hurry(self) -> None:
        """Fill empty slots now, whatever their back-off says: somebody may be queued there, and
        the queue is closed soon."""
        for slot in self.slots:
            slot.backoff.reset()
            if slot.refill_at is not None:
                slot.refill_at = self._clock()

    def _places(self) -> list[Slot]:
        return [*self.slots, *self.helpers()]

    def change_admin(self) -> None:
        """Let a new admin process, if the plan has one, take the place of the old one."""
        for child in self.admin:
            child.stop()
            child.kill_by(self._clock() + ADMIN_SECONDS)
        self.admin.retire_holder(0)
        self.admin.backoff.reset()
        self.admin.refill_at = self._clock() if self.plan.admin_address else None

    def reconcile(self) -> None:
        """Do what follows from what has happened; call this in every turn."""
        for slot in (*self._places(), *self.former):
            self._reconcile(slot)
        self.former = [slot for slot in self.former if len(slot)]
        if self.refills:
            self._steer_past_the_unserved()

    def _reconcile(self, slot: Slot) -> None:
        for child in slot.retired[:]:
            if not child.alive:
                slot.retired.remove(child)
                # Told to go or not: it was killed because it hung.
                self.crashes += child.aborted
                _logger.info("%s (process %d) is gone: %s", child.name, child.pid, child.end)
        if slot.holder is not None and not slot.holder.alive:
            self._lost(slot, slot.holder)
        if self.refills and slot.refill_at is not None and self._clock() >= slot.refill_at:
            self._refill(slot)
        self._reconcile_stand_in(slot)
        self._reconcile_successor(slot)

    def _reconcile_stand_in(self, slot: Slot) -> None:
        child = slot.stand_in
        if child is None:
            if self.refills and self._needs_stand_in(slot):
                self._hire_stand_in(slot)
        elif not child.alive:
            slot.stand_in = None
            if not self.refills:
                return
            self.crashes += 1
            wait = slot.backoff.crashed(child.healthy_seconds)
            slot.refill_at = self._clock() + wait
            _report(child, f"the next one in {wait:g} s, if it is needed")
        elif child.state == "ready":
            slot.promote_stand_in(self.plan.drain_seconds)

    def _needs_stand_in(self, slot: Slot) -> bool:
        holder = slot.holder
        return (
            slot.index is not None
            and holder is not None
            and holder.hung
            and holder.state == "ready"
            # A reload's worker will serve the slot as soon.
            and slot.successor is None
            and slot.refill_at is None
            and len(slot) < PROCESSES
        )

    def _hire_stand_in(self, slot: Slot) -> None:
        assert slot.index is not None
        try:
            slot.stand_in = self._hiring.stand_in(slot.index, self.plan, self.generation)
        except (OSError, BootError) as error:
            self._not_forked(slot, error)
        else:
            self._tell_newcomer(slot.stand_in)

    def _reconcile_successor(self, slot: Slot) -> None:
        if self.reloading:
            return
        child, holder = slot.successor, slot.holder
        if child is None:
            if (
                self.refills
                and not self.leaving
                and holder is not None
                and holder.wants_replacement
                and holder.state == "ready"
                and not holder.hung
                and slot.refill_at is None
                and len(slot) == 1
                # One slot at a time: so many processes boot, and so few connections change hands.
                and all(other.successor is None for other in self._places())
            ):
                _logger.info("%s (process %d) asks to be replaced", holder.name, holder.pid)
                try:
                    slot.successor = self.hire(slot)
                except (OSError, BootError) as error:
                    self._not_forked(slot, error)
                else:
                    holder.wants_replacement = False
        elif not child.alive:
            slot.successor = None
            if self.refills:
                _report(child, "the one before it goes on")
            else:
                _logger.info("%s (process %d) is gone: %s", child.name, child.pid, child.end)
        elif child.state == "ready" and not self.leaving:
            slot.promote(self.plan.drain_seconds)

    def _lost(self, slot: Slot, child: Child) -> None:
        slot.holder = None
        if not self.refills:
            _logger.info("%s (process %d) is gone: %s", child.name, child.pid, child.end)
            return
        self.crashes += 1
        wait = slot.backoff.crashed(child.healthy_seconds)
        if slot.close_ranks(reloading=self.reloading or self.leaving):
            _report(child, "its replacement is there")
            return
        slot.refill_at = self._clock() + wait
        _report(child, f"replaced in {wait:g} s" if wait else "replaced at once")

    def _refill(self, slot: Slot) -> None:
        slot.refill_at = None
        if slot.holder is not None:
            # What waited was its stand-in.
            return
        try:
            slot.holder = self.hire(slot)
        except (OSError, BootError) as error:
            self._not_forked(slot, error)

    def _not_forked(self, slot: Slot, error: Exception) -> None:
        _logger.error("no process could be forked: %s", error)
        slot.refill_at = self._clock() + max(1.0, slot.backoff.crashed(0.0))

    def _steer_past_the_unserved(self) -> None:
        leaving = frozenset(index for index, slot in enumerate(self.slots) if slot.leaving)
        away = leaving | {index for index, slot in enumerate(self.slots) if not slot.served}
        if len(away) == len(self.slots):
            # Who queues where nobody serves now is greeted later, but not where a slot goes.
            away = leaving
        for index in sorted(away - self.away):
            _logger.info("new connections go past slot %d", index)
        for index in sorted(self.away - away):
            _logger.info("slot %d gets new connections again", index)
        self.away = away
        if self._steer is not None:
            self._steer(away, len(self.slots))

    def next_refill(self) -> float | None:
        """Return when the next empty place is due, by the clock."""
        times = [slot.refill_at for slot in self._places() if slot.refill_at is not None]
        return min(times, default=None) if self.refills else None


def _report(child: Child, then: str) -> None:
    _logger.error("%s (process %d) is gone: %s; %s", child.name, child.pid, child.end, then)
    for problem in child.problems:
        _logger.error("%s: %s", child.name, problem)
