"""Procedures: what takes several steps with waits between them, written one below the other.

The master has no coroutines. A procedure is a generator that yields a :class:`Wait` where it
has to wait, and is gone on with when that is over::

    def steps() -> Steps:
        child = start()
        if not (yield Wait(lambda: child.state != "booting", seconds=60)):
            …                     # 60 seconds are over
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Wait:
    """What a procedure waits for.

    :param until: asked after every turn of the loop; cheap and without effect.
    :param seconds: how long at most; None only where something else ends the wait for sure.
    """

    until: Callable[[], bool] | None = None
    seconds: float | None = None


Steps: TypeAlias = Generator[Wait, bool, None]
"""The generator; a ``yield`` gives whether ``until`` came true (False: the time is over)."""


class Procedure:
    """A procedure that is being gone through.

    :param clock: seconds that only grow.
    """

    def __init__(self, steps: Steps, clock: Callable[[], float]) -> None:
        self._steps = steps
        self._clock = clock
        self._wait: Wait | None = None
        self.deadline: float | None = None
        """When the current wait is over at the latest, by the clock."""
        self.done = False

    def advance(self) -> None:
        """Go on while what is waited for is there."""
        while not self.done:
            met = False
            if self._wait is not None:
                met = self._wait.until is not None and self._wait.until()
                late = self.deadline is not None and self._clock() >= self.deadline
                if not met and not late:
                    return
            try:
                self._wait = next(self._steps) if self._wait is None else self._steps.send(met)
            except StopIteration:
                self.done = True
                self.deadline = None
            else:
                seconds = self._wait.seconds
                self.deadline = None if seconds is None else self._clock() + seconds

    def cancel(self) -> None:
        """End it where it waits; its ``finally`` blocks run."""
        self.done = True
        self.deadline = None
        self._steps.close()
