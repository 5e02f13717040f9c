"""The store process: the embedded shared state, supervised like a worker.

It serves the unix socket that the master made and holds, so that its clients find a queue
and not a refusal while a crashed store process is being replaced. It outlives every worker:
a pipe, the lifeline, whose writing end the master and each worker hold and nobody writes to,
ends when the last of them is gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from preforkmx.state.embedded import serve_store
from preforkmx.workers import loops, process
from preforkmx.workers.heartbeat import Heart, Vitals

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from preforkmx.workers.channel import Channel
    from preforkmx.workers.heartbeat import Cell

ORPHAN_SECONDS = 30.0
"""From the workers' last deadline, after the master has died, to the end of the store."""

_LAST_WORDS_SECONDS = 1.0

_logger = logging.getLogger("preforkmx.workers")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSetup:
    """All that the store process needs; it exists before the fork.

    :param sock: the listening unix socket.
    :param lifeline: the reading end of the pipe that ends with the last worker.
    :param drain_seconds: how long workers without a master may drain.
    """

    sock: socket.socket
    database: Path
    lifeline: int
    channel: Channel
    cell: Cell
    loop_factory: Callable[[], asyncio.AbstractEventLoop]
    drain_seconds: float
    log_format: str
    log_level: str


def run_store(setup: StoreSetup) -> int:
    """Be the store process until the end, and return the exit status; called in the child."""
    log = process.settle(
        "store", log_format=setup.log_format, log_level=setup.log_level, log_name="store"
    )
    try:
        return loops.run(setup.loop_factory, StoreProcess(setup).run)
    except Exception as error:
        _logger.exception("the store process ends by an exception that nobody expected")
        setup.channel.post_failure(process.describe(error))
        return process.EXIT_CRASHED
    finally:
        log.close(_LAST_WORDS_SECONDS)


class StoreProcess:
    """The store process inside its loop."""

    def __init__(self, setup: StoreSetup) -> None:
        self._setup = setup
        self._channel = setup.channel
        self._stop = asyncio.Event()
        self._ready = False
        # Set in run(), where the loop is.
        self._loop: asyncio.AbstractEventLoop

    async def run(self) -> int:
        """Serve until told to stop; return the exit status."""
        self._loop = asyncio.get_running_loop()
        # The workers still need the store when a whole process group is told to go.
        self._loop.add_signal_handler(signal.SIGTERM, self._terminated)
        self._loop.add_reader(self._channel.fileno(), self._hear)
        Heart(self._loop, self._setup.cell, self._vitals).start()
        try:
            await serve_store(self._setup.sock, self._setup.database, self._serves, self._stop)
        except Exception as error:
            if self._ready:
                raise
            _logger.debug("the store could not be started", exc_info=True)
            self._channel.post_failure(process.describe(error))
            return process.EXIT_BOOT
        return process.EXIT_ASKED

    def _vitals(self) -> Vitals:
        # What the channel did not take at once goes out with a later beat.
        self._channel.flush()
        return Vitals()

    def _serves(self) -> None:
        self._ready = True
        self._channel.post("ready")

    def _hear(self) -> None:
        if any(message["type"] == "stop" for message in self._channel.receive()):
            self._stop.set()
        if self._channel.ended:
            self._loop.remove_reader(self._channel.fileno())
            if not self._stop.is_set():
                self._orphaned()

    def _orphaned(self) -> None:
        _logger.error("the master is gone: the store process exits after the last worker")
        self._loop.add_reader(self._setup.lifeline, self._alone)
        self._loop.call_later(self._setup.drain_seconds + ORPHAN_SECONDS, self._alone)

    def _alone(self) -> None:
        self._loop.remove_reader(self._setup.lifeline)
        self._stop.set()

    def _terminated(self) -> None:
        _logger.info(
            "SIGTERM is for the master (process %d): the store process exits after the workers",
            os.getppid(),
        )
