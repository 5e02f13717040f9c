"""Errands: what the master does when it is asked to, one after the other, while it serves.

A reload, an upgrade, a slot more or less. An upgrade goes first: it ends with a reload, and who
wants one is served by that too. The start and the final drain are no errands.
"""

from __future__ import annotations

import logging
import os
import signal
from typing import TYPE_CHECKING

from preforkmx._version import __version__
from preforkmx.master.agenda import Agenda
from preforkmx.master.handover import FORMAT, Handover
from preforkmx.master.procedure import Procedure
from preforkmx.master.reexec import all_signals_blocked, execute
from preforkmx.master.reload import Reload
from preforkmx.master.resizing import one_less, one_more
from preforkmx.master.upgrade import Upgrade

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from preforkmx.master.control import Answer, ControlConnection
    from preforkmx.master.hiring import Hiring
    from preforkmx.master.holdings import Holdings
    from preforkmx.master.notify import ServiceManager
    from preforkmx.master.plan import Plan
    from preforkmx.master.pool import Pool
    from preforkmx.master.procedure import Steps

_logger = logging.getLogger("preforkmx.master")


class Errands:
    """The errands of a master that serves.

    :param load: reads the configuration again for a reload.
    :param clock: seconds that only grow.
    :param started: when the master started: RFC 3339, UTC.
    :param reloaded: called when a reload is done, before it is answered.
    :ivar agenda: what is to be done next.
    """

    def __init__(
        self,
        pool: Pool,
        hiring: Hiring,
        holdings: Holdings,
        manager: ServiceManager,
        *,
        load: Callable[[], Plan],
        clock: Callable[[], float],
        started: str,
        reloaded: Callable[[], None],
    ) -> None:
        self.agenda = Agenda()
        self._pool = pool
        self._hiring = hiring
        self._holdings = holdings
        self._manager = manager
        self._load = load
        self._clock = clock
        self._started = started
        self._reloaded = reloaded
        self._number = 1
        """Of the last reload that was tried."""
        self._procedure: Procedure | None = None
        self._reload: Reload | None = None
        self._upgrade: Upgrade | None = None
        self._waiting: list[ControlConnection] = []
        """For the end of what is under way."""
        self._upgraded = False
        """Whether the next reload, or the one that is under way, is the first of a new program."""
        self._admin_is_old = False
        """Whether the admin process runs the program before this one."""

    @property
    def reloading(self) -> bool:
        """Whether a reload or an upgrade is under way."""
        return self._reload is not None or self._upgrade is not None

    @property
    def deadline(self) -> float | None:
        """When what is under way goes on at the latest, by the clock."""
        return None if self._procedure is None else self._procedure.deadline

    def go_on(self, handover: Handover) -> None:
        """Begin with the reload that ends the upgrade to this program."""
        self._number = handover.reloads
        self._upgraded = self._admin_is_old = True
        self.agenda.want_reload(self._holdings.control.waiting())

    def advance(self) -> None:
        """Go on with what is under way, and begin what is next; call this in every turn."""
        while True:
            if self._procedure is None:
                self._begin()
            if self._procedure is None:
                return
            self._procedure.advance()
            if not self._procedure.done:
                return
            self._procedure = None
            self._end()

    def close(self) -> None:
        """Break off what is under way, and refuse what comes: the server stops."""
        if self._procedure is not None:
            self._procedure.cancel()
            self._procedure = None
        broken = self._reload or self._upgrade
        self._reload = self._upgrade = None
        if broken is not None:
            self._answer(broken.problems)
        self.agenda.close("the server is stopping")

    def _begin(self) -> None:
        if (waiting := self.agenda.take_upgrade()) is not None:
            self._begin_upgrade(waiting)
        elif (waiting := self.agenda.take_reload()) is not None:
            self._begin_reload(waiting)
        elif step := self.agenda.take_slot():
            change = one_more if step > 0 else one_less
            self._go_through(change(self._pool, self._holdings.listeners, self._clock))

    def _go_through(self, steps: Steps) -> None:
        self._procedure = Procedure(steps, self._clock)

    def _end(self) -> None:
        if self._reload is not None:
            self._end_reload(self._reload)
        elif self._upgrade is not None:
            self._end_upgrade(self._upgrade)

    def _answer(self, problems: list[str], done: Answer | None = None) -> None:
        waiting, self._waiting = self._waiting, []
        answer = {"ok": False, "problems": problems} if problems else {"ok": True, **(done or {})}
        for connection in waiting:
            connection.answer(answer)

    # Reloads.

    def _begin_reload(self, waiting: list[ControlConnection]) -> None:
        self._waiting = waiting
        self._number += 1
        self._manager.reloading()
        _logger.info("reloading: generation %d", self._number)
        self._reload = Reload(
            self._pool,
            self._hiring,
            self._holdings.listeners,
            self._load,
            number=self._number,
            clock=self._clock,
            admin=self._holdings.admin,
        )
        self._go_through(self._reload.steps())

    def _end_reload(self, reload: Reload) -> None:
        self._reload = None
        problems, answer = reload.problems, {"generation": self._pool.generation}
        upgraded, self._upgraded = self._upgraded, False
        if problems and upgraded:
            problems = [
                "the master is the new program, and the workers before it go on, because:",
                *problems,
            ]
        if not problems:
            self._renew_admin()
            self._reloaded()
        self._manager.ready()
        self._answer(problems, {**answer, "version": __version__} if upgraded else answer)

    def _renew_admin(self) -> None:
        """Let the first reload that is done after an upgrade replace the admin process too.

        It is no part of a reload, and runs the old program still. So does the store process,
        which the workers of both programs use.
        """
        if self._admin_is_old:
            self._admin_is_old = False
            self._pool.change_admin()

    # Upgrades.

    def _begin_upgrade(self, waiting: list[ControlConnection]) -> None:
        self._waiting = waiting
        self._manager.reloading()
        _logger.info("upgrading: the new program is tried")
        self._upgrade = Upgrade(
            self._holdings.children,
            self._handover,
            generation=self._pool.generation,
            foreign=self._holdings.foreign,
        )
        self._go_through(self._upgrade.steps())

    def _end_upgrade(self, upgrade: Upgrade) -> None:
        problems = upgrade.problems or [self._reexecute(upgrade)]
        self._upgrade = None
        self._manager.ready()
        self._answer(problems)

    def _reexecute(self, upgrade: Upgrade) -> str:
        """Become the new program; return why it cannot be done, when everything goes on."""
        # Who is gone has no process id any more that a place could be found by.
        self._pool.reconcile()
        _logger.info("upgrading: the new program takes over")
        signals: list[signal.Signals] = []
        try:
            with all_signals_blocked() as mask:
                signals = self._holdings.inbox.take()
                handover = self._handover(mask, signals)
                self._manager.alive()
                execute(upgrade.program, handover, {**os.environ, **self._manager.environment})
        except OSError as error:
            problem = error.strerror or str(error)
        _logger.error("the upgrade is refused: %s", problem)
        for number in signals:
            # Back into the inbox: this upgrade is to be answered first.
            signal.raise_signal(number)
        return problem

    def _handover(self, mask: Sequence[int] = (), signals: Sequence[int] = ()) -> Handover:
        plan = self._pool.plan
        return Handover(
            format=FORMAT,
            version=__version__,
            pid=os.getpid(),
            started=self._started,
            reloads=self._number,
            identity=plan.identity,
            holdings=self._holdings.hand_over(plan.store),
            pool=self._pool.hand_over(),
            signals=tuple(int(number) for number in signals),
            mask=tuple(mask),
        )
