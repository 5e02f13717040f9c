"""The admin process: tells operators and their programs how the server does, over HTTP.

A process of its own, so that a scrape costs no session a moment, and a bug in a web framework
no mail: Starlette, uvicorn and the Prometheus client are imported here, after the fork, and
nowhere else. It reads: nothing that it is asked changes anything. What it shows it asks the
master for, over its channel, at most once a second.

It holds neither mail nor state. When the master is gone it exits at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from preforkmx.workers import loops, process
from preforkmx.workers.heartbeat import Heart, Vitals
from preforkmx.workers.reports import Reports

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from preforkmx.workers.channel import Channel
    from preforkmx.workers.heartbeat import Cell

_LAST_WORDS_SECONDS = 1.0

_logger = logging.getLogger("preforkmx.workers")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminSetup:
    """All that the admin process needs; it exists before the fork.

    :param sock: the listening TCP socket, which the master has made and keeps.
    """

    sock: socket.socket
    channel: Channel
    cell: Cell
    loop_factory: Callable[[], asyncio.AbstractEventLoop]
    log_format: str
    log_level: str


def run_admin(setup: AdminSetup) -> int:
    """Be the admin process until the end, and return the exit status; called in the child."""
    process.die_with_parent(signal.SIGKILL)
    log = process.settle(
        "admin", log_format=setup.log_format, log_level=setup.log_level, log_name="admin"
    )
    # What a client of this port does wrong is worth no line of the log.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    try:
        return loops.run(setup.loop_factory, AdminProcess(setup).run)
    except Exception as error:
        _logger.exception("the admin process ends by an exception that nobody expected")
        setup.channel.post_failure(process.describe(error))
        return process.EXIT_CRASHED
    finally:
        log.close(_LAST_WORDS_SECONDS)


class AdminProcess:
    """The admin process inside its loop."""

    def __init__(self, setup: AdminSetup) -> None:
        self._setup = setup
        self._channel = setup.channel
        self._stop = asyncio.Event()
        # Set in run(), where the loop is.
        self._loop: asyncio.AbstractEventLoop
        self._reports: Reports

    async def run(self) -> int:
        """Serve until told to stop; return the exit status."""
        from preforkmx.workers.admin_pages import serve_pages  # noqa: PLC0415 - see above

        self._loop = asyncio.get_running_loop()
        self._reports = Reports(self._channel)
        # The master tells this process when to go, also when a whole group gets the signal.
        self._loop.add_signal_handler(signal.SIGTERM, self._terminated)
        self._loop.add_reader(self._channel.fileno(), self._hear)
        Heart(self._loop, self._setup.cell, self._vitals).start()
        await serve_pages(self._setup.sock, self._reports, self._serves, self._stop)
        return process.EXIT_ASKED

    def _vitals(self) -> Vitals:
        # What the channel did not take at once goes out with a later beat.
        self._channel.flush()
        return Vitals()

    def _serves(self) -> None:
        self._channel.post("ready")

    def _hear(self) -> None:
        for message in self._channel.receive():
            if message["type"] in ("retire", "drain", "stop"):
                self._stop.set()
            else:
                self._reports.take(message)
        if self._channel.ended:
            self._loop.remove_reader(self._channel.fileno())
            self._stop.set()

    def _terminated(self) -> None:
        _logger.info(
            "SIGTERM is for the master (process %d): the admin process exits last", os.getppid()
        )
