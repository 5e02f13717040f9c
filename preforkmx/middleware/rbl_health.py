"""How well a list does: one that fails, is silent or lies is not asked for a while."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

#: Look-ups without an answer, one after the other, after which a list rests.
MAX_FAILED: Final = 5
#: Seconds for which it does. Then one look-up finds out whether it is back.
REST_SECONDS: Final = 30.0
#: Seconds for which a list is not asked that answered with an error, or lists everybody.
ERROR_SECONDS: Final = 600.0
#: Seconds for which a list that does not list everybody is believed.
TRUSTED_SECONDS: Final = 3600.0

_log = logging.getLogger(__name__)


class Health:
    """What one worker knows of one zone.

    :param name: what the log calls the list.
    :param clock: seconds, from any beginning.
    """

    __slots__ = (
        "_clock",
        "_failed",
        "_name",
        "_probing",
        "_resting_until",
        "_trusted_until",
        "_warned",
    )

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self._name = name
        self._clock = clock
        self._failed = 0
        # 0: it does not rest.
        self._resting_until = 0.0
        #: A look-up is under way that finds out whether it is back.
        self._probing = False
        self._trusted_until = 0.0
        self._warned = False

    def may_be_asked(self) -> bool:
        """Say whether it is asked now; of one that rested, one look-up finds out."""
        if not self._resting_until:
            return True
        now = self._clock()
        if now < self._resting_until:
            return False
        self._resting_until = now + REST_SECONDS
        self._probing = True
        return True

    @property
    def trusted(self) -> bool:
        """Whether it was seen not to list everybody, lately."""
        return self._clock() < self._trusted_until

    def trust(self) -> None:
        """It does not list everybody."""
        self._trusted_until = self._clock() + TRUSTED_SECONDS

    def answered(self) -> None:
        """It answered just now."""
        if self._resting_until and not self._probing:
            # To a question from before its rest.
            return
        if self._warned:
            _log.warning("list %s answers again", self._name)
        self._warned = False
        self._failed = 0
        self._probing = False
        self._resting_until = 0.0

    def failed(self, reason: str) -> None:
        """A look-up failed just now."""
        self._probing = False
        self._failed += 1
        if self._failed >= MAX_FAILED:
            self._rest(REST_SECONDS, f"does not answer ({reason})")

    def broken(self, reason: str) -> None:
        """It answers what is of no use to anybody."""
        self._probing = False
        self._trusted_until = 0.0
        self._rest(ERROR_SECONDS, reason)

    def given_up(self) -> None:
        """The look-up was not waited for: if it was to find out, the next one is."""
        if self._probing:
            self._probing = False
            self._resting_until = self._clock()

    def _rest(self, seconds: float, reason: str) -> None:
        self._resting_until = max(self._resting_until, self._clock() + seconds)
        if not self._warned:
            self._warned = True
            _log.warning(
                "list %s %s: it lists nobody, and is asked again in %d s",
                self._name,
                reason,
                seconds,
            )
