"""The count of Received fields: against the header read line by line, after every piece."""

from __future__ import annotations

from inputs import Choices, pieces

from preforkmx.protocol.hops import HopCounter

TOKENS = (b"Received:", b"\r\nReceived: x", b"\nRECEIVED:", b"\r\n\r\n", b"\n\n", b"\r", b"\n")
OUTCOMES = {"loop", "no loop"}
COUNT = 12000


def check(data: bytes) -> str:
    choices = Choices(data)
    most, cut = choices.octet() % 8, choices.octet()
    counter = HopCounter(most)
    octets = b""
    for piece in pieces(choices.rest(), cut):
        counter.feed(piece)
        octets += piece
        assert counter.too_many == (reference(octets) > most)
        assert len(counter._carry) <= 9
    return "loop" if counter.too_many else "no loop"


def reference(octets: bytes) -> int:
    """Count the lines before the first empty one that begin with the field's name."""
    count = 0
    lines = octets.split(b"\n")
    for number, line in enumerate(lines):
        # The last one has no end yet: it may be empty for that reason only.
        if number < len(lines) - 1 and line in (b"", b"\r"):
            break
        count += line.lower().startswith(b"received:")
    return count
