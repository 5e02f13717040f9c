"""Reload: a new generation takes over from the old one, wholly or not at all.

Slot by slot a new worker is forked on the slot's sockets and becomes ready beside the old
one; both accept meanwhile. Only when the last of them is ready do the old ones retire. So a
worker that cannot boot leaves the old generation as it was, in every slot, and never a mix.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from preforkmx.errors import BootError, ConfigError, PreforkmxError
from preforkmx.master.hiring import BOOT_SECONDS, CHECK_SECONDS, KILL_SECONDS
from preforkmx.master.open_files import raise_open_files
from preforkmx.master.plan import Plan, restart_problems
from preforkmx.master.procedure import Steps, Wait
from preforkmx.master.starting import REAP_SECONDS
from preforkmx.workers.process import describe
from preforkmx.workers.worker import ABORT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from preforkmx.master.child import Child
    from preforkmx.master.hiring import Hiring
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

    :param load: reads the configuration again; raises ConfigError with every problem.
    :param number: the new generation's.
    :param clock: seconds that only grow.
    :ivar problems: why it was refused; empty after a reload that was done.
    """

    def __init__(
        self,
        pool: Pool,
        hiring: Hiring,
        load: Callable[[], Plan],
        number: int,
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._pool = pool
        self._hiring = hiring
        self._load = load
        self._number = number
        self.problems: list[str] = ["the reload was broken off: the server is stopping"]

    def steps(self) -> Steps:
        """Go through it."""
        pool = self._pool
        try:
            plan = self._read()
            yield from self._check(plan)
            yield from self._no_other_replacement()
            pool.reloading = True
            for slot in pool.slots:
                yield from self._install(slot, plan)
            self._commit(plan)
        except ReloadRefused as refusal:
            self.problems = refusal.problems
            for problem in self.problems:
                _logger.error("the reload is refused: %s", problem)
            if pool.reloading:
                for slot in pool.slots:
                    slot.dismiss_successor(pool.plan.drain_seconds)
        finally:
            pool.reloading = False

    def _read(self) -> Plan:
        try:
            plan = self._load()
        except (ConfigError, BootError) as error:
            raise ReloadRefused(describe(error)) from error
        except Exception as error:
            _logger.exception("the configuration could not be read")
            raise ReloadRefused(describe(error)) from error
        problems = restart_problems(self._pool.plan, plan)
        files = raise_open_files(plan.max_sessions, plan.count * len(plan.listeners))
        if files is not None:
            problems.append(files)
        if problems:
            raise ReloadRefused(problems)
        return plan

    def _check(self, plan: Plan) -> Steps:
        checker = self._fork(lambda: self._hiring.checker(plan, self._number))
        try:
            yield Wait(lambda: not checker.alive, seconds=CHECK_SECONDS + REAP_SECONDS)
        finally:
            checker.kill()
        if checker.problems or checker.status != 0:
            raise ReloadRefused(checker.problems or [f"the checker failed: {checker.end}"])

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

    def _install(self, slot: Slot, plan: Plan) -> Steps:
        if slot.retired:
            # A slot has two processes at most: who still drains from an earlier reload ends
            # its idle sessions now, and gets the deadline of a drain for the others.
            seconds = self._pool.plan.drain_seconds
            for child in slot.retired:
                child.drain(seconds)
                child.kill_by(self._clock() + seconds + ABORT_SECONDS + KILL_SECONDS)
            wait = seconds + ABORT_SECONDS + KILL_SECONDS + REAP_SECONDS
            if not (yield Wait(lambda: not slot.retired, seconds=wait)):
                raise ReloadRefused([f"slot {slot.index} still has a process that cannot be ended"])
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
        for slot in pool.slots:
            slot.promote(seconds)
            slot.backoff.reset()
        self.problems = []
        _logger.info("generation %d serves; the workers before it retire", self._number)
