"""Hiring: forks the processes of a plan: workers, store, admin process, checker."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from preforkmx.errors import BootError, ConfigError
from preforkmx.master.ownership import store_problems
from preforkmx.workers.admin import AdminSetup, run_admin
from preforkmx.workers.checker import run_checker
from preforkmx.workers.loops import loop_factory
from preforkmx.workers.privileges import drop
from preforkmx.workers.process import EXIT_BOOT
from preforkmx.workers.store import StoreSetup, run_store
from preforkmx.workers.worker import WorkerSetup, run_worker, worker_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from preforkmx.master.child import Child
    from preforkmx.master.holdings import Holdings
    from preforkmx.master.plan import Plan
    from preforkmx.workers.channel import Channel
    from preforkmx.workers.heartbeat import Cell

BOOT_SECONDS = 60.0
"""What a process gets from its fork to READY: the site's code is imported meanwhile."""
CHECK_SECONDS = 60.0
"""What the checker gets."""
KILL_SECONDS = 2.0
"""What a process that was told to be gone by a time gets beyond that."""


class Hiring:
    """Forks the processes of a plan.

    Every method raises OSError when no process or descriptor is to be had, and BootError when
    the plan's event loop is not installed.
    """

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings

    def worker(self, slot: int, plan: Plan, generation: int) -> Child:
        """Fork a worker on the slot's sockets."""
        return self._worker(slot, plan, generation)

    def stand_in(self, slot: int, plan: Plan, generation: int) -> Child:
        """Fork a worker on the sockets of a slot whose worker hangs; its name says so."""
        return self._worker(slot, plan, generation, stand_in=True)

    def _worker(self, slot: int, plan: Plan, generation: int, *, stand_in: bool = False) -> Child:
        holdings = self._holdings
        sockets = holdings.listeners.of_slot(slot, plan.listeners)
        factory = loop_factory(plan.loop)
        master_pid = os.getpid()

        def run(channel: Channel, cell: Cell) -> int:
            return run_worker(
                WorkerSetup(
                    slot=slot,
                    count=plan.count,
                    generation=generation,
                    sockets=sockets,
                    channel=channel,
                    cell=cell,
                    loop_factory=factory,
                    build_server=plan.build_server,
                    drain_seconds=plan.drain_seconds,
                    hang_seconds=plan.hang_seconds,
                    log_format=plan.log_format,
                    log_level=plan.log_level,
                    master_pid=master_pid,
                    stand_in=stand_in,
                    recycle_after_messages=plan.recycle_after_messages,
                )
            )

        return holdings.children.start(
            worker_name(slot, stand_in=stand_in),
            self._child(plan, run, sockets=[sock for sock, _ in sockets], holds_lifeline=True),
            generation=generation,
            boot_seconds=BOOT_SECONDS,
        )

    def store(self, plan: Plan, generation: int) -> Child:
        """Fork the store process; the plan has one."""
        holdings = self._holdings
        store, sock = plan.store, holdings.store_socket
        assert store is not None
        assert sock is not None
        factory = loop_factory(plan.loop)

        def run(channel: Channel, cell: Cell) -> int:
            return run_store(
                StoreSetup(
                    sock=sock,
                    database=store.database,
                    lifeline=holdings.lifeline[0],
                    channel=channel,
                    cell=cell,
                    loop_factory=factory,
                    drain_seconds=plan.drain_seconds,
                    log_format=plan.log_format,
                    log_level=plan.log_level,
                )
            )

        return holdings.children.start(
            "store",
            self._child(plan, run, sockets=[sock], reads_lifeline=True),
            generation=generation,
            boot_seconds=BOOT_SECONDS,
        )

    def admin(self, plan: Plan, generation: int) -> Child:
        """Fork the admin process; the plan has an address for it."""
        holdings = self._holdings
        sock = holdings.admin.sock
        assert sock is not None
        factory = loop_factory(plan.loop)

        def run(channel: Channel, cell: Cell) -> int:
            return run_admin(
                AdminSetup(
                    sock=sock,
                    channel=channel,
                    cell=cell,
                    loop_factory=factory,
                    log_format=plan.log_format,
                    log_level=plan.log_level,
                )
            )

        return holdings.children.start(
            "admin",
            self._child(plan, run, sockets=[sock]),
            generation=generation,
            boot_seconds=BOOT_SECONDS,
        )

    def checker(self, plan: Plan, generation: int) -> Child:
        """Fork a checker; it is gone when the check is done."""
        holdings = self._holdings

        def run(channel: Channel, _cell: Cell) -> int:
            return run_checker(
                partial(check_plan, plan),
                channel,
                log_format=plan.log_format,
                log_level=plan.log_level,
            )

        return holdings.children.start(
            "checker",
            self._child(plan, run),
            generation=generation,
            boot_seconds=CHECK_SECONDS,
        )

    def _child(
        self, plan: Plan, run: Callable[[Channel, Cell], int], **keeps: Any
    ) -> Callable[[Channel, Cell], int]:
        """Return what a child does: close what is the master's, drop its privileges, and run.

        :param keeps: what it does not close, as :meth:`Holdings.leave` takes it.
        """

        def become(channel: Channel, cell: Cell) -> int:
            self._holdings.leave(**keeps)
            try:
                drop(plan.identity)
            except BootError as error:
                channel.post_failure([str(error)])
                return EXIT_BOOT
            return run(channel, cell)

        return become


def check_plan(plan: Plan) -> None:
    """Try what a worker and the store process would do at their boot; called in their user.

    :raises ConfigError: with every problem.
    :raises BootError: something that is needed is missing.
    """
    if plan.store is not None and plan.identity is not None:
        problems = store_problems(plan.store)
        if problems:
            raise ConfigError(problems)
    plan.check()
