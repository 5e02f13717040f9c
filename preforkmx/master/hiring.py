"""Hiring: forks the workers, the store process and the checker of a plan."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from preforkmx.workers.checker import run_checker
from preforkmx.workers.loops import loop_factory
from preforkmx.workers.store import StoreSetup, run_store
from preforkmx.workers.worker import WorkerSetup, run_worker

if TYPE_CHECKING:
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
        holdings = self._holdings
        sockets = holdings.listeners.of_slot(slot, plan.listeners)
        factory = loop_factory(plan.loop)
        master_pid = os.getpid()

        def run(channel: Channel, cell: Cell) -> int:
            holdings.leave(sockets=[sock for sock, _ in sockets], holds_lifeline=True)
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
                    log_format=plan.log_format,
                    log_level=plan.log_level,
                    master_pid=master_pid,
                )
            )

        return holdings.children.start(
            f"worker {slot}", run, generation=generation, boot_seconds=BOOT_SECONDS
        )

    def store(self, plan: Plan, generation: int) -> Child:
        """Fork the store process; the plan has one."""
        holdings = self._holdings
        store, sock = plan.store, holdings.store_socket
        assert store is not None
        assert sock is not None
        factory = loop_factory(plan.loop)

        def run(channel: Channel, cell: Cell) -> int:
            holdings.leave(sockets=[sock], reads_lifeline=True)
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
            "store", run, generation=generation, boot_seconds=BOOT_SECONDS
        )

    def checker(self, plan: Plan, generation: int) -> Child:
        """Fork a checker; it is gone when the check is done."""
        holdings = self._holdings

        def run(channel: Channel, _cell: Cell) -> int:
            holdings.leave()
            return run_checker(
                plan.check, channel, log_format=plan.log_format, log_level=plan.log_level
            )

        return holdings.children.start(
            "checker", run, generation=generation, boot_seconds=CHECK_SECONDS
        )
