"""Starting: the checker, the ports, the store process, the workers, in this order."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from preforkmx.master.errors import StartRefused
from preforkmx.master.hiring import BOOT_SECONDS, CHECK_SECONDS, KILL_SECONDS
from preforkmx.master.procedure import Steps, Wait
from preforkmx.workers.checker import EXIT_CONFIGURATION

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from preforkmx.master.child import Child
    from preforkmx.master.hiring import Hiring
    from preforkmx.master.holdings import Holdings
    from preforkmx.master.pool import Pool
    from preforkmx.master.slot import Slot

EXIT_REFUSED = 1
"""A port is taken, something is not permitted, or another master runs."""
EXIT_BOOT = 3
"""A process could not boot."""

#: A process that is killed for being late is reaped well within this.
REAP_SECONDS = 4 * KILL_SECONDS
ORPHANED_STORE_SECONDS = 1.0
"""What the store process gets before the workers start all the same, when the master before
this one was killed."""

_logger = logging.getLogger("preforkmx.master")


class Start:
    """The start of a master that has its holdings.

    :ivar failure: the exit status that says why it failed, else None.
    """

    def __init__(
        self, pool: Pool, hiring: Hiring, holdings: Holdings, clock: Callable[[], float]
    ) -> None:
        self._pool = pool
        self._hiring = hiring
        self._holdings = holdings
        self._clock = clock
        self.failure: int | None = None

    def steps(self) -> Steps:
        """Go through it; what was forked when it fails is left to a fast stop."""
        try:
            yield from self._check()
            if self.failure is None:
                self._start_admin()
                # Not before the check: nobody shall queue at a port that is not served.
                self._holdings.listeners.open()
                yield from self._start_store()
            if self.failure is None:
                yield from self._start_workers()
        except StartRefused as refusal:
            _logger.error("%s", refusal)
            self.failure = EXIT_REFUSED
        except OSError as error:
            _logger.error("no process could be forked: %s", error)
            self.failure = EXIT_REFUSED

    def _check(self) -> Steps:
        checker = self._hiring.checker(self._pool.plan, self._pool.generation)
        try:
            yield Wait(lambda: not checker.alive, seconds=CHECK_SECONDS + REAP_SECONDS)
        finally:
            checker.kill()
        if checker.problems or checker.status != 0:
            wrong = checker.status == EXIT_CONFIGURATION
            self._fail(checker, EXIT_CONFIGURATION if wrong else EXIT_BOOT)

    def _start_admin(self) -> None:
        """Fork the admin process. Mail does not wait for it: it may be replaced later."""
        if self._pool.plan.admin_address:
            self._pool.admin.holder = self._pool.hire(self._pool.admin)

    def _start_store(self) -> Steps:
        store = self._pool.store
        if store is None:
            return
        if not self._holdings.control.replaced_dead:
            failed = yield from self._fill([store], BOOT_SECONDS + REAP_SECONDS)
            if failed is not None:
                self._fail(failed, EXIT_BOOT)
            return
        # The master before this one was killed. Its store process, which has the database,
        # ends after its last worker; until then ours is tried again and again, and the
        # workers keep limits of their own.
        failed = yield from self._fill([store], ORPHANED_STORE_SECONDS)
        if failed is not None:
            _logger.warning("the start goes on without the store: an earlier one may still end")

    def _start_workers(self) -> Steps:
        failed = yield from self._fill(self._pool.slots, BOOT_SECONDS + REAP_SECONDS)
        if failed is not None:
            self._fail(failed, EXIT_BOOT)

    def _fill(self, places: Sequence[Slot], seconds: float) -> Generator[Wait, bool, Child | None]:
        """Fork a process for each place, wait until all are ready; return one that is not."""
        children = []
        for slot in places:
            slot.holder = self._pool.hire(slot)
            children.append(slot.holder)
        yield Wait(
            lambda: (
                all(child.state == "ready" for child in children)
                or any(not child.alive for child in children)
            ),
            seconds=seconds,
        )
        failed = [child for child in children if child.state != "ready"]
        return min(failed, key=lambda child: child.alive, default=None)

    def _fail(self, child: Child, status: int) -> None:
        self.failure = status
        for problem in child.problems or [child.end]:
            _logger.error("%s could not start: %s", child.name, problem)
