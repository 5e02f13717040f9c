"""What the service manager is told (``sd_notify(3)``), where one asks for it.

systemd gives the address of a datagram socket in ``NOTIFY_SOCKET`` to a service with
``Type=notify``, and how often it wants to hear that all is well in ``WATCHDOG_USEC``. Both are
the master's alone, and taken out of the environment: no process that it forks, and no program
that a site starts, speaks for the service.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from preforkmx.master.pool import Pool
    from preforkmx.master.slot import Slot

STATUS_SECONDS = 5.0
"""Between two status lines at the least."""
EXTEND_SECONDS = 10.0
"""How often more time is asked for, while a start, a reload or a drain goes on."""
EXTENSION_SECONDS = 30.0
"""How much more: a master that hangs itself is ended so long after its last word."""
FRESH_SECONDS = 3.0
"""How old a heartbeat may be that counts as one."""

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")

_logger = logging.getLogger("preforkmx.master")


class ServiceManager:
    """The service manager as the master speaks to it; without one nothing is said.

    It has no descriptor of its own: a socket is made for each message, as sd_notify(3) does.
    Nothing here waits or raises.

    :param environ: the variables are removed from it.
    :param clock: seconds that only grow.
    """

    def __init__(self, environ: MutableMapping[str, str], clock: Callable[[], float]) -> None:
        taken = {name: environ.pop(name) for name in _VARIABLES if name in environ}
        self.environment = taken
        """What was taken: a re-execution of this program needs it again."""
        self._clock = clock
        self._address = _address(taken.get("NOTIFY_SOCKET", ""))
        self._watchdog = _watchdog_seconds(taken) if self._address is not None else None
        # The manager's time may be nearly over: the program before this one in the process has
        # given the last sign.
        self._alive_at = -math.inf
        self._status = ""
        self._status_at = -STATUS_SECONDS
        self._extended_at = -EXTEND_SECONDS
        self._failed = False

    def ready(self) -> None:
        """Say that the server serves: after the start, and after a reload."""
        self._send(f"READY=1\nMAINPID={os.getpid()}")
        self._extended_at = -EXTEND_SECONDS

    def reloading(self) -> None:
        """Say that a reload began; :meth:`ready` ends it, whatever became of it."""
        # The same clock as the manager's: it tells this reload from an earlier one.
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={now}")
        self._extended_at = -EXTEND_SECONDS

    def alive(self) -> None:
        """Give a sign of life now: what comes next may take a while, and is bounded."""
        if self._watchdog is not None:
            self._alive_at = self._clock()
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that the server is about to end."""
        self._send("STOPPING=1")
        self._extended_at = -EXTEND_SECONDS

    def look(self, state: str, pool: Pool) -> None:
        """Say what is due; call this in every turn.

        - ``STATUS=``, when it has changed.
        - ``WATCHDOG=1`` in half of its time, while :func:`healthy`. When the master gives no
          such sign for the whole time, the manager ends the service and starts it anew.
        - ``EXTEND_TIMEOUT_USEC=``, while a start, a reload or a drain goes on. The master bounds
          each of their steps itself; who does not turn any more does not ask either.

        :param state: ``"booting"``, ``"ready"``, ``"reloading"`` or ``"draining"``.
        """
        if self._address is None:
            return
        now = self._clock()
        self._say_status(state, pool, now)
        bounded = state in ("booting", "draining")
        # An unhealthy server is looked at again in every turn.
        if self._sign_is_due(now) and (bounded or healthy(pool, now)):
            self.alive()
        if state != "ready" and now - self._extended_at >= EXTEND_SECONDS:
            self._extended_at = now
            self._send(f"EXTEND_TIMEOUT_USEC={int(EXTENSION_SECONDS * 1_000_000)}")

    def _sign_is_due(self, now: float) -> bool:
        return self._watchdog is not None and now - self._alive_at >= self._watchdog

    def _say_status(self, state: str, pool: Pool, now: float) -> None:
        if now - self._status_at < STATUS_SECONDS:
            return
        status = status_line(state, pool)
        if status != self._status:
            self._status, self._status_at = status, now
            self._send(f"STATUS={status}")

    def _send(self, text: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(text.encode(), self._address)
        except OSError as error:
            # A queue that is full, or nobody there any more: said once, until it works again.
            if not self._failed:
                _logger.warning("the service manager cannot be told: %s", error)
            self._failed = True
        else:
            self._failed = False


def _address(text: str) -> str | bytes | None:
    if not text:
        return None
    if text[0] == "@":
        # An abstract socket: its name begins with a NUL.
        return b"\0" + os.fsencode(text[1:])
    if text[0] == "/":
        return text
    _logger.warning("NOTIFY_SOCKET=%s is neither a path nor an abstract socket", text)
    return None


def _watchdog_seconds(taken: dict[str, str]) -> float | None:
    """Return after how many seconds the manager wants a sign: half of what it waits."""
    wanted, pid = taken.get("WATCHDOG_USEC", ""), taken.get("WATCHDOG_PID", "")
    if not wanted.isdecimal() or int(wanted) == 0:
        return None
    if pid and pid != str(os.getpid()):
        return None
    return int(wanted) / 2_000_000


def healthy(pool: Pool, now: float) -> bool:
    """Whether at least half of the slots have a ready worker with a fresh heartbeat.

    The master itself replaces workers that crash or hang, and the others serve meanwhile. The
    manager would end them all: that is for the case in which this does not help.
    """
    well = sum(1 for slot in pool.slots if _is_well(slot, now))
    return 2 * well >= len(pool.slots)


def _is_well(slot: Slot, now: float) -> bool:
    return any(
        child.state == "ready" and child.silent_seconds(now) < FRESH_SECONDS for child in slot
    )


def status_line(state: str, pool: Pool) -> str:
    """Return what ``systemctl status`` shows."""
    readings = [child.reading() for child in pool.workers() if child.alive]
    sessions = sum(reading.sessions for reading in readings if reading is not None)
    workers = sum(1 for slot in pool.slots for child in slot if child.state == "ready")
    return f"{state}: {workers} of {len(pool.slots)} workers ready, {sessions} sessions"
