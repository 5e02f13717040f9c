"""Loops: a message that has passed too many servers (RFC 5321 section 6.3)."""

from __future__ import annotations

_FIELD = b"\nreceived:"


class HopCounter:
    """Counts the Received fields of a message's header, while its octets pass.

    It keeps at most 9 octets between two calls, and looks at nothing behind the header.

    :param most: how many are no loop yet.
    """

    __slots__ = ("_carry", "_count", "_most", "_watching")

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        # The header's first field begins a line.
        self._carry = b"\n"
        self._watching = True

    @property
    def too_many(self) -> bool:
        """There were more than `most`."""
        return self._count > self._most

    def feed(self, octets: bytes) -> None:
        """Look at the next octets of the message."""
        if not self._watching:
            return
        if len(self._carry) == 1:
            # Most headers come whole, and are too short for so many fields.
            end = octets.find(b"\r\n\r\n")
            if 0 <= end < self._most * len(_FIELD):
                self._watching = False
                return
        data = self._carry + octets
        end = _header_end(data)
        if end >= 0:
            self._watching = False
            data = data[:end]
        self._count += data.lower().count(_FIELD)
        if self._count > self._most:
            self._watching = False
        # One octet short of a field: nothing is counted twice.
        self._carry = data[1 - len(_FIELD) :]


def _header_end(data: bytes) -> int:
    """Return where the empty line after the header begins, -1: not yet there."""
    end = data.find(b"\n\r\n")
    # Content that came with BDAT is raw, and may have LF for its line ends.
    bare = data.find(b"\n\n", 0, end if end >= 0 else len(data))
    return bare if bare >= 0 else end
