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

from preforkmx.errors import BootError
from preforkmx.master.activation import take_passed_sockets
from preforkmx.master.errors import StartRefused
from preforkmx.master.hiring import Hiring
from preforkmx.master.holdings import Holdings
from preforkmx.master.leaving import Drain, fast_stop
from preforkmx.master.notify import ServiceManager
from preforkmx.master.open_files import raise_open_files
from preforkmx.master.plan import MOST_SLOTS
from preforkmx.master.pool import Pool
from preforkmx.master.procedure import Procedure, Steps
from preforkmx.master.reload import Reload
from preforkmx.master.resizing import one_less, one_more
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
    :param announce: called once, with the status document, when every slot is ready.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        control: Path,
        load: Callable[[], Plan],
        announce: Callable[[Status], None] | None = None,
    ) -> None:
        self._plan = plan
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
        self._slots_wanted = 0
        """How many slots more there shall be than there are, or fewer."""
        self._waiting_now: list[ControlConnection] = []
        self._waiting_next: list[ControlConnection] = []
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
        checker finds the configuration wrong; 3 when a process cannot boot.
        """
        self._configure_log(self._plan)
        self._manager = ServiceManager(os.environ, self._clock)
        set_title(f"master [{self._plan.hostname}]")
        # A parent that ignores SIGCHLD would make every exit status vanish.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            loop_factory(self._plan.loop)
        except BootError as error:
            _logger.error("%s", error)
            return EXIT_BOOT
        problem = raise_open_files(
            self._plan.max_sessions, self._plan.count * len(self._plan.listeners)
        )
        if problem is not None:
            _logger.error("%s", problem)
            return EXIT_CONFIGURATION
        if self._plan.identity is None and os.geteuid() == 0:
            _logger.warning("workers run as root: set workers.user")
        try:
            passed = take_passed_sockets(os.environ)
            self._holdings = Holdings(self._plan, self._control, self._command, self._clock, passed)
        except StartRefused as refusal:
            _logger.error("%s", refusal)
            return EXIT_REFUSED
        try:
            return self._supervise()
        except Exception:
            # The workers see their channels end, and drain: that loses no mail.
            _logger.exception("the master ends by an exception that nobody expected")
            return EXIT_REFUSED
        finally:
            self._holdings.close()

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
        self._procedure = Procedure(self._start.steps(), self._clock)
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
        if self._reload is not None:
            self._answer_reload()
        self._reload_if_wanted()
        self._resize_if_wanted()

    def _replace_procedure(self, steps: Steps) -> None:
        if self._procedure is not None:
            self._procedure.cancel()
        if self._reload is not None:
            self._answer_reload()
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
        if self._state == "reloading":
            self._state = "ready"
            self._manager.ready()
        if not problems:
            self._configure_log(self._pool.plan)
            set_title(f"master [{self._pool.plan.hostname}]")
        waiting, self._waiting_now = self._waiting_now, []
        for connection in waiting:
            if problems:
                connection.answer({"ok": False, "problems": problems})
            else:
                connection.answer({"ok": True, "generation": self._pool.generation})

    def _refuse_reloads(self) -> None:
        self._reload_wanted = False
        self._slots_wanted = 0
        waiting, self._waiting_next = self._waiting_next, []
        for connection in waiting:
            connection.answer({"ok": False, "problems": ["the server is stopping"]})

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
            if number == signal.SIGTERM:
                self._terms += 1
                _logger.info("SIGTERM")
                if self._terms > 1:
                    self._stop_fast()
                else:
                    self._drain(lame_duck=True)
            elif number in (signal.SIGINT, signal.SIGQUIT):
                _logger.info("%s", number.name)
                self._stop_fast()
            elif number == signal.SIGHUP:
                _logger.info("SIGHUP")
                self._want_reload(None)
            elif number in (signal.SIGTTIN, signal.SIGTTOU):
                _logger.info("%s", number.name)
                self._want_slots(1 if number == signal.SIGTTIN else -1)
            else:
                _logger.warning("%s means nothing to this master", number.name)

    def _command(self, connection: ControlConnection, command: str) -> None:
        if command == "status":
            connection.answer(self._status())
        elif command == "reload":
            self._want_reload(connection)
        elif command in ("drain", "stop", "stop-now"):
            if command == "stop-now":
                self._stop_fast()
            else:
                self._drain(lame_duck=command == "drain")
            connection.answer({"ok": True, "pid": os.getpid()}, hold=True)
        else:
            connection.answer({"ok": False, "problems": [f"there is no command {command!r}"]})

    def _status(self) -> Status:
        return status_document(self._pool, self._holdings, state=self._state, started=self._started)
