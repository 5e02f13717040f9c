"""Queries and answers as octets: what is taken from an answer, and what its reading may cost."""

from __future__ import annotations

import time
from contextlib import suppress
from ipaddress import IPv4Address, ip_address
from itertools import pairwise

import dns.name
import pytest
from hypothesis import given
from hypothesis import strategies as st
from name_server import response, soa

from preforkmx.dns import messages
from preforkmx.dns.messages import Malformed, Question, Reading, id_of, read
from preforkmx.dns.names import labels_of, list_name, reverse_name, wire_name
from preforkmx.dns.tcp import MAX_TCP_ANSWER
from preforkmx.errors import DNSNameError

HEADER = b"\x12\x34\x81\x80\0\1"
A_RECORD = b"\0\1\0\1\0\0\1\x2c\0\4\xc0\0\2\1"
HERE = ip_address("192.0.2.1")


def question(rdtype="A", name="www.example.org"):
    return Question(name, rdtype)


def reading(*records, rdtype="A", **more):
    asked = question(rdtype)
    return read(response(asked.query(1, edns=True), *records, **more), asked)


def answer(asked, *records, answers=None):
    """A response whose records are octets."""
    count = len(records) if answers is None else answers
    return HEADER + count.to_bytes(2) + bytes(4) + asked.section + b"".join(records)


def test_a_query_asks_for_recursion_and_offers_a_payload():
    assert question().query(0x1234, edns=True) == (
        b"\x12\x34\x01\x00\0\1\0\0\0\0\0\1" + b"\3www\7example\3org\0\0\1\0\1" + b"\0\0\x29\x04\xd0\0\0\0\0\0\0"
    )  # fmt: skip
    assert question().query(0x1234, edns=False).endswith(b"\3org\0\0\1\0\1")


def test_the_case_of_the_question_does_not_matter_but_its_type_does():
    # The octets of type 65 and 97 are "A" and "a".
    asked = question()
    wire = response(asked.query(1, edns=True))
    upper = wire[:12] + wire[12:27].upper() + wire[27:]
    assert asked.is_answered_by(upper)
    assert not question("TXT").is_answered_by(wire)
    assert not question(name="www.example.com").is_answered_by(wire)
    for end in range(len(asked.section) + 12):
        assert not asked.is_answered_by(wire[:end])


def test_the_id_of_what_is_no_message_is_nobodys():
    assert [id_of(b""), id_of(b"\1"), id_of(b"\1\2"), id_of(b"\1\2\3")] == [-1, -1, 258, 258]


def test_records_of_other_names_are_not_taken():
    found = reading(
        "www.example.com. 300 IN A 198.51.100.66",
        "www.example.org. 300 IN A 192.0.2.1",
        "org. 1 IN A 198.51.100.66",
        "www.www.example.org. 1 IN A 198.51.100.66",
        authority=["www.example.org. 1 IN A 198.51.100.66"],
    )
    assert found == Reading(0, records=(HERE,), ttl=300)


def test_records_of_other_types_and_classes_are_not_taken():
    assert reading("www.example.org. 300 IN AAAA 2001:db8::1").records == ()
    chaos = b"\xc0\x0c" + A_RECORD[:3] + b"\3" + A_RECORD[4:]
    assert read(answer(question(), chaos), question()).records == ()


def test_a_chain_of_names_is_followed_within_the_answer():
    found = reading(
        "www.example.org. 300 IN CNAME A.example.net.",
        "b.example.com. 60 IN A 192.0.2.1",
        "a.example.net. 30 IN CNAME b.example.com.",
    )
    assert found == Reading(0, records=(HERE,), ttl=30)


def test_who_asks_for_the_alias_gets_the_alias():
    found = reading(
        "www.example.org. 300 IN CNAME a.example.net.",
        "a.example.net. 300 IN CNAME b.example.net.",
        rdtype="CNAME",
    )
    assert found.records == ("a.example.net",)


def test_where_a_chain_ends_without_records_its_end_says_how_long():
    alias = "www.example.org. 300 IN CNAME a.example.net."
    assert reading(alias, authority=[soa("example.net", 900, 120)]) == Reading(0, ttl=120)
    assert reading(alias, authority=[soa("example.net", 900, 600)]) == Reading(0, ttl=300)
    assert reading(alias, authority=[soa("example.org")]) == Reading(0, ttl=None)
    found = reading(alias, rcode="NXDOMAIN", authority=[soa("net")])
    assert (found.rcode, found.ttl) == (3, 300)


@pytest.mark.parametrize("length", [messages.MAX_CHAIN, messages.MAX_CHAIN + 1, 100])
def test_a_chain_has_a_length_that_is_allowed(length):
    names = ["www.example.org.", *(f"n{number}.example.org." for number in range(length))]
    chain = [f"{a} 300 IN CNAME {b}" for a, b in pairwise(names)]
    records = [*chain, f"{names[-1]} 300 IN A 192.0.2.1"]
    if length <= messages.MAX_CHAIN:
        assert reading(*records).records == (HERE,)
    else:
        with pytest.raises(Malformed):
            reading(*records)


@pytest.mark.parametrize("target", ["www.example.org.", "a.example.org."])
def test_a_circle_of_names_ends(target):
    with pytest.raises(Malformed):
        reading(
            f"www.example.org. 300 IN CNAME {target}",
            "a.example.org. 300 IN CNAME www.example.org.",
        )


def test_the_strings_of_a_text_are_joined_as_octets():
    found = reading('www.example.org. 9 IN TXT "v=spf1 ip4:192.0.2.0/" "24 \\255\\000" "" "-all"', rdtype="TXT")  # fmt: skip
    assert found.records == (b"v=spf1 ip4:192.0.2.0/24 \xff\0-all",)


def test_a_name_in_a_record_cannot_break_a_line_or_hide_a_dot():
    found = reading("www.example.org. 9 IN PTR a\\.b\\010c\\200.example.org.", rdtype="PTR")
    assert found.records == ("a\\.b\\010c\\200.example.org",)


@pytest.mark.parametrize(
    ("rdtype", "data"),
    [
        (1, b""), (1, b"\0\0\0"), (1, bytes(5)), (28, bytes(4)), (28, bytes(17)),
        (16, b""), (16, b"\1"), (16, b"\0\1"), (16, b"\2ab\7ab"),
        (15, b""), (15, b"\0"), (15, b"\0\1"), (15, b"\0\1\1a"), (15, b"\0\1\0\0"),
        (12, b""), (12, b"\1a"), (12, b"\0\0"), (12, b"\xc0\x0c\0"), (12, b"\xc0"),
        (12, b"\x40a\0"), (12, b"\x80a\0"), (12, b"\xff\xff"), (5, b"\1a"),
    ],
)  # fmt: skip
def test_data_that_does_not_fit_its_record_is_malformed(rdtype, data):
    names = {1: "A", 28: "AAAA", 16: "TXT", 15: "MX", 12: "PTR", 5: "A"}
    asked = question(names[rdtype])
    record = b"\xc0\x0c" + rdtype.to_bytes(2) + b"\0\1\0\0\1\x2c" + len(data).to_bytes(2) + data
    with pytest.raises(Malformed):
        read(answer(asked, record), asked)


def test_whatever_is_cut_off_makes_an_answer_malformed():
    asked = question("MX")
    wire = response(
        asked.query(1, edns=True),
        "www.example.org. 300 IN MX 10 mx.example.org.",
        authority=["example.org. 300 IN NS ns.example.org."],
    )
    assert read(wire, asked).records
    for end in range(12 + len(asked.section), len(wire)):
        with pytest.raises(Malformed):
            read(wire[:end], asked)


@pytest.mark.parametrize(
    "owner",
    [
        b"\xc0\x21",  # itself
        b"\xc0\x30",  # forwards
        b"\1a\xc0\x21",  # back to where it began
        b"\xff\xff",
        b"\xc0",
    ],
)
def test_pointers_lead_backwards(owner):
    asked = question()
    with pytest.raises(Malformed):
        read(answer(asked, owner + A_RECORD), asked)


def _in_time(asked, wire):
    """Read what is as long as may be; it is malformed, and found out before anybody notices."""
    assert len(wire) <= MAX_TCP_ANSWER
    began = time.process_time()
    with pytest.raises(Malformed):
        read(wire, asked)
    assert time.process_time() - began < 0.25


def test_a_long_chain_of_pointers_costs_little():
    asked = question()
    # One record holds pointers, each to the one before it; the others begin at the last of them.
    begin = 12 + len(asked.section) + 12
    pointers = [0xC00C, *(0xC000 + begin + 2 * number for number in range(4000))]
    data = b"".join(pointer.to_bytes(2) for pointer in pointers)
    first = b"\xc0\x0c\0\x10\0\1\0\0\1\x2c" + len(data).to_bytes(2) + data
    last = (0xC000 + begin + len(data) - 2).to_bytes(2)
    _in_time(asked, answer(asked, first, *[last + A_RECORD] * 200))


def test_many_records_cost_little():
    asked = question()
    few = [b"\xc0\x0c" + A_RECORD] * messages.MAX_RECORDS
    assert len(read(answer(asked, *few), asked).records) == messages.MAX_RECORDS
    _in_time(asked, answer(asked, *few, b"\xc0\x0c" + A_RECORD))
    _in_time(asked, answer(asked, answers=65535))


def test_many_long_names_cost_little():
    asked = question()
    # 120 labels before each pointer: no two owners begin at the same octet.
    long = b"".join(b"\1" + bytes([97 + number % 26]) for number in range(119)) + b"\0"
    first = 12 + len(asked.section)
    owners = [b"\1x" + (0xC000 + first + 2 * (number % 50)).to_bytes(2) for number in range(250)]
    _in_time(asked, answer(asked, long + A_RECORD, *(owner + A_RECORD for owner in owners)))


def test_one_endless_name_costs_little():
    asked = question()
    _in_time(asked, answer(asked, b"\1a" * 8000 + b"\0" + A_RECORD))


def test_an_answer_with_the_longest_text_is_read():
    asked = question("TXT")
    data = (b"\xff" + b"x" * 255) * 63
    record = b"\xc0\x0c\0\x10\0\1\0\0\1\x2c" + len(data).to_bytes(2) + data
    assert read(answer(asked, record), asked).records == (b"x" * 255 * 63,)


@given(st.binary(max_size=300), st.sampled_from(["A", "AAAA", "CNAME", "MX", "NS", "PTR", "TXT"]))
def test_no_octets_do_anything_but_answer_or_be_malformed(octets, rdtype):
    asked = question(rdtype)
    assert not asked.is_answered_by(octets) or octets[2] & 0x80
    for wire in (answer(asked, octets, answers=3), asked.query(1, edns=True)[:12] + octets):
        if asked.is_answered_by(wire):
            with suppress(Malformed):
                read(wire, asked)


labels = st.text(
    st.characters(min_codepoint=0, max_codepoint=127, exclude_characters="."),
    min_size=1,
    max_size=63,
)


@given(st.lists(labels, min_size=1, max_size=12))
def test_a_name_goes_onto_the_wire_as_it_is_or_not_at_all(parts):
    name = ".".join(parts)
    if sum(map(len, parts)) + len(parts) + 1 > 255:
        with pytest.raises(DNSNameError):
            labels_of(name)
    else:
        octets = wire_name(labels_of(name))
        assert octets == b"".join(bytes([len(part)]) + part.encode() for part in parts) + b"\0"
        assert dns.name.from_wire(octets, 0)[0].labels == labels_of(name)


@pytest.mark.parametrize(("length", "good"), [(253, True), (254, False)])
def test_a_name_has_255_octets_at_most_on_the_wire(length, good):
    name = ("a" * 49 + ".") * 5 + "a" * (length - 250)
    if good:
        assert len(wire_name(labels_of(name))) == 255
    else:
        with pytest.raises(DNSNameError):
            labels_of(name)


@given(st.text(max_size=300))
def test_what_is_no_name_is_told_without_its_control_characters(name):
    with pytest.raises(DNSNameError) as caught:
        labels_of(f"..{name}")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 120


@given(st.ip_addresses())
def test_the_name_of_an_address_is_that_of_the_library(address):
    mapped = getattr(address, "ipv4_mapped", None)
    assert reverse_name(address) == (mapped or address).reverse_pointer
    zone = "in-addr.arpa" if isinstance(mapped or address, IPv4Address) else "ip6.arpa"
    assert list_name(address, zone) == reverse_name(address)
