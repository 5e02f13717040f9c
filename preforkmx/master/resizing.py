"""Resizing: one worker slot more (TTIN), one slot less (TTOU).

The slot that comes gets its sockets first, on which nobody is led before its worker is ready.
The slot that goes is always the highest: the kernel moves the last socket of a group into the
place of one that is closed, and a slot's number is its place in the group.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from preforkmx.errors import BootError
from preforkmx.master.errors import StartRefused
from preforkmx.master.hiring import BOOT_SECONDS, KILL_SECONDS
from preforkmx.master.open_files import raise_open_files
from preforkmx.master.plan import MOST_SLOTS
from preforkmx.master.procedure import Steps, Wait
from preforkmx.master.queues import LONGEST_SECONDS, emptied
from preforkmx.master.slot import PROCESSES
from preforkmx.master.starting import REAP_SECONDS
from preforkmx.workers.process import describe
from preforkmx.workers.worker import ABORT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from preforkmx.master.listeners import ListenerSockets
    from preforkmx.master.plan import Plan
    from preforkmx.master.pool import Pool
    from preforkmx.master.slot import Slot

GRACE_SECONDS = 3.0
"""What the sessions of a retired worker get before the next reload ends the idle ones."""

_logger = logging.getLogger("preforkmx.master")


def one_more(pool: Pool, sockets: ListenerSockets, clock: Callable[[], float]) -> Steps:
    """Add a slot; a worker that cannot boot takes it away again."""
    count = len(pool.slots) + 1
    if count > MOST_SLOTS:
        _logger.warning("there are %d workers, and more there may not be", MOST_SLOTS)
        return
    plan = replace(pool.plan, count=count)
    problem = raise_open_files(plan.max_sessions, count, len(sockets.ports))
    if problem is not None:
        _logger.error("no worker is added: %s", problem)
        return
    try:
        sockets.grow(sockets.ports, pool.away)
    except StartRefused as refusal:
        _logger.error("no worker is added: %s", refusal)
        return
    slot = pool.add_slot()
    try:
        problems = yield from _fill(slot, pool, plan, clock)
    except Exception as error:
        _logger.exception("an exception that nobody expected, while a worker was added")
        problems = describe(error)
    if not problems:
        pool.have_slots(count)
        _logger.info("there are %d workers", count)
        return
    for problem in problems:
        _logger.error("no worker is added: %s", problem)
    _logger.info("there are %d workers, as before", count - 1)
    pool.drop_slot()
    sockets.shrink()


def _fill(
    slot: Slot, pool: Pool, plan: Plan, clock: Callable[[], float]
) -> Generator[Wait, bool, list[str]]:
    """Give a slot its first worker, and return why that cannot be."""
    if (yield from make_room([slot], pool.plan.drain_seconds, clock)):
        return [still_full(slot)]
    try:
        child = pool.hire(slot, plan)
    except (OSError, BootError) as error:
        return [f"no process could be forked: {error}"]
    slot.successor = child
    yield Wait(lambda: slot.holder is child or not child.alive, seconds=BOOT_SECONDS + REAP_SECONDS)
    if slot.holder is child:
        return []
    return [f"{child.name} could not be started: {text}" for text in child.problems or [child.end]]


def one_less(pool: Pool, sockets: ListenerSockets, clock: Callable[[], float]) -> Steps:
    """Let the highest slot go, once what is queued in it has been greeted."""
    if len(pool.slots) <= 1:
        _logger.warning("there is one worker, and fewer there may not be")
        return
    slot = pool.slots[-1]
    assert slot.index is not None
    index = slot.index
    slot.leaving = True
    pool.hurry()
    # Connections are led away before the waiting begins, and not in the next turn.
    pool.reconcile()
    left = yield from emptied(lambda: sockets.waiting([], [index]), clock)
    if left:
        warn_of_left(left)
    pool.drop_slot()
    sockets.shrink()
    pool.have_slots(len(pool.slots))
    _logger.info("there are %d workers", len(pool.slots))


def warn_of_left(left: int) -> None:
    """Say that connections are lost that no worker accepted."""
    _logger.warning("%d connections were queued and not accepted for %g s", left, LONGEST_SECONDS)


def make_room(
    slots: Sequence[Slot], seconds: float, clock: Callable[[], float]
) -> Generator[Wait, bool, list[Slot]]:
    """Wait until each slot has room for one more; return those that have none after all.

    Sessions of who still drains there get :data:`GRACE_SECONDS` to end by themselves: most do,
    and none of them sees a 421 because reloads follow each other. Then the idle ones are ended,
    and the others get `seconds`, in all slots at the same time. So processes never pile up in a
    slot.
    """

    def full() -> list[Slot]:
        return [slot for slot in slots if not _has_room(slot)]

    if not full() or (yield Wait(lambda: not full(), seconds=GRACE_SECONDS)):
        return []
    for child in (child for slot in full() for child in slot.retired):
        child.drain(seconds)
        child.kill_by(clock() + seconds + ABORT_SECONDS + KILL_SECONDS)
    wait = seconds + ABORT_SECONDS + KILL_SECONDS + REAP_SECONDS
    yield Wait(lambda: not full(), seconds=wait)
    return full()


def _has_room(slot: Slot) -> bool:
    """Whether nobody drains there who has to be waited for.

    A worker whose loop is silent would not hear of it, and is not waited for while the slot may
    have one process more: it retires when its loop returns, or is killed.
    """
    return not slot.retired or (all(child.hung for child in slot.retired) and len(slot) < PROCESSES)


def still_full(slot: Slot) -> str:
    """Say that a slot has no room."""
    return f"slot {slot.index} still has a process that cannot be ended"
