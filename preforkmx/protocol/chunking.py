"""CHUNKING: messages in chunks of announced sizes (RFC 3030)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from preforkmx.protocol import replies

if TYPE_CHECKING:
    from preforkmx.protocol.replies import Reply

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
    """A message on its way in chunks; it keeps none of their octets.

    :param max_size: the limit of the whole message in octets.
    """

    __slots__ = ("_max_size", "announced", "failure", "last", "left", "size", "skipping")

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self.size = 0
        """Octets of all chunks that were announced."""
        self.announced = 0
        """Octets of the present chunk."""
        self.left = 0
        """Octets of the present chunk that are still to come."""
        self.last = False
        """The present chunk is the last."""
        self.skipping = False
        """The present chunk is refused: its octets belong to no message."""
        self.failure: Reply | None = None
        """What this chunk and all that follow are refused with: one chunk that is missing
        spoils the message."""

    def begin(self, size: int, *, last: bool) -> None:
        """The next chunk begins; the one before has ended."""
        self.announced = self.left = size
        self.last = last
        self.size += size
        if self.size > self._max_size and self.failure is None:
            self.failure = replies.TOO_LARGE
        self.skipping = self.failure is not None

    @property
    def too_large_to_read(self) -> bool:
        """It is not even worth reading away: above twice the limit."""
        return self.size > 2 * self._max_size
