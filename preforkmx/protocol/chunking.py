"""CHUNKING: messages in chunks of announced sizes (RFC 3030)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from preforkmx.protocol import replies
from preforkmx.protocol.events import Chunk, End
from preforkmx.protocol.hops import HopCounter

if TYPE_CHECKING:
    from preforkmx.protocol.framing import LineFramer
    from preforkmx.protocol.replies import Reply
    from preforkmx.protocol.settings import Settings

# Matched against octets: no letter outside of ASCII folds to one of LAST.
_ARGUMENT = re.compile(rb"([0-9]{1,20})(?: +(LAST))? *\Z", re.IGNORECASE)


def parse_chunk(argument: bytes) -> tuple[int, bool] | None:
    """Parse what follows BDAT: the chunk's octets, and whether it is the last.

    None when it is neither: nobody knows then where the chunk ends (RFC 3030 section 2).
    """
    match = _ARGUMENT.match(argument)
    if match is None:
        return None
    return int(match[1]), match[2] is not None


class Transfer:
    """A message on its way in chunks; it keeps none of their octets."""

    __slots__ = (
        "_announced",
        "_hops",
        "_last",
        "_left",
        "_max_size",
        "_refused",
        "failure",
        "size",
    )

    def __init__(self, settings: Settings) -> None:
        self._max_size = settings.message_size
        self._hops = HopCounter(settings.hops)
        # Of the present chunk: its octets, those still to come, and what becomes of it.
        self._announced = 0
        self._left = 0
        self._last = False
        self._refused = False
        self.size = 0
        """Octets of all chunks that were announced."""
        self.failure: Reply | None = None
        """What this chunk and all that follow are refused with: one chunk that is missing
        spoils the message."""

    def begin(self, size: int, *, last: bool) -> None:
        """The next chunk begins; the one before has ended."""
        self._announced = self._left = size
        self._last = last
        self.size += size
        if self.size > self._max_size and self.failure is None:
            self.failure = replies.TOO_LARGE
        self._refused = self.failure is not None

    @property
    def too_large_to_read(self) -> bool:
        """It is not even worth reading away: above twice the limit."""
        return self.size > 2 * self._max_size

    def next(self, framer: LineFramer) -> Chunk | Reply | End | None:
        """Take octets of the present chunk from `framer`.

        :returns: the next octets of the message, or at the chunk's end its reply, at the last
            one's the end of the message; None: too few came.
        """
        while self._left:
            octets = framer.take_at_most(self._left)
            if not octets:
                return None
            self._left -= len(octets)
            if not self._refused:
                self._hops.feed(octets)
                return Chunk(octets)
        if not self._last:
            return self.failure or replies.chunk_taken(self._announced)
        # What a handler said is its session's to tell; what was refused is the message's fault.
        fault = self.failure if self._refused else None
        if fault is None and self._hops.too_many:
            fault = replies.TOO_MANY_HOPS
        return End(self.size, fault)
