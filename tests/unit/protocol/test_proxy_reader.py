"""How much of a connection a header's reader asks for, and where it ends."""

from __future__ import annotations

import pytest

from preforkmx.errors import LocalProtocolError, ProxyError
from preforkmx.protocol.proxy import V2_SIGNATURE, HeaderReader, ProxyInfo, Wanted

LINE = b"PROXY TCP4 192.0.2.1 198.51.100.7 40000 25\r\n"
BINARY = V2_SIGNATURE + bytes.fromhex("21 11 000c c0000201 c6336407 9c40 0019")


def test_it_begins_with_twelve_octets_which_every_header_has():
    assert HeaderReader().wanted == Wanted(12, until_lf=False)


def test_version_1_is_asked_for_up_to_its_line_feed_and_at_most_107_octets():
    reader = HeaderReader()
    assert reader.feed(LINE[:12]) is None
    assert reader.wanted == Wanted(95, until_lf=True)
    assert reader.feed(LINE[12:20]) is None
    assert reader.wanted == Wanted(87, until_lf=True)


def test_version_1_is_known_by_its_first_six_octets():
    reader = HeaderReader()
    assert reader.feed(LINE[:5]) is None
    assert reader.wanted == Wanted(7, until_lf=False)
    assert reader.feed(LINE[5:6]) is None
    assert reader.wanted == Wanted(101, until_lf=True)


def test_version_2_is_asked_for_by_its_own_length():
    reader = HeaderReader()
    wanted = []
    for piece in (BINARY[:12], BINARY[12:16], BINARY[16:20], BINARY[20:27]):
        assert reader.feed(piece) is None
        wanted.append(reader.wanted)
    assert wanted == [Wanted(4, False), Wanted(12, False), Wanted(8, False), Wanted(1, False)]
    assert reader.received == 27
    assert reader.feed(BINARY[27:]).source is not None
    assert reader.wanted.octets == 0


@pytest.mark.parametrize("header", [LINE, BINARY, b"PROXY UNKNOWN\r\n"])
def test_one_octet_after_another_says_the_same_as_all_at_once(header):
    reader = HeaderReader()
    for octet in header[:-1]:
        assert reader.feed(bytes([octet])) is None
        assert reader.wanted.octets >= 1
    info = reader.feed(header[-1:])
    assert isinstance(info, ProxyInfo)
    whole = HeaderReader()
    while (again := whole.feed(header[whole.received :][: whole.wanted.octets])) is None:
        pass
    assert again == info


def test_a_header_without_addresses_ends_with_its_sixteenth_octet():
    reader = HeaderReader()
    assert reader.feed(V2_SIGNATURE) is None
    assert reader.feed(bytes.fromhex("20 00 0000")) == ProxyInfo(2, local=True)


@pytest.mark.parametrize("begin", [V2_SIGNATURE, b"PROXY "])
def test_the_first_wrong_octet_is_an_error(begin):
    for right in range(len(begin)):
        reader = HeaderReader()
        assert reader.feed(begin[:right]) is None
        with pytest.raises(ProxyError, match="does not begin like"):
            reader.feed(b"x")


@pytest.mark.parametrize("begin", [b"EHLO a.examp", b"GET / HTTP/1", b"\x16\x03\x01", b"proxy "])
def test_what_other_protocols_begin_with_is_an_error(begin):
    with pytest.raises(ProxyError, match="does not begin like"):
        HeaderReader().feed(begin)


@pytest.mark.parametrize(
    ("fixed", "reason"),
    [
        ("11 11 000c", "the version is 1"),
        ("31 11 000c", "the version is 3"),
        ("22 11 000c", "the command is 2"),
        ("21 41 000c", "the address family is 4"),
        ("21 12 000c", "the transport is 2, not a stream"),
        ("21 1f 000c", "the transport is 15"),
        ("21 11 4001", "16385 octets"),
        ("21 11 ffff", "65535 octets"),
        ("20 00 ffff", "65535 octets"),
    ],
)
def test_a_fixed_part_that_is_wrong_is_an_error_before_more_is_read(fixed, reason):
    reader = HeaderReader()
    reader.feed(V2_SIGNATURE)
    with pytest.raises(ProxyError, match=reason):
        reader.feed(bytes.fromhex(fixed))


def test_the_longest_header_of_version_2_is_taken():
    reader = HeaderReader()
    reader.feed(V2_SIGNATURE)
    assert reader.feed(bytes.fromhex("20 00 4000")) is None
    assert reader.feed(bytes(16384)) == ProxyInfo(2, local=True)


def test_more_than_was_wanted_is_a_bug_of_the_caller():
    with pytest.raises(LocalProtocolError):
        HeaderReader().feed(LINE)
    reader = HeaderReader()
    reader.feed(LINE[:12])
    with pytest.raises(LocalProtocolError):
        reader.feed(LINE[12:] + b"E")


def test_nothing_is_taken_behind_the_end():
    reader = HeaderReader()
    reader.feed(V2_SIGNATURE)
    reader.feed(bytes.fromhex("20 00 0000"))
    with pytest.raises(LocalProtocolError):
        reader.feed(b"E")
