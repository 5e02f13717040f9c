"""Master: starts the processes, keeps them running, reloads and drains them.

One thread, no event loop but a selector with a computed timeout. What takes several steps
(the start, a reload, the final drain) is a procedure; of these one runs at a time: the start,
then errands (:mod:`preforkmx.master.errands`), then the drain.
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
from preforkmx.master.errands import Errands
from preforkmx.master.errors import StartRefused
from preforkmx.master.hiring import Hiring
from preforkmx.master.holdings import SIGNALS, Holdings
from preforkmx.master.leaving import Drain, fast_stop
from preforkmx.master.notify import ServiceManager
from preforkmx.master.open_files import raise_open_files
from preforkmx.master.pool import Pool
from preforkmx.master.procedure import Procedure, Steps
from preforkmx.master.reexec import adopted, plan_of_workers, unblock_signals
from preforkmx.master.starting import EXIT_BOOT, EXIT_REFUSED, Start
from preforkmx.master.status import status_document
from preforkmx.master.steering import Steering
from preforkmx.observe.log import LogWriter, configure_logging
from preforkmx.workers.checker import EXIT_CONFIGURATION
from preforkmx.workers.loops import loop_factory
from preforkmx.workers.process import set_title

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from preforkmx.master.control import ControlConnection
    from preforkmx.master.handover import Handover
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
        # Made in run().
        self._manager: ServiceManager
        self._holdings: Holdings
        self._hiring: Hiring
        self._pool: Pool
        self._start: Start
        self._errands: Errands
        self._procedure: Procedure | None = None
        """The start, or the end."""

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
        if self._taken is not None:
            self._started = self._taken.started
        self._errands = Errands(
            self._pool,
            self._hiring,
            holdings,
            self._manager,
            load=self._load,
            clock=self._clock,
            started=self._started,
            reloaded=self._reloaded,
        )
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
        self._advance()
        if self._exit_status is None:
            holdings.reactor.turn(self._next_deadline() - self._clock())
            holdings.children.look(pool.plan.hang_seconds)
            self._manager.look(self._shown_state, pool)
            holdings.control.expire()

    def _advance(self) -> None:
        while self._procedure is not None:
            self._procedure.advance()
            if not self._procedure.done:
                return
            self._procedure = None
            self._procedure_done()
        if self._state == "ready":
            self._errands.advance()

    @property
    def _shown_state(self) -> str:
        return "reloading" if self._errands.reloading else self._state

    def _answer_admin(self) -> None:
        """Tell the admin process how things are, if it asks: it does so once a second at most."""
        holder = self._pool.admin.holder
        if holder is not None and holder.asks is not None:
            holder.tell(self._status())

    def _next_deadline(self) -> float:
        times = [
            self._holdings.children.next_look(),
            self._pool.next_refill(),
            self._errands.deadline,
        ]
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

    def _procedure_done(self) -> None:
        if self._state == "draining":
            self._exit_status = self._start.failure or EXIT_STOPPED
        elif self._start.failure is not None:
            self._stop_fast()
        else:
            self._started_up()

    # The end.

    def _replace_procedure(self, steps: Steps) -> None:
        if self._procedure is not None:
            self._procedure.cancel()
        self._errands.close()
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
        elif self._leaving is not None and not lame_duck:
            self._leaving.cut_short()

    def _stop_fast(self) -> None:
        if self._state != "draining":
            self._state = "draining"
            self._manager.stopping()
        self._replace_procedure(fast_stop(self._pool, self._holdings, self._clock))

    # Reloads, and re-execution in place.

    def _reloaded(self) -> None:
        self._configure_log(self._pool.plan)
        set_title(f"master [{self._pool.plan.hostname}]")

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
        self._state = "ready"
        adopted()
        _logger.info("version %s took over from version %s", __version__, handover.version)
        self._errands.go_on(handover)
        for number in handover.signals:
            self._take_signal(signal.Signals(number))

    # Orders.

    def _take_signals(self) -> None:
        for number in self._holdings.inbox.take():
            self._take_signal(number)

    def _take_signal(self, number: signal.Signals) -> None:
        if number == signal.SIGUSR1:
            _logger.warning("%s means nothing to this master", number.name)
            return
        _logger.info("%s", number.name)
        agenda = self._errands.agenda
        if number == signal.SIGTERM:
            self._terms += 1
            if self._terms > 1:
                self._stop_fast()
            else:
                self._drain(lame_duck=True)
        elif number in (signal.SIGINT, signal.SIGQUIT):
            self._stop_fast()
        elif number == signal.SIGHUP:
            agenda.want_reload()
        elif number == signal.SIGUSR2:
            agenda.want_upgrade()
        elif number in (signal.SIGTTIN, signal.SIGTTOU):
            agenda.want_slots(1 if number == signal.SIGTTIN else -1)

    def _command(self, connection: ControlConnection, command: str) -> None:
        if command == "status":
            connection.answer(self._status())
        elif command == "reload":
            self._errands.agenda.want_reload([connection])
        elif command == "upgrade":
            self._errands.agenda.want_upgrade([connection])
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
            state=self._shown_state,
            started=self._started,
            now=self._clock(),
        )
