"""The worker process: one event loop, one server, one slot's sockets.

Its life: ``booting`` (the site's code is imported, lifespans are entered) → ``ready`` (it
accepts) → ``draining`` (its listeners are closed, sessions end) → gone. It leaves in one of
three ways, and a later order can only make it leave faster:

======  =============================================  ====================================
way     because of                                     sessions
======  =============================================  ====================================
retire  RETIRE: another worker has the slot            end by themselves; past the deadline
                                                       421 at the next command
drain   DRAIN; or the master is gone, which the end    421 when idle, others after their
        of the channel or SIGTERM tells                transaction; past the deadline 421,
                                                       and 5 s later they are aborted
stop    STOP                                           are aborted
======  =============================================  ====================================
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from preforkmx.workers import loops, process
from preforkmx.workers.heartbeat import Heart, Vitals
from preforkmx.workers.last_watch import LastWatch
from preforkmx.workers.recycling import Recycling
from preforkmx.workers.seat import WorkerSeat

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from preforkmx.server import Server
    from preforkmx.session.acceptor import Acceptor
    from preforkmx.session.listener import Listener
    from preforkmx.workers.channel import Channel
    from preforkmx.workers.heartbeat import Cell

REPORT_SECONDS = 1.0
"""How often counters go to the master and the process title is written."""
ABORT_SECONDS = 5.0
"""From the deadline of a drain, when transactions are aborted, to the end of every transport."""
CLOSE_SECONDS = 1.0
"""What aborted sessions get to run their disconnect hooks."""
RETIRED_SECONDS = 3600.0
"""From the deadline of a RETIRE, which only speaks at a command, to a drain without one."""
LIFESPAN_SECONDS = 5.0
"""What the lifespans of middleware get to close."""
LAST_WORDS_SECONDS = 1.0
"""What the last counters get to fit into the channel, and log lines to be written."""
LAST_WORDS = 50
"""How often the worker tries, in that time."""

_logger = logging.getLogger("preforkmx.workers")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """All that a worker needs; it exists before the fork.

    :param sockets: the slot's listening sockets, and what each of them listens for; a unix
        socket is every slot's.
    :param channel: the worker's end.
    :param loop_factory: from :func:`preforkmx.workers.loops.loop_factory`.
    :param build_server: called after the fork; imports the site's code.
    :param drain_seconds: for a drain that nobody ordered: the master is gone.
    :param master_pid: the master's process id.
    :param hang_seconds: a loop that is silent for so long ends the worker when no master does.
    :param stand_in: it was forked because the loop of the slot's worker is silent.
    :param recycle_after_messages: it asks to be replaced after about so many; 0: never.
    """

    slot: int
    count: int
    generation: int
    sockets: Sequence[tuple[socket.socket, Listener]]
    channel: Channel
    cell: Cell
    loop_factory: Callable[[], asyncio.AbstractEventLoop]
    build_server: Callable[[WorkerSeat], Server]
    drain_seconds: float
    log_format: str
    log_level: str
    master_pid: int
    hang_seconds: float = 30.0
    stand_in: bool = False
    recycle_after_messages: int = 0


def worker_name(slot: int, *, stand_in: bool) -> str:
    """Return what the log and the process title call a worker."""
    return f"worker {slot} stand-in" if stand_in else f"worker {slot}"


class Way(enum.IntEnum):
    """How a worker leaves, the gentlest first."""

    RETIRE = 1
    DRAIN = 2
    STOP = 3


def run_worker(setup: WorkerSetup) -> int:
    """Be a worker until the end, and return the exit status; called in the child."""
    name = worker_name(setup.slot, stand_in=setup.stand_in)
    process.die_with_parent(signal.SIGTERM)
    log = process.settle(
        f"{name} booting",
        log_format=setup.log_format,
        log_level=setup.log_level,
        log_name=name,
    )
    try:
        seat = WorkerSeat(setup.slot, setup.count, setup.generation, log)
        try:
            server = setup.build_server(seat)
        except Exception as error:
            _logger.debug("the server could not be built", exc_info=True)
            setup.channel.post_failure(process.describe(error))
            return process.EXIT_BOOT
        return loops.run(setup.loop_factory, Worker(setup, server, seat).run)
    except Exception as error:
        _logger.exception("the worker ends by an exception that nobody expected")
        setup.channel.post_failure(process.describe(error))
        return process.EXIT_CRASHED
    finally:
        log.close(LAST_WORDS_SECONDS)


class Worker:
    """A worker inside its loop."""

    def __init__(self, setup: WorkerSetup, server: Server, seat: WorkerSeat) -> None:
        self._setup = setup
        self._server = server
        self._seat = seat
        self._channel = setup.channel
        self._name = worker_name(setup.slot, stand_in=setup.stand_in)
        self._recycling = Recycling(setup.recycle_after_messages)
        self._state = "booting"
        self._title = ""
        self._way: Way | None = None
        self._told = asyncio.Event()
        self._gave_up = asyncio.Event()
        self._timers: list[asyncio.TimerHandle] = []
        self._sent: dict[str, int] = {}
        self._acceptors: list[Acceptor] = []
        # Set in run(), where the loop is.
        self._loop: asyncio.AbstractEventLoop
        self._boot: asyncio.Task[object] | None = None

    async def run(self) -> int:
        """Boot, serve until told to leave, leave; return the exit status."""
        setup = self._setup
        watch = LastWatch(self._channel, setup.cell, setup.hang_seconds)
        try:
            return await self._live(watch)
        finally:
            watch.stop()

    async def _live(self, watch: LastWatch) -> int:
        self._loop = asyncio.get_running_loop()
        self._boot = asyncio.current_task()
        self._loop.add_signal_handler(signal.SIGTERM, self._terminated)
        self._loop.add_reader(self._channel.fileno(), self._hear)
        Heart(self._loop, self._setup.cell, self._vitals).start()
        watch.start()
        lifespans = AsyncExitStack()
        try:
            await lifespans.enter_async_context(self._server.started())
        except asyncio.CancelledError:
            if self._way is None:
                raise
            return process.EXIT_ASKED
        except Exception as error:
            _logger.exception("the server could not be started")
            self._channel.post_failure(process.describe(error))
            return process.EXIT_BOOT
        self._boot = None
        self._serve()
        await self._told.wait()
        await self._no_session_left()
        await self._close(lifespans)
        return process.EXIT_ASKED

    def _serve(self) -> None:
        # What was said while it booted, before the first connection.
        self._hear()
        if self._way is None:
            for sock, listener in self._setup.sockets:
                acceptor = self._server.acceptor(sock, listener)
                self._acceptors.append(acceptor)
                acceptor.start()
            self._state = "ready"
            # The process list says so when the master does, not a moment later.
            self._show()
            self._channel.post("ready")
        self._report()

    # Orders.

    def _hear(self) -> None:
        for message in self._channel.receive():
            kind, seconds = message["type"], message.get("seconds")
            deadline = float(seconds) if isinstance(seconds, int | float) else 0.0
            if kind == "retire":
                self._leave(Way.RETIRE, deadline)
            elif kind == "drain":
                self._leave(Way.DRAIN, deadline)
            elif kind == "stop":
                self._leave(Way.STOP)
            elif kind == "lame_duck":
                self._server.lame_duck()
            elif kind == "slots" and isinstance(message.get("count"), int):
                self._seat.count = message["count"]
        if self._channel.ended:
            self._loop.remove_reader(self._channel.fileno())
            self._orphaned()

    def _terminated(self) -> None:
        if os.getppid() != self._setup.master_pid:
            self._orphaned()
        else:
            # Somebody wants this process gone: first another one takes the slot over. When
            # the whole group was told to go, the master was too, and knows better.
            self._channel.post("replace")

    def _orphaned(self) -> None:
        if self._way is None:
            _logger.error("the master is gone: this worker drains and exits")
        if self._way in (None, Way.RETIRE):
            self._leave(Way.DRAIN, self._setup.drain_seconds)

    def _leave(self, way: Way, seconds: float = 0.0) -> None:
        """Leave this way, with the deadline so many seconds from now, unless faster already."""
        if self._way is not None and way <= self._way:
            return
        first = self._way is None
        self._way = way
        self._state = "draining"
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if first:
            self._close_listeners(greet_the_queue=way is Way.DRAIN)
        if way is Way.RETIRE:
            self._after(seconds, self._server.retire)
            self._after(seconds + RETIRED_SECONDS, partial(self._leave, Way.DRAIN))
        elif way is Way.DRAIN:
            self._server.drain()
            self._after(seconds, self._server.abort_transactions)
            self._after(seconds + ABORT_SECONDS, partial(self._leave, Way.STOP))
        else:
            self._server.abort()
            self._after(CLOSE_SECONDS, self._gave_up.set)
        self._told.set()
        if self._boot is not None:
            self._boot.cancel()
        else:
            self._show()

    def _after(self, seconds: float, call: Callable[[], object]) -> None:
        self._timers.append(self._loop.call_later(seconds, call))

    def _close_listeners(self, *, greet_the_queue: bool) -> None:
        """Close the slot's sockets here; the last of all processes to do so closes the port.

        A unix socket is not the slot's alone: others may read it too, and what is left in its
        queue when this worker retires is theirs.
        """
        for acceptor in self._acceptors:
            if greet_the_queue:
                # Nobody takes these after us, or the workers that do drain as well: whoever is
                # in the queue gets its greeting.
                acceptor.accept_now()
            acceptor.stop()
        for sock, _ in self._setup.sockets:
            sock.close()

    # The end.

    async def _no_session_left(self) -> None:
        closed = asyncio.ensure_future(self._server.wait_closed())
        gave_up = asyncio.ensure_future(self._gave_up.wait())
        await asyncio.wait((closed, gave_up), return_when=asyncio.FIRST_COMPLETED)
        gave_up.cancel()
        if not closed.done():
            closed.cancel()
            _logger.warning("%d sessions did not end when they were aborted", self._server.sessions)

    async def _close(self, lifespans: AsyncExitStack) -> None:
        try:
            async with asyncio.timeout(LIFESPAN_SECONDS):
                await lifespans.aclose()
        except TimeoutError:
            _logger.error("the lifespans did not close within %g s", LIFESPAN_SECONDS)
        except Exception:
            _logger.exception("a lifespan failed while it closed")
        self._report()
        for _ in range(LAST_WORDS):
            if self._channel.flush():
                break
            await asyncio.sleep(LAST_WORDS_SECONDS / LAST_WORDS)

    # What the master and the process list see.

    def _vitals(self) -> Vitals:
        server = self._server
        away = self._seat.store().away
        return Vitals(server.sessions, server.in_data, server.counters.messages, int(away))

    def _report(self) -> None:
        counters = self._server.counters
        _, counters.store_outages, counters.store_fallbacks = self._seat.store()
        self._channel.post_counters(counters.since(self._sent))
        self._sent = counters.as_dict()
        if self._way is None and self._recycling.due(counters.messages, self._loop.time()):
            self._channel.post("replace")
        self._show()
        self._loop.call_later(REPORT_SECONDS, self._report)

    def _show(self) -> None:
        title = f"{self._name} {self._state} ({self._server.sessions} sessions)"
        if title != self._title:
            self._title = title
            process.set_title(title)
