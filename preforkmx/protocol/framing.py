"""Command lines out of octets: strict CRLF framing (RFC 5321 section 2.3.8).

Only CRLF ends a line. A bare LF or a bare CR is an error that ends the session: two servers
that read such a line differently is what SMTP smuggling is made of. For clients of whom it is
known a framer can be told to take a bare LF for the end of a line.
"""

from __future__ import annotations

from enum import Enum

LINE_LIMIT = 2048
"""Octets of a command line, CRLF included, that are read as a command."""
SKIP_LIMIT = 8192
"""Octets after which a line that still has no end ends the session."""


class Trouble(Enum):
    """What there is instead of a line."""

    TOO_LONG = "too long"
    """The line exceeded its limit; it has been skipped up to its end."""
    ENDLESS = "endless"
    """The line exceeded :data:`SKIP_LIMIT`: nothing after it can be trusted to be a command."""
    BARE_NEWLINE = "bare newline"
    """A LF without CR, or a CR without LF."""


class LineFramer:
    """Keeps the octets that have arrived and are not yet read, and cuts lines from them.

    It holds what it was fed and not a copy more; the caller bounds that by not feeding on
    while :attr:`buffered` is large.

    :param normalize: a bare LF ends a line too, and a bare CR is a space.
    """

    __slots__ = ("_ends_with_cr", "_normalize", "_searched", "_skipped", "octets", "position")

    def __init__(self, *, normalize: bool = False) -> None:
        self._normalize = normalize
        self.octets = b""
        """What arrived, from the last line that was read on; :attr:`position` begins the rest."""
        self.position = 0
        # From the position up to here there is no LF. Never before the position.
        self._searched = 0
        # Octets of an overlong line that were thrown away, and whether the last was a CR.
        self._skipped = 0
        self._ends_with_cr = False

    @property
    def buffered(self) -> int:
        """How many octets are waiting to be read."""
        return len(self.octets) - self.position

    def feed(self, octets: bytes) -> None:
        """Add octets that arrived."""
        if self.position < len(self.octets):
            self.octets = self.octets[self.position :] + octets
            self._searched -= self.position
        else:
            self.octets = octets
            self._searched = 0
        self.position = 0

    def take(self) -> bytes:
        """Return and forget all that is waiting: the message begins in it."""
        octets = self.octets[self.position :] if self.position else self.octets
        self.octets = b""
        self.position = self._searched = 0
        return octets

    def take_at_most(self, count: int) -> bytes:
        """Return and forget what is waiting, at most `count` octets of it."""
        start = self.position
        if count >= len(self.octets) - start:
            return self.take()
        end = start + count
        self.position = end
        self._searched = max(self._searched, end)
        return self.octets[start:end]

    def starts_with(self, octets: bytes) -> bool:
        """Say whether what is waiting begins a line, and with `octets`."""
        return not self._skipped and self.octets.startswith(octets, self.position)

    def next_line(self, limit: int = LINE_LIMIT) -> bytes | Trouble | None:
        """Return the next line without its CRLF, or what is wrong with it, or None: not yet."""
        buffer = self.octets
        start = self.position
        if start == len(buffer) and not self._skipped:
            return None
        end = buffer.find(b"\n", self._searched)
        if end < 0:
            return self._unfinished(limit)
        self._searched = self.position = end + 1
        length = end + 1 - start
        if length > limit or self._skipped:
            return self._overlong(length, limit)
        line = buffer[start : end - 1]
        if end == start or buffer[end - 1] != 13 or b"\r" in line:
            if not self._normalize:
                return Trouble.BARE_NEWLINE
            return buffer[start:end].removesuffix(b"\r").replace(b"\r", b" ")
        return line

    def _overlong(self, length: int, limit: int) -> Trouble:
        """The end of a line that was, or is with its last `length` octets, too long."""
        end = self.position - 1
        has_cr = self.octets[end - 1] == 13 if length > 1 else self._ends_with_cr
        length += self._skipped
        self._skipped = 0
        self._ends_with_cr = False
        if length > SKIP_LIMIT + limit:
            return Trouble.ENDLESS
        return Trouble.TOO_LONG if has_cr or self._normalize else Trouble.BARE_NEWLINE

    def _unfinished(self, limit: int) -> Trouble | None:
        waiting = len(self.octets) - self.position
        if self._skipped or waiting > limit:
            # Only the length of an overlong line is remembered, never its octets.
            self._skipped += waiting
            if waiting:
                self._ends_with_cr = self.octets.endswith(b"\r")
            self.take()
            return Trouble.ENDLESS if self._skipped > SKIP_LIMIT + limit else None
        self._searched = len(self.octets)
        return None
