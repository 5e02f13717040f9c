"""Answers of DNS servers (RFC 1035): against dnspython's own reading of the whole message.

An input is an octet that chooses the type asked for, two of flags, three counts of records, and
the sections behind the question.
"""

from __future__ import annotations

from ipaddress import ip_address

import dns.exception
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
from inputs import Choices

from preforkmx.dns import MX
from preforkmx.dns.messages import MAX_CHAIN, NXDOMAIN, Malformed, Question, read

TYPES = ("A", "AAAA", "CNAME", "MX", "NS", "PTR", "TXT")
TOKENS = (
    b"\xc0\x0c", b"\xc0\x00", b"\xc0\x1d", b"\xff\xff", b"\x00", b"\x01a", b"\x3f", b"\x40",
    b"\xc0\x0c\0\1\0\1\0\0\1\x2c\0\4\xc0\0\2\1", b"\xc0\x0c\0\5\0\1\0\0\1\x2c\0\2\xc0\x0c",
    b"\xc0\x0c\0\x10\0\1\0\0\1\x2c\0\3\2ab", b"\0\0\x29\4\xd0\1\0\0\0\0\0",
    b"\7example\3org\0", b"\xc0\x13", b"\0\6\0\1",
)  # fmt: skip
OUTCOMES = {"records", "nothing", "nxdomain", "error", "truncated", "malformed"}
COUNT = 6000


def check(data: bytes) -> str:
    choices = Choices(data)
    question = Question("www.example.org", TYPES[choices.octet() % len(TYPES)])  # type: ignore[arg-type]
    flags = bytes((choices.octet() & 0x87 | 0x80, choices.octet()))
    counts = b"".join(choices.octet().to_bytes(2) for _ in range(3))
    wire = b"\x12\x34" + flags + b"\0\1" + counts + question.section + choices.rest()
    assert question.is_answered_by(wire)
    try:
        reading = read(wire, question)
    except Malformed:
        return "malformed"
    if reading.truncated:
        assert flags[0] & 2
        return "truncated"
    if reading.rcode not in {0, NXDOMAIN}:
        assert not reading.records
        return "error"
    if reading.records:
        assert reading.rcode == 0
        assert reading.ttl is not None
    assert reading.ttl is None or 0 <= reading.ttl < 1 << 31
    for record in reading.records:
        if isinstance(record, bytes):
            assert record in wire or len(record) <= len(wire)
        elif isinstance(record, str | MX):
            assert str(record).isprintable()
    _as_dnspython_reads_it(wire, question, reading)
    if reading.rcode == NXDOMAIN:
        return "nxdomain"
    return "records" if reading.records else "nothing"


def _as_dnspython_reads_it(wire, question, reading) -> None:
    try:
        message = dns.message.from_wire(wire, one_rr_per_rrset=True, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError):
        # It also reads what is left alone here.
        return
    assert message.rcode() == reading.rcode
    name = dns.name.from_text(question.name)
    for _ in range(MAX_CHAIN + 1):
        records = [] if reading.rcode else _of(message, name, question.rdtype)
        aliases = _of(message, name, "CNAME")
        if records or not aliases or question.rdtype == "CNAME":
            break
        name = aliases[0].target
    assert {_plain(record) for record in records} == set(reading.records)


def _of(message, name, rdtype):
    wanted = dns.rdatatype.from_text(rdtype)
    return [
        rrset[0]
        for rrset in message.answer
        if rrset.name == name
        and rrset.rdtype == wanted
        and rrset.rdclass == dns.rdataclass.IN
        and len(rrset)
    ]


def _plain(record):
    match record.rdtype.name:
        case "A" | "AAAA":
            return ip_address(record.address)
        case "MX":
            return MX(record.preference, record.exchange.to_text(omit_final_dot=True))
        case "TXT":
            return b"".join(record.strings)
        case _:
            return record.target.to_text(omit_final_dot=True)
