"""Unique names for messages, as the Maildir format asks for: no lock, no name used twice."""

from __future__ import annotations

import itertools
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Octets of the host name in a name: its reader adds flags (``:2,FRS``), and all of it must
#: stay below 255.
_MAX_HOST = 128


class MessageNames:
    """Makes ``1700000000.M123456P4711Q1R9f86d081.mx.example.com``.

    Seconds and microseconds, the process, a counter and a random number of this process: two
    processes with one number in two containers, on one volume and under one host name, still
    do not meet.

    :param clock: nanoseconds since the epoch.
    """

    def __init__(self, hostname: str, clock: Callable[[], int] = time.time_ns) -> None:
        host = hostname.replace("/", "\\057").replace(":", "\\072").replace("\0", "")
        self._host = host.encode("utf-8", "replace")[:_MAX_HOST].decode("utf-8", "ignore")
        self._clock = clock
        self._count = itertools.count(1)
        self._origin = f"P{os.getpid()}"
        self._random = f"R{os.urandom(4).hex()}"

    def next(self) -> str:
        """Return a name that no message of this host has had."""
        seconds, nanoseconds = divmod(self._clock(), 1_000_000_000)
        return (
            f"{seconds}.M{nanoseconds // 1000:06d}{self._origin}Q{next(self._count)}"
            f"{self._random}.{self._host}"
        )
