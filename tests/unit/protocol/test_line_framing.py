"""Lines out of octets: strict CRLF framing (RFC 5321 section 2.3.8)."""

from __future__ import annotations

import pytest

from preforkmx.protocol.framing import LINE_LIMIT, SKIP_LIMIT, LineFramer, Trouble


def lines(*pieces, limit=LINE_LIMIT):
    """All lines and troubles of the pieces, up to an endless one."""
    framer = LineFramer()
    found = []
    for piece in pieces:
        framer.feed(piece)
        while (line := framer.next_line(limit)) is not None:
            found.append(line)
            if line is Trouble.ENDLESS:
                return found
    return found


def octets_of(octets):
    return [octets[i : i + 1] for i in range(len(octets))]


def test_a_line_ends_with_crlf_and_comes_without_it():
    assert lines(b"NOOP\r\nQUIT\r\n") == [b"NOOP", b"QUIT"]
    assert lines(b"\r\n\r\n") == [b"", b""]


def test_a_line_is_not_there_before_its_lf_is():
    framer = LineFramer()
    for piece in (b"NO", b"OP", b"\r"):
        framer.feed(piece)
        assert framer.next_line() is None
    framer.feed(b"\n")
    assert framer.next_line() == b"NOOP"
    assert framer.next_line() is None


@pytest.mark.parametrize(
    "octets", [b"NOOP\n", b"\n", b"NO\rOP\r\n", b"NOOP\r\r\n", b"\r\r\n", b"\rNOOP\r\n"]
)
def test_a_bare_cr_or_lf_is_trouble_however_it_comes(octets):
    assert lines(octets) == [Trouble.BARE_NEWLINE]
    assert lines(*octets_of(octets)) == [Trouble.BARE_NEWLINE]


def test_a_bare_lf_right_after_a_line_is_trouble():
    assert lines(b"NOOP\r\n\n") == [b"NOOP", Trouble.BARE_NEWLINE]
    assert lines(*octets_of(b"NOOP\r\n\n")) == [b"NOOP", Trouble.BARE_NEWLINE]


@pytest.mark.parametrize("limit", [16, LINE_LIMIT, 12288])
def test_the_limit_counts_the_crlf(limit):
    fits = b"x" * (limit - 2) + b"\r\n"
    assert lines(fits, limit=limit) == [fits[:-2]]
    assert lines(b"x" + fits + b"y\r\n", limit=limit) == [Trouble.TOO_LONG, b"y"]


@pytest.mark.parametrize("excess", [-3, -2, -1, 0, 1, 2, 3])
@pytest.mark.parametrize("limit", [16, 100])
def test_a_line_is_judged_the_same_whole_and_octet_by_octet(limit, excess):
    for base in (limit, limit + SKIP_LIMIT):
        octets = b"x" * (base + excess - 2) + b"\r\nNOOP\r\n"
        whole = lines(octets, limit=limit)
        assert lines(*octets_of(octets), limit=limit) == whole
        expected = (
            octets[: base + excess - 2]
            if base + excess <= limit
            else Trouble.TOO_LONG
            if base + excess <= limit + SKIP_LIMIT
            else Trouble.ENDLESS
        )
        assert whole[0] == expected


@pytest.mark.parametrize("pieces", [[b"x" * 3000 + b"\n"], [b"x" * 3000, b"\n"]])
def test_a_line_that_is_too_long_and_ends_badly_is_trouble_of_the_worse_kind(pieces):
    assert lines(*pieces) == [Trouble.BARE_NEWLINE]


def test_the_cr_of_an_overlong_line_may_come_alone():
    assert lines(b"x" * 3000, b"\r", b"\n", b"NOOP\r\n") == [Trouble.TOO_LONG, b"NOOP"]
    assert lines(b"x" * 3000 + b"\r", b"\nNOOP\r\n") == [Trouble.TOO_LONG, b"NOOP"]
    assert lines(b"x" * 3000 + b"\r", b"x", b"\n") == [Trouble.BARE_NEWLINE]


def test_an_endless_line_is_given_up_without_its_end():
    assert lines(b"x" * (LINE_LIMIT + SKIP_LIMIT)) == []
    assert lines(b"x" * (LINE_LIMIT + SKIP_LIMIT + 1)) == [Trouble.ENDLESS]
    assert lines(*[b"x" * 512] * 100) == [Trouble.ENDLESS]


def test_an_overlong_line_is_not_kept():
    framer = LineFramer()
    for _ in range(5):
        framer.feed(b"x" * 1500)
        framer.next_line()
        assert framer.buffered <= LINE_LIMIT


def test_what_waits_is_counted():
    framer = LineFramer()
    framer.feed(b"NOOP\r\nQUI")
    assert framer.buffered == 9
    framer.next_line()
    assert framer.buffered == 3
    framer.next_line()
    assert framer.buffered == 3


def test_take_returns_what_waits_and_forgets_it():
    framer = LineFramer()
    framer.feed(b"DATA\r\nSubject: x")
    assert framer.next_line() == b"DATA"
    assert framer.take() == b"Subject: x"
    assert framer.take() == b""
    assert framer.buffered == 0
    framer.feed(b"NOOP\r\n")
    assert framer.next_line() == b"NOOP"


def test_what_is_fed_in_the_middle_of_a_line_belongs_to_it():
    framer = LineFramer()
    framer.feed(b"NOOP\r\nQU")
    assert framer.next_line() == b"NOOP"
    assert framer.next_line() is None
    framer.feed(b"IT\r\nRSET\r\n")
    framer.feed(b"HELP\r\n")
    assert [framer.next_line() for _ in range(4)] == [b"QUIT", b"RSET", b"HELP", None]


def test_the_limit_is_that_of_the_moment():
    framer = LineFramer()
    framer.feed(b"x" * 3000)
    assert framer.next_line(12288) is None
    framer.feed(b"\r\n" + b"y" * 3000 + b"\r\n")
    assert framer.next_line(12288) == b"x" * 3000
    assert framer.next_line() is Trouble.TOO_LONG
