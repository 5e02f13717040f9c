"""Backoff: how long a crashed process's place stays empty."""

from __future__ import annotations

FIRST_SECONDS = 0.25
LONGEST_SECONDS = 30.0
HEALTHY_SECONDS = 60.0
"""A process that was ready for so long makes the crashes before it forgotten."""


class Backoff:
    """No wait after the first crash, then 0.25 s, doubled each time, up to 30 s."""

    def __init__(self, crashes: int = 0) -> None:
        self.crashes = crashes
        """How many there were since the last healthy process."""

    def crashed(self, healthy_seconds: float) -> float:
        """Count a crash; return how many seconds to wait before the replacement.

        :param healthy_seconds: how long the process was ready, 0 when it never was.
        """
        if healthy_seconds >= HEALTHY_SECONDS:
            self.crashes = 0
        self.crashes += 1
        if self.crashes == 1:
            return 0.0
        # The exponent is bounded: 2⁸ × 0.25 s is past the longest wait.
        return min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(self.crashes - 2, 8))

    def reset(self) -> None:
        """Forget all crashes."""
        self.crashes = 0
