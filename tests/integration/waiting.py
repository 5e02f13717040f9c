"""Waiting for what other processes do, and tell nobody of."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

PATIENCE = 20.0
"""Seconds for what takes well under one on an idle machine."""
PAUSE = 0.02


class Logs(Protocol):
    """Who has a log: a running server."""

    @property
    def log(self) -> str: ...


def until(condition: Callable[[], T], told: str | Logs = "", *, seconds: float = PATIENCE) -> T:
    """Return what `condition` returns as soon as that is true.

    :param told: what a failure says: what was waited for, or the server whose log has what
        happened instead.
    """
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            text = told if isinstance(told, str) else told.log
            raise AssertionError(f"did not happen in {seconds} s: {text or condition}")
        time.sleep(PAUSE)
    return result
