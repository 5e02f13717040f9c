"""A message as DATA carries it: lines, dots doubled, and its end (RFC 5321 section 4.5.2)."""

from __future__ import annotations

import re

_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")


class Transparency:
    """Turns the octets of a message into those behind DATA.

    A CR or LF that stands alone becomes CRLF: RFC 5321 section 2.3.8 forbids to send it, and a
    server that takes one for a line's end could be made to see a second message. Only BDAT
    brings such a message here, and only BDAT can hand it on as it is.
    """

    def __init__(self) -> None:
        self._at_line_start = True
        # A CR that ended a piece: what follows tells what it is.
        self._cr = False

    def feed(self, octets: bytes) -> bytes:
        """Return what goes out for the next piece of the message; it may be empty."""
        if self._cr:
            octets = b"\r" + octets
        self._cr = octets.endswith(b"\r")
        if self._cr:
            octets = octets[:-1]
        if not octets:
            return b""
        lines = octets.count(b"\r\n")
        if octets.count(b"\n") != lines or octets.count(b"\r") != lines:
            octets = _BARE.sub(b"\r\n", octets)
        dot = self._at_line_start and octets.startswith(b".")
        self._at_line_start = octets.endswith(b"\r\n")
        stuffed = octets.replace(b"\r\n.", b"\r\n..")
        return b"." + stuffed if dot else stuffed

    def end(self) -> bytes:
        """Return what ends the message; a last line without CRLF gets one."""
        return b".\r\n" if self._at_line_start and not self._cr else b"\r\n.\r\n"
