"""The parser of replies and the transparency of DATA, whatever comes and however it is split."""

from __future__ import annotations

import smtplib

from hypothesis import given
from hypothesis import strategies as st

from preforkmx.delivery.nexthop.content import Transparency
from preforkmx.delivery.nexthop.errors import Nonsense
from preforkmx.delivery.nexthop.replies import MAX_LINE, MAX_LINES, Reply, ReplyParser

TEXT = st.text(st.characters(exclude_characters="\r\n", exclude_categories=("Cs",)), max_size=40)
REPLIES = st.lists(
    st.builds(
        lambda code, lines: Reply(code, tuple(lines)),
        st.integers(200, 599),
        st.lists(TEXT, min_size=1, max_size=4),
    ),
    max_size=5,
)


def octets_of(reply: Reply) -> bytes:
    last = len(reply.lines) - 1
    return b"".join(
        f"{reply.code}{'-' if i < last else ' '}{line}\r\n".encode()
        for i, line in enumerate(reply.lines)
    )


def split_up(octets: bytes, sizes: list[int]):
    """Cut `octets` into pieces of these sizes, again and again."""
    while octets:
        for size in sizes or [len(octets)]:
            yield octets[:size]
            octets = octets[size:]
            if not octets:
                return


def read(octets: bytes, sizes: list[int]) -> tuple[list[Reply], bool]:
    """Return the replies in `octets`, and whether nonsense ended them."""
    parser = ReplyParser()
    found = []
    try:
        for piece in split_up(octets, sizes):
            parser.feed(piece)
            while (reply := parser.next_reply()) is not None:
                found.append(reply)
    except Nonsense:
        return found, True
    return found, False


SIZES = st.lists(st.integers(1, 50), max_size=5)


@given(REPLIES, SIZES)
def test_replies_are_read_as_they_were_written(replies, sizes):
    octets = b"".join(map(octets_of, replies))
    assert read(octets, sizes) == (replies, False)


@given(
    st.one_of(st.binary(max_size=300), REPLIES.map(lambda r: b"".join(map(octets_of, r)))),
    st.binary(max_size=20),
    SIZES,
)
def test_whatever_comes_is_read_alike_however_it_is_split(octets, more, sizes):
    assert read(octets + more, sizes) == read(octets + more, [])


@given(st.binary(max_size=200))
def test_every_reply_has_a_code_that_a_reply_can_have(octets):
    replies, _ = read(b"250 " + octets + b"\r\n", [])
    assert all(200 <= reply.code <= 599 for reply in replies)


@given(st.integers(1, 9))
def test_no_reply_is_held_beyond_its_bounds(times):
    replies, ended = read(b"250-" + b"x" * MAX_LINE * times, [1000])
    assert (replies, ended) == ([], True)
    replies, ended = read(b"250-x\r\n" * MAX_LINES * times, [1000])
    assert (replies, ended) == ([], True)


@given(TEXT, st.integers(200, 599))
def test_the_text_of_a_reply_is_what_stands_behind_its_enhanced_code(text, code):
    kind = code // 100
    reply = Reply(code, (f"{kind}.1.23 {text}",))
    if kind == 3:
        assert reply.enhanced is None
    else:
        assert reply.enhanced == (kind, 1, 23)
        assert reply.text == text.strip()
    assert Reply(250, (f"5.1.1 {text}",)).enhanced is None


MESSAGES = st.lists(st.sampled_from([b".", b"\r\n", b"x", b"..", b"\r\n.\r\n"]), max_size=30).map(
    b"".join
)
RAW = st.lists(st.sampled_from([b".", b"\r", b"\n", b"x", b"\r\n"]), max_size=30).map(b"".join)


def sent(message: bytes, sizes: list[int]) -> bytes:
    transparency = Transparency()
    return b"".join([*map(transparency.feed, split_up(message, sizes)), transparency.end()])


@given(MESSAGES, SIZES)
def test_dots_are_doubled_as_smtplib_does_it(message, sizes):
    expected = smtplib._quote_periods(message)
    end = b".\r\n" if not message or message.endswith(b"\r\n") else b"\r\n.\r\n"
    assert sent(message, sizes) == expected + end


@given(RAW, SIZES)
def test_a_message_with_bare_newlines_is_one_message_of_lines(message, sizes):
    octets = sent(message, sizes)
    assert octets.count(b"\r") == octets.count(b"\n") == octets.count(b"\r\n")
    # The first lone dot is the end: nothing behind it could be taken for commands.
    assert (b"\r\n" + octets).find(b"\r\n.\r\n") == len(octets) - 3
    lines = octets[:-3].split(b"\r\n")
    restored = b"\r\n".join(line.removeprefix(b".") for line in lines)
    normal = message.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
    assert restored in (normal, normal + b"\r\n")
