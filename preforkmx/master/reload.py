"""Reload: a new generation takes over from the old one, wholly or not at all.

Slot by slot a new worker is forked on the slot's sockets and becomes ready beside the old
one; both accept meanwhile. Only when the last of them is ready do the old ones retire. So a
worker that cannot boot leaves the old generation as it was, in every slot, and never a mix.

Listeners and slots may come and go with it (:mod:`preforkmx.master.changeover`). What comes
lets nobody in before the last worker is ready. What goes lets nobody in from then on, and the
old workers retire when they have greeted what was queued there.
"""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING

from preforkmx.errors import BootError, ConfigError, PreforkmxError
from preforkmx.master.admin_port import AdminPort
from preforkmx.master.changeover import Changeover
from preforkmx.master.errors import StartRefused
from preforkmx.master.hiring import BOOT_SECONDS, CHECK_SECONDS
from preforkmx.master.open_files import raise_open_files
from preforkmx.master.plan import Plan, restart_problems
from preforkmx.master.procedure import Steps, Wait
from preforkmx.master.queues import emptied
from preforkmx.master.resizing import make_room, still_full, warn_of_left
from preforkmx.master.starting import REAP_SECONDS
from preforkmx.workers.process import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from preforkmx.master.child import Child
    from preforkmx.master.hiring import Hiring
    from preforkmx.master.listeners import ListenerSockets
    from preforkmx.master.pool import Pool
    from preforkmx.master.slot import Slot

_logger = logging.getLogger("preforkmx.master")


class ReloadRefused(PreforkmxError):
    """The old generation goes on, for these reasons."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Reload:
    """One reload.

    :param sockets: the listeners' sockets.
    :param load: reads the configuration again; raises ConfigError with every problem.
    :param number: the new generation's.
    :param clock: seconds that only grow.
    :param admin: the admin process's port; None: there is none.
    :ivar problems: why it was refused; empty after a reload that was done.
    """

    def __init__(
        self,
        pool: Pool,
        hiring: Hiring,
        sockets: ListenerSockets,
        load: Callable[[], Plan],
        *,
        number: int,
        clock: Callable[[], float],
        admin: AdminPort | None = None,
    ) -> None:
        self._clock = clock
        self._admin = AdminPort() if admin is None else admin
        self._pool = pool
        self._hiring = hiring
        self._sockets = sockets
        self._load = load
        self._number = number
        self.problems: list[str] = ["the reload was broken off: the server is stopping"]

    def steps(self) -> Steps:
        """Go through it."""
        pool = self._pool
        try:
            plan = self._read()
            change = Changeover(self._sockets, plan.listeners, plan.count)
            problems = self._problems(plan, change)
            problems += yield from self._check(plan)
            if problems:
                raise ReloadRefused(problems)
            yield from self._no_other_replacement()
            pool.reloading = True
            yield from self._make_room(
                [slot for slot in (*pool.slots, *pool.former) if slot.index in range(plan.count)]
            )
            yield from self._install_all(plan, change)
        except ReloadRefused as refusal:
            self.problems = refusal.problems
            for problem in self.problems:
                _logger.error("the reload is refused: %s", problem)
        except Exception as error:
            # A bulkhead: whatever is wrong with a reload, the old generation goes on.
            self.problems = describe(error)
            _logger.exception("the reload is refused because of an exception that nobody expected")
        else:
            yield from self._part(plan, change)
            self._commit(plan)
            change.finish()
        finally:
            pool.reloading = False
            self._admin.undo()

    def _read(self) -> Plan:
        try:
            return self._load()
        except (ConfigError, BootError) as error:
            raise ReloadRefused(describe(error)) from error
        except Exception as error:
            _logger.exception("the configuration could not be read")
            raise ReloadRefused(describe(error)) from error
        finally:
            # What this and the last reading left in cycles (importlib.metadata does). Nobody else
            # collects it: each fork freezes what there is, which sets back the counts that a
            # collection of the old generation waits for.
            gc.collect()

    def _problems(self, plan: Plan, change: Changeover) -> list[str]:
        problems = restart_problems(self._pool.plan, plan) + change.problems()
        try:
            self._admin.prepare(plan.admin_address)
        except StartRefused as refusal:
            problems.append(str(refusal))
        # The sockets of what goes are there until the end.
        slots = max(plan.count, len(self._pool.slots))
        files = raise_open_files(plan.max_sessions, slots, change.ports)
        return problems if files is None else [*problems, files]

    def _check(self, plan: Plan) -> Generator[Wait, bool, list[str]]:
        checker = self._fork(lambda: self._hiring.checker(plan, self._number))
        try:
            yield Wait(lambda: not checker.alive, seconds=CHECK_SECONDS + REAP_SECONDS)
        finally:
            checker.kill()
        if checker.problems or checker.status != 0:
            return checker.problems or [f"the checker failed: {checker.end}"]
        return []

    def _no_other_replacement(self) -> Steps:
        """Wait until no worker is being replaced for another reason."""
        slots = self._pool.slots
        if not (
            yield Wait(
                lambda: all(slot.successor is None for slot in slots),
                seconds=BOOT_SECONDS + REAP_SECONDS,
            )
        ):
            raise ReloadRefused(["a worker that asked to be replaced still waits for it"])

    def _make_room(self, slots: Sequence[Slot]) -> Steps:
        full = yield from make_room(slots, self._pool.plan.drain_seconds, self._clock)
        if full:
            raise ReloadRefused(list(map(still_full, full)))

    def _install_all(self, plan: Plan, change: Changeover) -> Steps:
        """Have a new worker beside the old one in every slot; undo all of it if one fails."""
        pool = self._pool
        earlier = len(pool.slots)
        try:
            change.prepare(self._pool.away)
        except StartRefused as refusal:
            raise ReloadRefused([str(refusal)]) from refusal
        try:
            for index in range(plan.count):
                if index == len(pool.slots):
                    # Nobody is led there before the new generation serves.
                    pool.add_slot().leaving = True
                yield from self._install(pool.slots[index], plan)
        except GeneratorExit:
            # The server drains: both generations serve what they have to the end.
            raise
        except BaseException:
            while len(pool.slots) > earlier:
                pool.drop_slot()
            for slot in pool.slots:
                slot.dismiss_successor(pool.plan.drain_seconds)
            change.undo()
            raise

    def _install(self, slot: Slot, plan: Plan) -> Steps:
        # Whoever has retired since all slots were looked at.
        yield from self._make_room([slot])
        child = self._fork(lambda: self._pool.hire(slot, plan, self._number))
        slot.successor = child
        yield Wait(
            lambda: child.state != "booting" or self._broken() is not None,
            seconds=BOOT_SECONDS + REAP_SECONDS,
        )
        broken = self._broken() or (child if child.state != "ready" else None)
        if broken is not None:
            raise ReloadRefused(
                broken.problems or [f"{broken.name} could not be started: {broken.end}"]
            )

    def _part(self, plan: Plan, change: Changeover) -> Steps:
        """Open what is new, and empty the queues of what goes: there is no way back."""
        change.open()
        for slot in self._pool.slots:
            slot.leaving = slot.index is not None and slot.index >= plan.count
        if change.part():
            self._pool.hurry()
            # Connections are led away before the waiting begins, and not in the next turn.
            self._pool.reconcile()
            left = yield from emptied(change.waiting, self._clock)
            if left:
                warn_of_left(left)

    def _broken(self) -> Child | None:
        """Return a worker of the new generation that is gone."""
        for slot in self._pool.slots:
            if slot.successor is not None and not slot.successor.alive:
                return slot.successor
        return None

    def _fork(self, fork: Callable[[], Child]) -> Child:
        try:
            return fork()
        except (OSError, BootError) as error:
            raise ReloadRefused([f"no process could be forked: {error}"]) from error

    def _commit(self, plan: Plan) -> None:
        pool = self._pool
        seconds = pool.plan.drain_seconds
        pool.plan, pool.generation = plan, self._number
        while len(pool.slots) > plan.count:
            pool.drop_slot()
        for slot in pool.slots:
            slot.promote(seconds)
            slot.backoff.reset()
        if self._admin.take_over():
            pool.change_admin()
        self.problems = []
        _logger.info("generation %d serves; the workers before it retire", self._number)
