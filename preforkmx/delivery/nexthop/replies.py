"""The replies of a server, as a client reads them (RFC 5321 section 4.2)."""

from __future__ import annotations

import re
from typing import NamedTuple

from preforkmx.delivery.nexthop.errors import Nonsense

MAX_LINE = 2048
"""Octets of a reply's line with its CRLF: four times what RFC 5321 section 4.5.3.1.5 allows."""
MAX_LINES = 256
"""Lines of one reply; that to EHLO has one for each extension."""

_LINE = re.compile(rb"([2-5][0-9]{2})([ -]?)(.*)", re.DOTALL)
_ENHANCED = re.compile(r"([245])\.([0-9]{1,3})\.([0-9]{1,3})(?: |\Z)", re.ASCII)


class Reply(NamedTuple):
    """One reply."""

    code: int
    lines: tuple[str, ...]
    """The text of each line, enhanced status codes included; octets that are no UTF-8 are
    replaced."""

    @property
    def kind(self) -> int:
        """The first digit of the code, 2 to 5."""
        return self.code // 100

    @property
    def enhanced(self) -> tuple[int, int, int] | None:
        """The enhanced status code (RFC 2034), where there is one of the code's class."""
        match = _ENHANCED.match(self.lines[0])
        if match is None or int(match[1]) != self.kind:
            return None
        return int(match[1]), int(match[2]), int(match[3])

    @property
    def text(self) -> str:
        """The lines as one text, without the enhanced status code in front of each."""
        return " ".join(_ENHANCED.sub("", line) for line in self.lines).strip()

    def __str__(self) -> str:
        return f"{self.code} {' '.join(self.lines)}"


class ReplyParser:
    """Takes octets and gives replies. It holds one reply at most, and octets behind it."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._code = 0
        self._lines: list[str] = []

    def feed(self, octets: bytes) -> None:
        """Take what came."""
        self._buffer += octets

    @property
    def pending(self) -> int:
        """Octets that are no part of a reply yet, and lines of one that is not whole."""
        return len(self._buffer) + len(self._lines)

    def next_reply(self) -> Reply | None:
        """Return the next reply, or None while it is not whole.

        :raises Nonsense: what came is no reply. Then the parser is of no more use.
        """
        buffer = self._buffer
        while True:
            end = buffer.find(b"\n", 0, MAX_LINE)
            if end < 0:
                if len(buffer) >= MAX_LINE:
                    raise Nonsense("a line of a reply is too long")
                return None
            if buffer[end - 1 : end] != b"\r":
                raise Nonsense("a line of a reply does not end with CRLF")
            match = _LINE.fullmatch(buffer, 0, end - 1)
            if match is None:
                raise Nonsense("what came is no reply")
            code, more = int(match[1]), match[2]
            if match[3] and not more:
                raise Nonsense("what came is no reply")
            if self._lines and code != self._code:
                raise Nonsense("the lines of a reply have two codes")
            self._code = code
            self._lines.append(match[3].decode("utf-8", "replace"))
            # The match holds on to the buffer, which cannot shrink before it lets go.
            del match
            del buffer[: end + 1]
            if more != b"-":
                reply = Reply(code, tuple(self._lines))
                self._lines.clear()
                return reply
            if len(self._lines) >= MAX_LINES:
                raise Nonsense("a reply has too many lines")
