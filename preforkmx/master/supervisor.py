"""Master: starts the processes, keeps them running, reloads and drains them.

One thread, no event loop but a selector with a computed timeout. What takes several steps
(the start, a reload, the final drain) is a procedure; of these one runs at a time.
"""

from __future__ import annotations

import datetime as dt
import gc
import logging
import os
import signal
import time
from typing import TYPE_CHECKING

from preforkmx._version import __version__
from preforkmx.errors import BootError
from preforkmx.master.activation import take_passed_sockets
from preforkmx.master.errors import StartRefused
from preforkmx.master.handover import FORMAT, Handover
from preforkmx.master.hiring import Hiring
from preforkmx.master.holdings import SIGNALS, Holdings
from preforkmx.master.leaving import Drain, fast_stop
from preforkmx.master.notify import ServiceManager
from preforkmx.master.open_files import raise_open_files
from preforkmx.master.plan import MOST_SLOTS
from preforkmx.master.pool import Pool
from preforkmx.master.procedure import Procedure, Steps
from preforkmx.master.reexec import (
    adopted,
    all_signals_blocked,
    execute,
    plan_of_workers,
    unblock_signals,
)
from preforkmx.master.reload import Reload
from preforkmx.master.resizing import one_less, one_more
from preforkmx.master.starting import EXIT_BOOT, EXIT_REFUSED, Start
from preforkmx.master.status import status_document
from preforkmx.master.steering import Steering
from preforkmx.master.upgrade import Upgrade
from preforkmx.observe.log import LogWriter, configure_logging
from preforkmx.workers.checker import EXIT_CONFIGURATION
from preforkmx.workers.loops import loop_factory
from preforkmx.workers.process import set_title

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from preforkmx.master.control import Answer, ControlConnection
    from preforkmx.master.plan import Plan
    from preforkmx.master.status import Status

EXIT_STOPPED = 0
"""After any stop that was asked for."""

_logger = logging.getLogger("preforkmx.master")


class Master:
    """The master process.

    :param plan: what the first generation runs with.
    :param control: the path of the control socket.
    :param load: reads the configuration again for a reload; raises ConfigError with every
        problem.
    :param announce: called once, with the status document, when every slot is ready; not after
        a re-execution.
    :param handover: what the program left that was the master in this process before.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        control: Path,
        load: Callable[[], Plan],
        announce: Callable[[Status], None] | None = None,
        handover: Handover | None = None,
    ) -> None:
        self._plan = plan if handover is None else plan_of_workers(plan, handover)
        self._taken = handover
        self._control = control
        self._load = load
        self._announce = announce
        self._clock = time.monotonic
        self._started = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        self._state = "booting"
        self._exit_status: int | None = None
        self._terms = 0
        self._leaving: Drain | None = None
        self._reload: Reload | None = None
        self._reload_wanted = False
        self._reload_number = 1
        self._upgrade: Upgrade | None = None
        self._upgrade_wanted = False
        self._upgraded = False
        """Whether the reload that is under way is the first one of a new program."""
        self._slots_wanted = 0
        """How many slots more there shall be than there are, or fewer."""
        self._waiting_now: list[ControlConnection] = []
        self._waiting_next: list[ControlConnection] = []
        """For the next reload."""
        self._upgrading_next: list[ControlConnection] = []
        """For the next upgrade."""
        # Made in run().
        self._manager: ServiceManager
        self._holdings: Holdings
        self._hiring: Hiring
        self._pool: Pool
        self._start: Start
        self._procedure: Procedure | None = None

    def run(self) -> int:
        """Run until stopped, and return the exit status.

        0 after a stop that was asked for; 1 when a port is taken or not permitted; 2 when the
        checker finds the configuration wrong; 3 when a process cannot boot. After a
        re-execution whatever is wrong is 1.
        """
        self._configure_log(self._plan)
        self._manager = ServiceManager(os.environ, self._clock)
        set_title(f"master [{self._plan.hostname}]")
        # A parent that ignores SIGCHLD would make every exit status vanish.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        status = self._prepare()
        if status is not None:
            # The workers of an earlier program see their channels end, and drain.
            return status if self._taken is None else EXIT_REFUSED
        try:
            return self._supervise()
        except Exception:
            # The workers see their channels end, and drain: that loses no mail.
            _logger.exception("the master ends by an exception that nobody expected")
            return EXIT_REFUSED
        finally:
            self._holdings.close()

    def _prepare(self) -> int | None:
        """Have the holdings; return the exit status if that cannot be."""
        try:
            loop_factory(self._plan.loop)
        except BootError as error:
            _logger.error("%s", error)
            return EXIT_BOOT
        problem = raise_open_files(
            self._plan.max_sessions, self._plan.count, len(self._plan.listeners)
        )
        if problem is not None:
            _logger.error("%s", problem)
            return EXIT_CONFIGURATION
        if self._plan.identity is None and os.geteuid() == 0:
            _logger.warning("workers run as root: set workers.user")
        if self._taken is not None:
            return self._take_over(self._taken)
        try:
            passed = take_passed_sockets(os.environ)
            self._holdings = Holdings(self._plan, self._control, self._command, self._clock, passed)
        except StartRefused as refusal:
            _logger.error("%s", refusal)
            return EXIT_REFUSED
        return None

    def _configure_log(self, plan: Plan) -> None:
        # The writer is never started: no thread may exist while this process forks.
        configure_logging(
            LogWriter(), format=plan.log_format, level=plan.log_level, process="master"
        )

    def _supervise(self) -> int:
        holdings = self._holdings
        holdings.reactor.watch(holdings.inbox, self._take_signals)
        self._hiring = Hiring(holdings)
        self._pool = Pool(
            self._plan, self._hiring, self._clock, Steering(holdings.listeners.groups).steer
        )
        gc.collect()
        self._start = Start(self._pool, self._hiring, holdings, self._clock)
        if self._taken is None:
            self._procedure = Procedure(self._start.steps(), self._clock)
        else:
            self._go_on(self._taken)
        while self._exit_status is None:
            self._turn()
        _logger.info(
            "stopped: %s",
            ", ".join(f"{name} {count}" for name, count in holdings.totals.as_dict().items()),
        )
        return self._exit_status

    def _turn(self) -> None:
        holdings, pool = self._holdings, self._pool
        pool.reconcile()
        self._answer_admin()
        while self._procedure is not None:
            self._procedure.advance()
            if not self._procedure.done:
                break
            self._procedure = None
            self._procedure_done()
        if self._exit_status is None:
            holdings.reactor.turn(self._next_deadline() - self._clock())
            holdings.children.look(pool.plan.hang_seconds)
            self._manager.look(self._state, pool)
            holdings.control.expire()

    def _answer_admin(self) -> None:
        """Tell the admin process how things are, if it asks: it does so once a second at most."""
        holder = self._pool.admin.holder
        if holder is not None and holder.asks is not None:
            holder.tell(self._status())

    def _next_deadline(self) -> float:
        times = [self._holdings.children.next_look(), self._pool.next_refill()]
        if self._procedure is not None:
            times.append(self._procedure.deadline)
        return min(when for when in times if when is not None)

    # The start.

    def _started_up(self) -> None:
        self._pool.supervise()
        self._state = "ready"
        self._holdings.control.listen()
        self._manager.ready()
        _logger.info(
            "ready: %d workers listen on %s",
            self._plan.count,
            ", ".join(listener.address for listener in self._holdings.listeners.listeners),
        )
        self._tell()

    def _tell(self) -> None:
        if self._announce is None:
            return
        try:
            self._announce(self._status())
        except Exception:
            _logger.exception("the announcement failed")

    # What runs, and what comes after it.

    def _procedure_done(self) -> None:
        if self._state == "draining":
            self._exit_status = self._start.failure or EXIT_STOPPED
            return
        if self._state == "booting":
            if self._start.failure is not None:
                self._stop_fast()
                return
            self._started_up()
        self._answer_procedure()
        if self._upgrade_wanted:
            # It ends with a reload: who wants one is served too.
            self._upgrade_if_wanted()
        else:
            self._reload_if_wanted()
        self._resize_if_wanted()

    def _answer_procedure(self) -> None:
        if self._reload is not None:
            self._answer_reload()
        if self._upgrade is not None:
            self._end_upgrade()

    def _replace_procedure(self, steps: Steps) -> None:
        if self._procedure is not None:
            self._procedure.cancel()
        self._answer_procedure()
        self._procedure = Procedure(steps, self._clock)

    def _drain(self, *, lame_duck: bool) -> None:
        """Begin the final drain; one that is under way can lose its lame duck."""
        if self._state == "booting":
            self._stop_fast()
        elif self._state != "draining":
            self._state = "draining"
            self._manager.stopping()
            self._leaving = Drain(
                self._pool,
                self._holdings,
                self._clock,
                lame_duck_seconds=self._pool.plan.lame_duck_seconds if lame_duck else 0.0,
            )
            self._replace_procedure(self._leaving.steps())
            self._refuse_reloads()
        elif self._leaving is not None and not lame_duck:
            self._leaving.cut_short()

    def _stop_fast(self) -> None:
        if self._state != "draining":
            self._state = "draining"
            self._manager.stopping()
        self._replace_procedure(fast_stop(self._pool, self._holdings, self._clock))
        self._refuse_reloads()

    # Reloads.

    def _want_reload(self, connection: ControlConnection | None) -> None:
        """Reload now, or after the reload that is under way: it has read its files already."""
        if self._state == "draining":
            if connection is not None:
                connection.answer({"ok": False, "problems": ["the server is stopping"]})
            return
        self._reload_wanted = True
        # What the configuration says counts, and not what was asked for before.
        self._slots_wanted = 0
        if connection is not None:
            self._waiting_next.append(connection)
        if self._procedure is None:
            self._reload_if_wanted()

    def _reload_if_wanted(self) -> None:
        if not self._reload_wanted:
            return
        self._reload_wanted = False
        self._waiting_now, self._waiting_next = self._waiting_next, []
        self._reload_number += 1
        self._state = "reloading"
        self._manager.reloading()
        _logger.info("reloading: generation %d", self._reload_number)
        self._reload = Reload(
            self._pool,
            self._hiring,
            self._holdings.listeners,
            self._load,
            number=self._reload_number,
            clock=self._clock,
            admin=self._holdings.admin,
        )
        self._procedure = Procedure(self._reload.steps(), self._clock)

    def _answer_reload(self) -> None:
        assert self._reload is not None
        problems, self._reload = self._reload.problems, None
        if problems and self._upgraded:
            problems = [
                "the master is the new program, and the workers before it go on, because:",
                *problems,
            ]
        upgraded, self._upgraded = self._upgraded, False
        if upgraded and not problems:
            # It is no part of a reload, and runs the old program still. So does the store
            # process, which the workers of both programs use.
            self._pool.change_admin()
        self._end_reloading()
        if not problems:
            self._configure_log(self._pool.plan)
            set_title(f"master [{self._pool.plan.hostname}]")
        answer: Answer = {"generation": self._pool.generation}
        self._answer_waiting(problems, answer | {"version": __version__} if upgraded else answer)

    def _end_reloading(self) -> None:
        if self._state == "reloading":
            self._state = "ready"
            self._manager.ready()

    def _answer_waiting(self, problems: list[str], done: Answer | None = None) -> None:
        waiting, self._waiting_now = self._waiting_now, []
        for connection in waiting:
            if problems:
                connection.answer({"ok": False, "problems": problems})
            else:
                connection.answer({"ok": True, **(done or {})})

    def _refuse_reloads(self) -> None:
        self._reload_wanted = self._upgrade_wanted = False
        self._slots_wanted = 0
        waiting = [*self._waiting_next, *self._upgrading_next]
        self._waiting_next, self._upgrading_next = [], []
        for connection in waiting:
            connection.answer({"ok": False, "problems": ["the server is stopping"]})

    # Re-execution in place.

    def _want_upgrade(self, connection: ControlConnection | None) -> None:
        """Upgrade now, or after what is under way."""
        if self._state == "draining":
            if connection is not None:
                connection.answer({"ok": False, "problems": ["the server is stopping"]})
            return
        self._upgrade_wanted = True
        if connection is not None:
            self._upgrading_next.append(connection)
        if self._procedure is None:
            self._upgrade_if_wanted()

    def _upgrade_if_wanted(self) -> None:
        self._upgrade_wanted = False
        self._waiting_now, self._upgrading_next = self._upgrading_next, []
        self._state = "reloading"
        self._manager.reloading()
        _logger.info("upgrading: the new program is tried")
        self._upgrade = Upgrade(
            self._holdings.children, self._handover, generation=self._pool.generation
        )
        self._procedure = Procedure(self._upgrade.steps(), self._clock)

    def _end_upgrade(self) -> None:
        assert self._upgrade is not None
        upgrade, self._upgrade = self._upgrade, None
        problems = upgrade.problems
        if not problems:
            problems = [self._reexecute(upgrade)]
        self._end_reloading()
        self._answer_waiting(problems)

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
            self._take_signal(number)
        return problem

    def _handover(self, mask: Sequence[int] = (), signals: Sequence[int] = ()) -> Handover:
        plan = self._pool.plan
        return Handover(
            format=FORMAT,
            version=__version__,
            pid=os.getpid(),
            started=self._started,
            reloads=self._reload_number,
            identity=plan.identity,
            holdings=self._holdings.hand_over(plan.store),
            pool=self._pool.hand_over(),
            signals=tuple(int(number) for number in signals),
            mask=tuple(mask),
        )

    def _take_over(self, handover: Handover) -> int | None:
        try:
            self._holdings = Holdings.taken_over(handover.holdings, self._command, self._clock)
        except Exception:
            # The files of sockets stay, as after a kill: the next master finds them dead.
            _logger.exception("the new program cannot take over: the workers drain, and exit")
            return EXIT_REFUSED
        unblock_signals(handover, SIGNALS)
        return None

    def _go_on(self, handover: Handover) -> None:
        """Be the master of what an earlier program left, and let new workers take over."""
        self._pool.take_over(handover.pool, self._holdings.children)
        self._started, self._reload_number = handover.started, handover.reloads
        self._state = "ready"
        adopted()
        _logger.info("version %s took over from version %s", __version__, handover.version)
        self._upgraded = True
        self._waiting_next = self._holdings.control.waiting()
        self._want_reload(None)
        for number in handover.signals:
            self._take_signal(signal.Signals(number))

    # Slots.

    def _want_slots(self, more: int) -> None:
        """Have a slot more, or one less with -1, after what is under way."""
        if self._state == "draining":
            return
        self._slots_wanted = max(-MOST_SLOTS, min(self._slots_wanted + more, MOST_SLOTS))
        if self._procedure is None:
            self._resize_if_wanted()

    def _resize_if_wanted(self) -> None:
        if self._procedure is not None or self._slots_wanted == 0:
            return
        change, step = (one_more, 1) if self._slots_wanted > 0 else (one_less, -1)
        self._slots_wanted -= step
        steps = change(self._pool, self._holdings.listeners, self._clock)
        self._procedure = Procedure(steps, self._clock)

    # Orders.

    def _take_signals(self) -> None:
        for number in self._holdings.inbox.take():
            self._take_signal(number)

    def _take_signal(self, number: signal.Signals) -> None:
        if number == signal.SIGUSR1:
            _logger.warning("%s means nothing to this master", number.name)
            return
        _logger.info("%s", number.name)
        if number == signal.SIGTERM:
            self._terms += 1
            if self._terms > 1:
                self._stop_fast()
            else:
                self._drain(lame_duck=True)
        elif number in (signal.SIGINT, signal.SIGQUIT):
            self._stop_fast()
        elif number == signal.SIGHUP:
            self._want_reload(None)
        elif number == signal.SIGUSR2:
            self._want_upgrade(None)
        elif number in (signal.SIGTTIN, signal.SIGTTOU):
            self._want_slots(1 if number == signal.SIGTTIN else -1)

    def _command(self, connection: ControlConnection, command: str) -> None:
        if command == "status":
            connection.answer(self._status())
        elif command == "reload":
            self._want_reload(connection)
        elif command == "upgrade":
            self._want_upgrade(connection)
        elif command in ("drain", "stop", "stop-now"):
            if command == "stop-now":
                self._stop_fast()
            else:
                self._drain(lame_duck=command == "drain")
            connection.answer({"ok": True, "pid": os.getpid()}, hold=True)
        else:
            connection.answer({"ok": False, "problems": [f"there is no command {command!r}"]})

    def _status(self) -> Status:
        return status_document(
            self._pool,
            self._holdings,
            state=self._state,
            started=self._started,
            now=self._clock(),
        )
