"""Pool: keeps every slot, and the store's place, held by one process.

After each turn of the master's loop :meth:`Pool.reconcile` looks at the facts (who is gone,
who is ready) and does what follows from them. It keeps no plan of its own that could differ
from the facts.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from preforkmx.errors import BootError
from preforkmx.master.slot import Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from preforkmx.master.child import Child
    from preforkmx.master.hiring import Hiring
    from preforkmx.master.plan import Plan

_logger = logging.getLogger("preforkmx.master")


class Pool:
    """The processes of the server and their places.

    :param plan: what new processes run with; a reload changes it.
    """

    def __init__(self, plan: Plan, hiring: Hiring, clock: Callable[[], float]) -> None:
        self.plan = plan
        self.generation = 1
        self.slots = [Slot(index) for index in range(plan.count)]
        self.store = Slot(None) if plan.store is not None else None
        self.crashes = 0
        """Processes that ended without being told to, since the start."""
        self.refills = False
        """Whether an empty place is filled again: from the end of the start to the drain."""
        self.reloading = False
        """Whether a reload decides when a successor takes over."""
        self._hiring = hiring
        self._clock = clock

    def workers(self) -> Iterator[Child]:
        """Every worker that has not been reaped."""
        for slot in self.slots:
            yield from slot

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
        if slot.index is None:
            return self._hiring.store(plan, generation)
        return self._hiring.worker(slot.index, plan, generation)

    def supervise(self) -> None:
        """Fill empty places from now on, also one that lost its process during the start."""
        self.refills = True
        for slot in self._places():
            if slot.holder is None:
                slot.refill_at = self._clock()

    def _places(self) -> list[Slot]:
        return self.slots if self.store is None else [*self.slots, self.store]

    def reconcile(self) -> None:
        """Do what follows from what has happened; call this in every turn."""
        for slot in self._places():
            self._reconcile(slot)

    def _reconcile(self, slot: Slot) -> None:
        for child in slot.retired[:]:
            if not child.alive:
                slot.retired.remove(child)
                _logger.info("%s (process %d) is gone: %s", child.name, child.pid, child.end)
        if slot.holder is not None and not slot.holder.alive:
            self._lost(slot, slot.holder)
        self._reconcile_successor(slot)
        if self.refills and slot.refill_at is not None and self._clock() >= slot.refill_at:
            self._refill(slot)

    def _reconcile_successor(self, slot: Slot) -> None:
        if self.reloading:
            return
        child, holder = slot.successor, slot.holder
        if child is None:
            if (
                self.refills
                and holder is not None
                and holder.wants_replacement
                and holder.state == "ready"
                and not slot.retired
            ):
                holder.wants_replacement = False
                _logger.info("%s (process %d) asks to be replaced", holder.name, holder.pid)
                slot.successor = self._try_hire(slot)
        elif not child.alive:
            slot.successor = None
            _report(child, "the one before it goes on")
        elif child.state == "ready":
            slot.promote(self.plan.drain_seconds)

    def _lost(self, slot: Slot, child: Child) -> None:
        slot.holder = None
        if not self.refills:
            _logger.info("%s (process %d) is gone: %s", child.name, child.pid, child.end)
            return
        self.crashes += 1
        wait = slot.backoff.crashed(child.healthy_seconds)
        slot.refill_at = self._clock() + wait
        _report(child, f"replaced in {wait:g} s" if wait else "replaced at once")

    def _refill(self, slot: Slot) -> None:
        slot.refill_at = None
        slot.holder = self._try_hire(slot)
        if slot.holder is None:
            slot.refill_at = self._clock() + max(1.0, slot.backoff.crashed(0.0))

    def _try_hire(self, slot: Slot) -> Child | None:
        try:
            return self.hire(slot)
        except (OSError, BootError) as error:
            _logger.error("no process could be forked: %s", error)
            return None

    def next_refill(self) -> float | None:
        """Return when the next empty place is due, by the clock."""
        times = [slot.refill_at for slot in self._places() if slot.refill_at is not None]
        return min(times, default=None) if self.refills else None


def _report(child: Child, then: str) -> None:
    _logger.error("%s (process %d) is gone: %s; %s", child.name, child.pid, child.end, then)
    for problem in child.problems:
        _logger.error("%s: %s", child.name, problem)
