"""However the same octets are split, the same events and the same replies come out.

STARTTLS is left out: there the core has to tell octets of one segment from those after it.
"""

from __future__ import annotations

import streams
from hypothesis import example, given, settings
from hypothesis import strategies as st

from preforkmx.protocol.framing import LINE_LIMIT, SKIP_LIMIT

fragments = st.sampled_from(streams.FRAGMENTS) | st.binary(max_size=12)
sessions = st.builds(
    lambda opening, rest: opening + b"".join(rest),
    st.sampled_from(
        [b"", streams.GREETINGS[0], streams.GREETINGS[1], streams.GREETINGS[0] + streams.MESSAGE]
    ),
    st.lists(fragments, max_size=20),
)
messages = st.lists(st.sampled_from(streams.BODY), max_size=16).map(b"".join)


def same_however_split(octets, cuts, salt):
    stream = streams.Stream(
        octets,
        tuple(sorted(min(cut, len(octets)) for cut in cuts)),
        starttls=False,
        salt=salt,
    )
    whole = streams.talk((octets,), salt=salt)
    for pieces in (stream.pieces, [octets[i : i + 1] for i in range(len(octets))]):
        split = streams.talk(pieces, salt=salt)
        assert split.happened == whole.happened
        assert split.output == whole.output
        assert split.delivered == whole.delivered
        assert split.traced == whole.traced


@given(sessions, st.lists(st.integers(0, 4000), max_size=8), st.integers(0, 3))
@settings(deadline=None, max_examples=150)
def test_a_session_is_the_same_however_its_octets_are_split(octets, cuts, salt):
    same_however_split(octets, cuts, salt)


@given(messages, messages, st.lists(st.integers(0, 300), max_size=8))
@settings(deadline=None, max_examples=150)
def test_a_message_is_the_same_however_its_octets_are_split(first, second, cuts):
    octets = b"".join(
        (
            streams.GREETINGS[0],
            streams.MESSAGE,
            first,
            b"\r\n.\r\n",
            streams.MESSAGE,
            second,
            b"\r\n.\r\nNOOP\r\n",
        )
    )
    same_however_split(octets, cuts, 0)


@given(
    st.sampled_from([LINE_LIMIT, LINE_LIMIT + SKIP_LIMIT, 12288, 12288 + SKIP_LIMIT]),
    st.integers(-4, 4),
    st.sampled_from([b"\r\n", b"\n", b"\r", b"\r\r\n", b"\rx\r\n"]),
    st.booleans(),
    st.lists(st.integers(0, 21000), max_size=4),
)
@settings(deadline=None, max_examples=60)
@example(LINE_LIMIT, 1, b"\r\n", False, [LINE_LIMIT + 17])
def test_a_line_near_a_limit_is_the_same_however_it_is_split(limit, excess, end, in_exchange, cuts):
    opening = b"EHLO a.example\r\n" + (b"AUTH LOGIN\r\n" if in_exchange else b"")
    octets = opening + b"A" * (limit + excess - len(end)) + end + b"NOOP\r\n"
    stream = streams.Stream(
        octets, tuple(sorted(min(cut, len(octets)) for cut in cuts)), starttls=False, salt=0
    )
    whole = streams.talk((octets,))
    split = streams.talk(stream.pieces)
    assert (split.happened, split.output) == (whole.happened, whole.output)
