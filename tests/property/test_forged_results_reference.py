"""The filter of forged Authentication-Results against a slow reading of the whole message."""

from __future__ import annotations

from email.message import Message
from email.parser import BytesParser
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from preforkmx.middleware.forged_results import LONGEST_HELD, MOST_FIELDS, ForgedResults

OWN = "mx.example.com"

#: What messages are put together from: everything that means something to the filter.
PIECES = st.sampled_from(
    [
        b"\r\n",
        b"\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b"Authentication-Results:",
        b"\r\nAuthentication-Results:",
        b"\r\nAuthentication-Results: mx.example.com; spf=pass",
        b"\r\nAuthentication-Results: other.example; spf=pass",
        b"\r\nauthentication-RESULTS",
        b"Authentication-Result",
        b"mx.example.com",
        b"MX.Example.COM.",
        b'"mx.example.com"',
        b'"mx.ex\\ample.com"',
        b"other.example",
        b";",
        b" 1;",
        b" 2;",
        b":",
        b"(",
        b")",
        b"(a (b) \\) c)",
        b"\\",
        b'"',
        b"\xff",
        b"spf=pass",
        b"Subject: hello",
        b"\r\nX: y",
        b"\r\n\r\n",
        b"x" * 40,
    ]
)
MESSAGES = st.lists(PIECES, max_size=24).map(b"".join)


def filtered(message: bytes, cuts: list[int]) -> bytes:
    """Return what passes of `message`, which comes in pieces."""
    taker = ForgedResults([OWN])
    edges = [0, *sorted(cut % (len(message) + 1) for cut in cuts), len(message)]
    passed = [taker.feed(message[a:b]) for a, b in pairwise(edges)]
    return b"".join([*passed, taker.end()])


def reference(message: bytes) -> bytes:
    """Return what is to pass: line by line, octet by octet, with all of it at hand."""
    out = b""
    rest = message
    if rest.startswith((b" ", b"\t")):
        rest = rest[len(whole_field(rest)) :]
    while rest:
        if rest.startswith(b"\r\n") and (b"\r\n" + out).endswith(b"\r\n"):
            return out + rest
        begins_a_line = (b"\n" + out).endswith((b"\r", b"\n"))
        name = rest[:22].lower()
        if (
            begins_a_line
            and name == b"authentication-results"
            and rest[22:23] in (b" ", b"\t", b"\r", b"\n", b":")
            and rest[22:23]
        ):
            field = whole_field(rest)
            if is_ours(field):
                rest = rest[len(field) :]
                continue
        out += rest[:1]
        rest = rest[1:]
    return out


def whole_field(rest: bytes) -> bytes:
    at = 0
    while at < len(rest):
        if rest[at : at + 2] == b"\r\n":
            at += 2
        elif rest[at : at + 1] in (b"\r", b"\n"):
            at += 1
        else:
            at += 1
            continue
        if at < len(rest) and rest[at : at + 1] not in (b" ", b"\t"):
            return rest[:at]
    return rest


def is_ours(field: bytes) -> bool:
    """Read the field with a reader that goes octet by octet, and gives up at what it cannot read."""
    text = field.replace(b"\r\n", b"")
    if b"\r" in text or b"\n" in text:
        return True
    text = text[22:]
    try:
        return _claims(list(text.replace(b"\t", b" ")))
    except (IndexError, UnicodeDecodeError):
        return True


def _claims(octets: list[int]) -> bool:
    while octets[0] == ord(" "):
        octets.pop(0)
    if octets.pop(0) != ord(":"):
        return True
    _skip(octets)
    name = b""
    if octets[0] == ord('"'):
        octets.pop(0)
        while octets[0] != ord('"'):
            if octets[0] == ord("\\"):
                octets.pop(0)
            name += bytes([octets.pop(0)])
        octets.pop(0)
    else:
        while octets[0] not in b'()<>@,;:\\"/[]?= ':
            name += bytes([octets.pop(0)])
        if not name:
            return True
    _skip(octets)
    version = b""
    while octets[0] in b"0123456789":
        version += bytes([octets.pop(0)])
    _skip(octets)
    if version not in (b"", b"1") or octets[0] != ord(";"):
        return True
    return name.decode().lower().rstrip(".") == OWN


def _skip(octets: list[int]) -> None:
    depth = 0
    while depth or octets[0] in b" (":
        octet = octets.pop(0)
        if octet == ord("\\"):
            octets.pop(0)
        depth += {ord("("): 1, ord(")"): -1}.get(octet, 0)


@given(MESSAGES, st.lists(st.integers(0, 10_000), max_size=6))
@example(b"Authentication-Results: mx.example.com; spf=pass\r\n\r\nbody", [])
@example(
    b"A: b\nAuthentication-Results: x\n\r\nAuthentication-Results: mx.example.com;\r\n\r\n", []
)
@example(b"\r\nAuthentication-Results: mx.example.com; in the body\r\n", [1])
@example(b"\t; dkim=pass\r\n y\r\n\r\nAuthentication-Results: mx.example.com; x\r\n", [1])
def test_what_passes_is_what_the_slow_reader_lets_pass(message: bytes, cuts: list[int]) -> None:
    assert filtered(message, cuts) == reference(message)


@given(MESSAGES)
def test_it_does_not_matter_where_the_message_is_cut(message: bytes) -> None:
    whole = filtered(message, [])
    assert filtered(message, list(range(len(message) + 1))) == whole
    for cut in range(len(message) + 1):
        assert filtered(message, [cut]) == whole


def header_of(octets: bytes) -> Message:
    return BytesParser().parsebytes(octets, headersonly=True)


@given(MESSAGES)
def test_no_reader_finds_a_field_of_ours_afterwards(message: bytes) -> None:
    """Not the standard library's, and not one for which only CRLF, or only LF, ends a line."""
    left = filtered(message, [])
    with_lf = left.replace(b"\r\n", b"\n")
    readings = [
        (b"\r\n" + left).partition(b"\r\n\r\n")[0].split(b"\r\n"),
        (b"\n" + with_lf).partition(b"\n\n")[0].split(b"\n"),
    ]
    for lines in readings:
        for line in lines:
            compact = line.replace(b"\t", b" ").lower()
            assert not compact.startswith(b"authentication-results: mx.example.com")
    for field in header_of(left).get_all("Authentication-Results", []):
        assert not str(field).lower().startswith("mx.example.com")


@given(MESSAGES)
def test_a_message_without_such_a_field_passes_as_it_is(message: bytes) -> None:
    if b"authentication-results" not in message.lower() and message[:1] not in (b" ", b"\t"):
        assert filtered(message, [5, 9]) == message


@pytest.mark.parametrize("rest", [b"A: b\r\n\r\n body", b"\r\n body", b""])
def test_lines_that_would_continue_our_own_field_are_taken_out(rest: bytes) -> None:
    message = b"\t; dkim=pass header.d=bank.example\r\n ; spf=pass\r\n" + rest
    for cut in range(len(message) + 1):
        assert filtered(message, [cut]) == rest
    assert filtered(message, list(range(len(message)))) == rest


def test_what_is_filtered_twice_is_the_same() -> None:
    message = (
        b"A: b\r\nAuthentication-Results: mx.example.com; x\r\n y\r\n"
        b"Authentication-Results: o.example; none\r\n\r\nbody"
    )
    once = filtered(message, [])
    assert filtered(once, []) == once
    assert once == b"A: b\r\nAuthentication-Results: o.example; none\r\n\r\nbody"


def test_of_very_many_fields_those_behind_the_first_hundred_are_taken_out() -> None:
    field = b"Authentication-Results: other.example; none\r\n"
    assert filtered(field * (MOST_FIELDS + 50) + b"\r\nx", []) == field * MOST_FIELDS + b"\r\nx"


@pytest.mark.parametrize("behind", range(-4, 5))
@pytest.mark.parametrize("ours", [True, False])
def test_a_field_that_is_longer_than_what_is_held_is_read_from_its_beginning(
    behind: int, *, ours: bool
) -> None:
    name = b"mx.example.com" if ours else b"other.example"
    field = b"Authentication-Results: " + name + b"; a=b "
    field += b"x" * (LONGEST_HELD - len(field) + behind) + b"\r\n folded\r\n"
    message = field + b"B: c\r\n\r\nbody"
    left = message[len(field) :] if ours else message
    for cuts in ([], [LONGEST_HELD - 1], [LONGEST_HELD], [LONGEST_HELD + 1], [5, LONGEST_HELD + 6]):
        assert filtered(message, cuts) == left


def test_a_name_that_comes_too_late_in_its_field_is_nobodys() -> None:
    field = b"Authentication-Results: (" + b"x" * LONGEST_HELD + b") other.example; none\r\n"
    assert filtered(field + b"\r\nbody", []) == b"\r\nbody"
    assert filtered(field + b"\r\nbody", list(range(0, len(field), 100))) == b"\r\nbody"
