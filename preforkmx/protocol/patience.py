"""How much a session may ask for without bringing a message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.protocol import replies

if TYPE_CHECKING:
    from preforkmx.protocol.replies import Reply
    from preforkmx.protocol.settings import Settings


class Patience:
    """Counts a session's errors and idle commands against their limits.

    A delivered message sets errors and idle commands back.
    """

    __slots__ = ("_errors", "_idle", "_settings", "faults", "refusals")

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._errors = 0
        self._idle = 0
        self.refusals = 0
        """Commands that were refused, by whomever."""
        self.faults = 0
        """Commands and messages that were answered with 5xx."""

    def idle(self) -> bool:
        """Count a command that brings no message nearer; say whether it is one too many."""
        self._idle += 1
        return 0 < self._settings.commands < self._idle

    def refused(self, reply: Reply, *, counts_as_idle: bool) -> Reply:
        """Count a refusal; return what the client gets, which may be the last it gets.

        4xx is no fault of the client's, 5xx is.

        :param counts_as_idle: the command was not counted by :meth:`idle`.
        """
        self.refusals += 1
        if reply.code >= 500:
            self.faults += 1
            self._errors += 1
            if self._errors > self._settings.errors and not reply.close:
                return replies.TOO_MANY_ERRORS
        if counts_as_idle and self.idle() and not reply.close:
            return replies.TOO_MANY_COMMANDS
        return reply

    def delivered(self) -> None:
        """A message was accepted."""
        self._errors = self._idle = 0
