"""Recycling: a worker that has taken many messages asks for a successor.

What a site's code leaks is given back to the system so. The successor is ready before the
worker retires; the master replaces one slot at a time.
"""

from __future__ import annotations

import random

JITTER = 0.1
"""Each worker's number is up to a tenth away from the one that is configured: workers that
share the load evenly would otherwise all reach it at once."""
AGAIN_SECONDS = 60.0
"""A worker that still serves so long after it asked asks again: the successor did not start."""


class Recycling:
    """When one worker asks.

    :param messages: after how many it is due, on average; 0: never.
    :param chance: draws from 0 to 1, in each process anew.
    """

    def __init__(self, messages: int, chance: random.Random | None = None) -> None:
        # Of its own: a site may seed the shared one, in each worker with the same number.
        drawn = (random.SystemRandom() if chance is None else chance).uniform(-JITTER, JITTER)
        self.after = max(1, round(messages * (1 + drawn))) if messages else 0
        """After how many messages this worker is due; 0: never."""
        self._asked_at: float | None = None

    def due(self, messages: int, now: float) -> bool:
        """Return whether to ask now; once that it did, it is not for :data:`AGAIN_SECONDS`.

        :param messages: what the worker has taken since it was forked.
        :param now: seconds that only grow.
        """
        if not self.after or messages < self.after:
            return False
        if self._asked_at is not None and now - self._asked_at < AGAIN_SECONDS:
            return False
        self._asked_at = now
        return True
