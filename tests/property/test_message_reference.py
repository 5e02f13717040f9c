"""The message scanner against the slow and obvious way to do the same."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from preforkmx.protocol import replies
from preforkmx.protocol.message import MessageScanner

LIMIT = 24

octets = st.lists(
    st.sampled_from(
        [b"\r", b"\n", b".", b"\r\n", b"\r\n.", b"\r\n.\r\n", b"x", b"\0", b"xxxxxxxx"]
    ),
    max_size=24,
).map(b"".join)
cuts = st.lists(st.integers(0, 200), max_size=12)


def reference(data: bytes) -> tuple[bytes | None, bytes, object]:
    """The message's wire octets (None: no end yet), what comes after it, and its fault."""
    line_before = b"\r\n"
    everything = line_before + data
    message = None
    rest = b""
    for at in range(len(everything)):
        if everything[at : at + 5] == b"\r\n.\r\n":
            message = everything[2 : at + 2]
            rest = everything[at + 5 :]
            break
    if message is None:
        return None, b"", None
    bare = False
    for at, octet in enumerate(message):
        before = message[at - 1] if at else ord("\n")
        after = message[at + 1] if at + 1 < len(message) else ord(".")
        bare |= octet == ord("\n") and before != ord("\r")
        bare |= octet == ord("\r") and after != ord("\n")
    if len(message) > 2 * LIMIT:
        return message, rest, replies.TOO_LARGE_TO_READ
    if bare:
        return message, rest, replies.BARE_NEWLINE
    return message, rest, replies.TOO_LARGE if len(message) > LIMIT else None


def without_dots(message: bytes) -> bytes:
    lines = message.split(b"\r\n")
    return b"\r\n".join(line[1:] if line[:1] == b"." else line for line in lines)


@given(octets, cuts)
@settings(deadline=None, max_examples=1500)
def test_the_scanner_finds_what_the_obvious_way_finds(data, cuts):
    scanner = MessageScanner(LIMIT)
    body = b""
    rest = b""
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for begin, end in itertools.pairwise(places):
        if scanner.ended:
            rest += data[begin:end]
            continue
        chunk, rest = scanner.feed(data[begin:end])
        body += chunk
    message, expected_rest, fault = reference(data)
    if message is None:
        # No end: given up at twice the limit. What is neither of the message nor behind it are
        # the octets that may begin an end.
        assert scanner.ended == (scanner.size > 2 * LIMIT)
        assert 0 <= len(data) - scanner.size - len(rest) <= 4
        if scanner.fault is None:
            assert without_dots(data[: scanner.size]) == body
        return
    assert scanner.ended
    assert scanner.fault is fault
    assert len(body) <= LIMIT
    if fault is None:
        assert (body, rest) == (without_dots(message), expected_rest)
        assert scanner.size == len(message)
    else:
        assert without_dots(message).startswith(body)
    if fault in (replies.TOO_LARGE, replies.BARE_NEWLINE):
        assert rest == expected_rest
        assert scanner.size == len(message)
