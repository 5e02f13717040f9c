from __future__ import annotations

import re
from email.utils import parsedate_to_datetime
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from maildirs import HOSTNAME, NOON, PEER

from preforkmx.delivery.trace import date, received, return_path, trace
from preforkmx.model import TLSInfo


def received_line(peer=PEER, recipient: str | None = "joe@example.com") -> str:
    line = received(peer, recipient=recipient, transaction="T1", hostname=HOSTNAME, now=NOON)
    return line.decode()


def test_the_header_of_a_message_for_one_recipient():
    assert trace(
        PEER, "from@example.org", "joe@example.com", transaction="T1", hostname=HOSTNAME, now=NOON
    ) == (
        b"Return-Path: <from@example.org>\r\n"
        b"Delivered-To: joe@example.com\r\n"
        b"Received: from mail.example.org ([192.0.2.1])\r\n"
        b"\tby mx.example.com (preforkmx)\r\n"
        b"\twith ESMTP id T1\r\n"
        b"\tfor <joe@example.com>;\r\n"
        b"\tTue, 14 Nov 2023 22:13:20 +0000\r\n"
    )


def test_the_header_of_a_message_for_several_recipients_names_none_of_them():
    header = trace(PEER, "", None, transaction="T1", hostname=HOSTNAME, now=NOON)
    assert header.startswith(b"Return-Path: <>\r\nReceived: ")
    assert b"Delivered-To" not in header
    assert b"for <" not in header


def test_tls_is_a_comment():
    peer = PEER._replace(protocol="ESMTPS", tls=TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256))
    line = received_line(peer)
    assert "\r\n\t(using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256 bits))\r\n\tby " in line
    assert "\r\n\twith ESMTPS id T1\r\n" in line


def test_an_ipv6_address_is_a_literal():
    peer = PEER._replace(address=ip_address("2001:db8::1"))
    assert "from mail.example.org ([IPv6:2001:db8::1])\r\n" in received_line(peer)


def test_a_unix_socket_has_no_address():
    peer = PEER._replace(address=None)
    assert "from mail.example.org (unix socket)\r\n" in received_line(peer)
    assert "from unknown (unix socket)\r\n" in received_line(peer._replace(helo_name=""))


@pytest.mark.parametrize("name", ["[192.0.2.7]", "[IPv6:2001:db8::7]", "localhost", "a_b.example"])
def test_a_name_that_fits_the_grammar_stands_as_it_is(name):
    assert f"from {name} ([192.0.2.1])\r\n" in received_line(PEER._replace(helo_name=name))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("", "from [192.0.2.1] ([192.0.2.1])"),
        ("not a domain", "from [192.0.2.1] ([192.0.2.1]) (HELO not a domain)"),
        ("x) by evil (", "from [192.0.2.1] ([192.0.2.1]) (HELO x? by evil ?)"),
        ("x\r\nEvil: yes", "from [192.0.2.1] ([192.0.2.1]) (HELO x??Evil: yes)"),
        ("x\\", "from [192.0.2.1] ([192.0.2.1]) (HELO x?)"),
        ("é", "from [192.0.2.1] ([192.0.2.1]) (HELO ?)"),
        ("[not.an.address]", "from [192.0.2.1] ([192.0.2.1]) (HELO [not.an.address])"),
        ("a..b", "from [192.0.2.1] ([192.0.2.1]) (HELO a..b)"),
    ],
)
def test_a_name_that_does_not_fit_the_grammar_stands_in_a_comment(name, shown):
    line = received_line(PEER._replace(helo_name=name))
    assert line.startswith(f"Received: {shown}\r\n\tby ")


def test_a_name_that_is_too_long_is_cut():
    line = received_line(PEER._replace(helo_name="a" * 2000))
    assert "a" * 255 + ")" in line
    assert "a" * 256 not in line


def is_one_header(header: bytes) -> bool:
    """Whether the octets are lines of one header field each, none longer than 998 octets."""
    lines = header.split(b"\r\n")
    return (
        lines[-1] == b""
        and all(re.match(rb"\t|Return-Path: |Delivered-To: |Received: ", x) for x in lines[:-1])
        and sum(not line.startswith(b"\t") for line in lines[:-1]) == 3
        and all(0 < len(line) <= 998 for line in lines[:-1])
        and not re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", b"".join(lines))
    )


def comments_close(text: str) -> bool:
    depth = 0
    for character in re.sub(r"<.*>", "", text):
        depth += (character == "(") - (character == ")")
        if depth < 0:
            return False
    return depth == 0


hostile = st.text(alphabet='a.()<>\\"\r\n\t\0\x7f\x85\u2028 é:;[]', max_size=40) | st.text()


@given(hostile, hostile, hostile, hostile)
def test_nothing_that_a_client_says_can_break_the_header(helo, sender, recipient, transaction):
    header = trace(
        PEER._replace(helo_name=helo),
        sender[:200],
        recipient[:200],
        transaction=transaction,
        hostname=HOSTNAME,
        now=NOON,
    )
    assert is_one_header(header)
    line = header[header.index(b"Received: ") :].decode()
    assert comments_close(line.partition("\r\n\tfor ")[0])
    assert line.endswith(";\r\n\tTue, 14 Nov 2023 22:13:20 +0000\r\n")


def test_the_reverse_path_keeps_what_it_is():
    assert return_path('"a b"@example.org') == b'Return-Path: <"a b"@example.org>\r\n'
    assert return_path("jörg@example.org") == "Return-Path: <jörg@example.org>\r\n".encode()


@given(st.integers(min_value=0, max_value=4_000_000_000))
def test_a_date_reads_back(now):
    assert parsedate_to_datetime(date(now)).timestamp() == now
