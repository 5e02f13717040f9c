"""Holdings: every descriptor that is the master's, held for its whole life."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from preforkmx.master.admin_port import AdminPort
from preforkmx.master.children import Children
from preforkmx.master.control import ControlConnection, ControlServer
from preforkmx.master.handover import HoldingsState, StoreState
from preforkmx.master.listeners import ListenerSockets
from preforkmx.master.lock import MasterLock
from preforkmx.master.ownership import give, make_state_folder
from preforkmx.master.plan import MOST_SLOTS
from preforkmx.master.reactor import Reactor
from preforkmx.master.signals import SignalInbox
from preforkmx.master.slot import PROCESSES
from preforkmx.master.sockets import bind_unix
from preforkmx.master.totals import Totals
from preforkmx.workers.heartbeat import HeartbeatMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from preforkmx.master.plan import Plan, StorePlan

SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
)
"""What the master takes; those that mean nothing to it would otherwise stop or end it."""

STORE_BACKLOG = 1024
HELPERS = 8
"""Processes beside the workers at most: store, admin and checker, and those they replace."""


class Holdings:
    """What the master holds.

    :param plan: of the first generation.
    :param control: the control socket's path.
    :param handle: takes a command of the control socket.
    :param clock: seconds that only grow.
    :param passed: listening sockets that systemd made.
    :raises StartRefused: something is taken or not permitted; nothing is left behind.
    """

    def __init__(
        self,
        plan: Plan,
        control: Path,
        handle: Callable[[ControlConnection, str], None],
        clock: Callable[[], float],
        passed: Sequence[socket.socket] = (),
    ) -> None:
        self.totals = Totals()
        with ExitStack() as undo:
            self.lock = MasterLock(control)
            undo.callback(self.lock.close)
            self.listeners = ListenerSockets(plan.listeners, plan.count, passed)
            self.listeners.probe()
            self.admin = AdminPort(plan.admin_address)
            undo.callback(self.admin.close)
            self.reactor = Reactor()
            undo.callback(self.reactor.close)
            self.control = ControlServer(control, self.reactor, handle, clock)
            undo.callback(self.control.unlink)
            self._store_path: Path | None = None
            self.store_socket: socket.socket | None = None
            if plan.store is not None:
                self._store_path = plan.store.socket
                self.store_socket = bind_unix(plan.store.socket)
                undo.callback(self._close_store)
                give(plan.store.socket, plan.identity)
                make_state_folder(plan.store.database.parent, plan.identity)
                self.store_socket.listen(STORE_BACKLOG)
            self.lifeline = os.pipe()
            """Reading and writing end; see :mod:`preforkmx.workers.store`."""
            undo.callback(self._close_lifeline)
            # For all slots that there may ever be: pages that are never written take no memory.
            self.memory = HeartbeatMemory(PROCESSES * MOST_SLOTS + HELPERS)
            undo.callback(self.memory.close)
            self.children = Children(self.reactor, self.memory, self.totals, clock)
            self.inbox = SignalInbox(SIGNALS)
            self.foreign: list[Callable[[], None]] = []
            """Closes, in a child, what the master has for a while only."""
            undo.pop_all()

    def hand_over(self, store: StorePlan | None) -> HoldingsState:
        """Return what another program in this process needs to have all of it.

        :param store: the plan's.
        """
        return HoldingsState(
            lock=self.lock.fileno(),
            control=self.control.hand_over(),
            listeners=self.listeners.listeners,
            slots=self.listeners.count,
            ports=self.listeners.hand_over(),
            admin=self.admin.hand_over(),
            store=None
            if store is None or self.store_socket is None
            else StoreState(
                path=str(store.socket),
                database=str(store.database),
                socket=self.store_socket.fileno(),
            ),
            lifeline=self.lifeline,
            memory=self.memory.fd,
            children=self.children.hand_over(),
            totals=self.totals.hand_over(),
        )

    @classmethod
    def taken_over(
        cls,
        state: HoldingsState,
        handle: Callable[[ControlConnection, str], None],
        clock: Callable[[], float],
    ) -> Self:
        """Return what an earlier program in this process held.

        When it fails, this process can only exit: then the descriptors are closed.

        :raises OSError: a descriptor is none, or there is none to be had.
        """
        holdings = cls.__new__(cls)
        holdings.totals = Totals()
        holdings.totals.take_over(state.totals)
        holdings.lock = MasterLock.taken_over(state.lock)
        holdings.listeners = ListenerSockets.taken_over(state.listeners, state.slots, state.ports)
        holdings.admin = AdminPort.taken_over(state.admin)
        holdings.reactor = Reactor()
        holdings.control = ControlServer(
            Path(state.control.path), holdings.reactor, handle, clock, state.control
        )
        store = state.store
        holdings._store_path = None if store is None else Path(store.path)
        holdings.store_socket = None if store is None else socket.socket(fileno=store.socket)
        reader, writer = state.lifeline
        holdings.lifeline = reader, writer
        holdings.memory = HeartbeatMemory(0, state.memory)
        holdings.children = Children(holdings.reactor, holdings.memory, holdings.totals, clock)
        holdings.children.take_over(state.children)
        holdings.foreign = []
        # Last: from here on signals arrive.
        holdings.inbox = SignalInbox(SIGNALS)
        return holdings

    def leave(
        self,
        *,
        sockets: Collection[socket.socket] = (),
        reads_lifeline: bool = False,
        holds_lifeline: bool = False,
    ) -> None:
        """Close in a child what is the master's, save what this child needs.

        :param sockets: listening sockets that the child accepts from.
        """
        self.inbox.leave()
        for close in self.foreign:
            close()
        self.reactor.close()
        self.children.leave()
        self.control.leave()
        self.lock.close()
        self.memory.leave()
        self.listeners.leave(but=sockets)
        if self.store_socket is not None and self.store_socket not in sockets:
            self.store_socket.close()
        self.admin.leave(but=sockets)
        reader, writer = self.lifeline
        if not reads_lifeline:
            os.close(reader)
        if not holds_lifeline:
            os.close(writer)

    def close(self) -> None:
        """Let go of everything, in the order in which a next master needs it.

        The control connections come last: a client that waits for the end of this process can
        start the next one when its connection closes.
        """
        self.inbox.close()
        self.children.leave()
        self.listeners.close()
        self.admin.close()
        if self.store_socket is not None:
            self._close_store()
        self._close_lifeline()
        self.memory.close()
        self.control.unlink()
        self.lock.close()
        self.control.close()
        self.reactor.close()

    def _close_store(self) -> None:
        if self.store_socket is not None and self._store_path is not None:
            self.store_socket.close()
            self._store_path.unlink(missing_ok=True)

    def _close_lifeline(self) -> None:
        for end in self.lifeline:
            os.close(end)
