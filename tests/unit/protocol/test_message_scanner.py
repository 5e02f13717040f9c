"""The octets after DATA: RFC 5321 sections 4.1.1.4 and 4.5.2."""

from __future__ import annotations

import pytest

from preforkmx.protocol import replies
from preforkmx.protocol.message import MessageScanner


def scan(*pieces, max_size=1000):
    """The body, what comes after the message, and the scanner."""
    scanner = MessageScanner(max_size)
    body = []
    rest = b""
    for piece in pieces:
        if scanner.ended:
            rest += piece
            continue
        chunk, rest = scanner.feed(piece)
        assert scanner.ended or rest == b""
        body.append(chunk)
    return b"".join(body), rest, scanner


def every_way(octets):
    """The octets whole, in two pieces at every place, and one by one."""
    yield (octets,)
    for place in range(1, len(octets)):
        yield octets[:place], octets[place:]
    yield tuple(octets[i : i + 1] for i in range(len(octets)))


@pytest.mark.parametrize(
    ("octets", "body", "size"),
    [
        (b".\r\n", b"", 0),
        (b"\r\n.\r\n", b"\r\n", 2),
        (b"a\r\n.\r\n", b"a\r\n", 3),
        (b"a\r\n\r\nb\r\n.\r\n", b"a\r\n\r\nb\r\n", 8),
        (b"..\r\n.\r\n", b".\r\n", 4),
        (b"..", None, None),
        (b"a\r\n..\r\n...\r\n.b\r\n.\r\n", b"a\r\n.\r\n..\r\nb\r\n", 16),
        (b"a.\r\n.\r\n", b"a.\r\n", 4),
        (b"a\r\n.b\r\n.\r\n", b"a\r\nb\r\n", 7),
        (b"\0\x80\xff\r\n.\r\n", b"\0\x80\xff\r\n", 5),
    ],
)
def test_only_crlf_dot_crlf_ends_a_message_and_dots_are_removed(octets, body, size):
    for pieces in every_way(octets):
        got, rest, scanner = scan(*pieces)
        assert rest == b""
        assert scanner.ended == (body is not None)
        if body is not None:
            assert (got, scanner.size, scanner.fault) == (body, size, None)


def test_what_comes_after_the_end_is_left_alone():
    octets = b"a\r\n.\r\nMAIL FROM:<b@example.org>\r\n.\r\n"
    for pieces in every_way(octets):
        body, rest, scanner = scan(*pieces)
        assert (body, rest) == (b"a\r\n", b"MAIL FROM:<b@example.org>\r\n.\r\n")
        assert scanner.size == 3


@pytest.mark.parametrize(
    "octets",
    [
        b"a\nb\r\n.\r\n",
        b"a\rb\r\n.\r\n",
        b"\n\r\n.\r\n",
        b"\n.\r\n\r\n.\r\n",
        b"\r.\r\n\r\n.\r\n",
        b"a\r\n.\n\r\n.\r\n",
        b"a\r\n.\r\r\n\r\n.\r\n",
        b"a\r\r\n.\r\n",
        b"a\n\r\r\n.\r\n",
        b"\n.\n\r\n.\r\n",
        b".\n\r\n.\r\n",
        b".\r\r\n.\r\n",
        b".\rx\r\n.\r\n",
        b"\r\n.\rx\r\n.\r\n",
    ],
)
def test_a_bare_cr_or_lf_is_found_wherever_it_stands(octets):
    for pieces in every_way(octets):
        _, rest, scanner = scan(*pieces)
        assert scanner.ended
        assert scanner.fault is replies.BARE_NEWLINE
        assert rest == b""


def test_nothing_more_of_a_message_is_handed_on_once_it_is_bad():
    scanner = MessageScanner(1000)
    assert scanner.feed(b"good\r\n")[0] == b"good"
    assert scanner.feed(b"bad\nline\r\n")[0] == b""
    assert scanner.feed(b"good again\r\n")[0] == b""
    assert scanner.feed(b".\r\n") == (b"", b"")
    assert scanner.fault is replies.BARE_NEWLINE


@pytest.mark.parametrize(
    ("length", "fault"),
    [
        (9, None),
        (10, None),
        (11, replies.TOO_LARGE),
        (20, replies.TOO_LARGE),
        (21, replies.TOO_LARGE_TO_READ),
        (100, replies.TOO_LARGE_TO_READ),
    ],
)
def test_the_limit_counts_wire_octets_and_reading_stops_at_twice_of_it(length, fault):
    octets = b"x" * (length - 2) + b"\r\n.\r\n"
    for pieces in every_way(octets):
        body, _, scanner = scan(*pieces, max_size=10)
        assert scanner.ended
        assert scanner.fault is fault
        if fault is None:
            assert body == octets[:-3]
        else:
            assert len(body) <= 10


def test_transparency_dots_count():
    assert scan(b"..345678\r\n.\r\n", max_size=10)[2].fault is None
    assert scan(b"..3456789\r\n.\r\n", max_size=10)[2].fault is replies.TOO_LARGE


def test_a_message_that_never_ends_is_given_up_at_twice_the_limit():
    scanner = MessageScanner(10)
    fed = 0
    while not scanner.ended:
        scanner.feed(b"x")
        fed += 1
    assert fed == 21
    assert scanner.fault is replies.TOO_LARGE_TO_READ


def test_a_message_that_is_too_large_and_bad_closes_the_session():
    assert scan(b"x" * 15 + b"\n\r\n.\r\n", max_size=10)[2].fault is replies.BARE_NEWLINE
    assert scan(b"x" * 25 + b"\n\r\n.\r\n", max_size=10)[2].fault is replies.TOO_LARGE_TO_READ


def test_at_most_four_octets_are_kept_between_two_calls():
    for octets in (b"\r\n.\r" * 50, b"x\r\n" * 50, b"\r" * 50, b"." * 50):
        scanner = MessageScanner(1000)
        for octet in octets:
            scanner.feed(bytes((octet,)))
            assert len(scanner._carry) <= 4
