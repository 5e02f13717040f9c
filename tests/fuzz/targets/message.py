"""The message scanner: against the message read line by line, with and without repairs."""

from __future__ import annotations

from inputs import Choices, pieces

from preforkmx.protocol import replies
from preforkmx.protocol.message import MessageScanner

TOKENS = (
    b"\r\n.\r\n",
    b"\r\n..\r\n",
    b"\r\n.\n",
    b"\n.\r\n",
    b"\n.\n",
    b"\r.\r",
    b"\r\n.\r",
    b"\r\n",
    b"\r",
    b"\n",
    b".",
    b"MAIL FROM:<a@b>\r\n",
)
OUTCOMES = {"unfinished", "good", "550", "552"}
COUNT = 12000


def check(data: bytes) -> str:
    choices = Choices(data)
    normalize, limit, cut = bool(choices.octet() & 1), choices.octet(), choices.octet()
    octets = choices.rest()
    scanner = MessageScanner(limit, normalize=normalize)
    body, rest = [], b""
    for piece in pieces(octets, cut):
        if scanner.ended:
            rest += piece
            continue
        faulty = scanner.fault is not None
        chunk, rest = scanner.feed(piece)
        assert scanner.ended or not rest
        assert len(scanner._carry) <= 4
        assert not (chunk and (faulty or scanner.fault is not None))
        body.append(chunk)
    delivered = b"".join(body)

    message, behind = split(octets)
    if message is None:
        message = octets
        # What may be the beginning of the end is not counted yet.
        assert 0 <= len(message) - scanner.size <= 4 or scanner.size > 2 * limit
        assert scanner.ended == (scanner.size > 2 * limit)
        if scanner.fault is None:
            whole = read(message, normalize=normalize)
            assert whole.startswith(delivered)
            # … nor delivered: its dot may be one of transparency, its LF have a CR.
            assert len(whole) - len(delivered) <= 5
        return "unfinished"
    assert scanner.ended
    if scanner.size == len(message):
        assert rest == behind
    else:
        # Given up before its end.
        assert len(message) >= scanner.size > 2 * limit
    fault = scanner.fault
    assert fault is expected(message, limit, normalize=normalize)
    whole = read(message, normalize=normalize)
    if fault is None:
        assert delivered == whole
        lines = delivered.replace(b"\r\n", b"")
        assert b"\r" not in lines
        assert b"\n" not in lines
        return "good"
    assert whole.startswith(delivered)
    return str(fault.code)


def split(octets: bytes) -> tuple[bytes | None, bytes]:
    """Return the message, and what stands behind it; None: its end has not come.

    Its end is a dot alone on a line, between two CRLF.
    """
    begin = 0
    while (end := octets.find(b"\r\n", begin)) >= 0:
        # Not at the dot of "CRLF CRLF .": a line begins behind a CRLF.
        if octets[begin:end] == b".":
            return octets[:begin], octets[end + 2 :]
        begin = end + 2
    return None, b""


def expected(message: bytes, limit: int, *, normalize: bool) -> replies.Reply | None:
    """Return the fault of a whole message."""
    if len(message) > 2 * limit:
        return replies.TOO_LARGE_TO_READ
    if not normalize:
        for at, octet in enumerate(message):
            if octet == 10 and message[at - 1 : at] != b"\r":
                return replies.BARE_NEWLINE
            if octet == 13 and message[at + 1 : at + 2] != b"\n":
                return replies.BARE_NEWLINE
    return replies.TOO_LARGE if len(message) > limit else None


def read(message: bytes, *, normalize: bool) -> bytes:
    """Return the message as it is delivered: each line's first dot gone, its end repaired."""
    *lines, last = message.split(b"\n" if normalize else b"\r\n")
    if normalize:
        lines = [line.removesuffix(b"\r").replace(b"\r", b" ") for line in lines]
        last = last.replace(b"\r", b" ")
    return b"\r\n".join(line.removeprefix(b".") for line in (*lines, last))
