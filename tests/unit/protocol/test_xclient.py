"""XCLIENT: its attributes, and the values that they may have."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from preforkmx.protocol.replies import XCLIENT_SYNTAX
from preforkmx.protocol.xclient import ATTRIBUTES, XClient, parse


def test_all_attributes_at_once():
    assert parse(
        b"NAME=client.example ADDR=192.0.2.1 PORT=40000 PROTO=ESMTP HELO=helo.example"
        b" LOGIN=alice DESTADDR=198.51.100.7 DESTPORT=25"
    ) == XClient(
        given=frozenset(ATTRIBUTES),
        name="client.example",
        address=ip_address("192.0.2.1"),
        port=40000,
        protocol="ESMTP",
        helo="helo.example",
        login="alice",
        destination_address=ip_address("198.51.100.7"),
        destination_port=25,
    )


def test_what_is_not_given_is_told_from_what_is_not_known():
    assert parse(b"NAME=[UNAVAILABLE]") == XClient(given=frozenset({"NAME"}))


@pytest.mark.parametrize("attribute", ATTRIBUTES)
@pytest.mark.parametrize("value", ["[UNAVAILABLE]", "[tempUnavail]", "+5BUNAVAILABLE+5D"])
def test_each_attribute_may_be_not_known(attribute, value):
    assert parse(f"{attribute}={value}".encode()) == XClient(given=frozenset({attribute}))


def test_names_are_in_any_case():
    assert parse(b"name=a.example Proto=esmtp") == XClient(
        given=frozenset({"NAME", "PROTO"}), name="a.example", protocol="ESMTP"
    )


@pytest.mark.parametrize("name", ["DEſTPORT", "DEſTADDR", "NAMＥ"])
def test_names_are_compared_in_ascii(name):
    assert parse(f"{name}=25".encode()) is XCLIENT_SYNTAX


def test_more_than_one_space_may_stand_between_and_around():
    assert parse(b"  PORT=1   DESTPORT=2 ").given == {"PORT", "DESTPORT"}


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("IPV6:2001:db8::1", "2001:db8::1"),
        ("ipv6:2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("IPv6:::ffff:192.0.2.1", "192.0.2.1"),
    ],
)
def test_addresses(value, address):
    said = parse(f"ADDR={value} DESTADDR={value}".encode())
    assert said.address == said.destination_address == ip_address(address)


@pytest.mark.parametrize(
    "value",
    [
        "a",
        "192.0.2",
        "192.0.2.01",
        "IPV6:192.0.2.1",
        "IPV6:",
        "fe80::1%eth0",
        "[192.0.2.1]",
        "٣.1.1.1",
    ],
)
def test_what_is_no_address_is_refused(value):
    assert parse(f"ADDR={value}".encode()) is XCLIENT_SYNTAX
    assert parse(f"DESTADDR={value}".encode()) is XCLIENT_SYNTAX


def test_ports_are_decimal_up_to_65535():
    assert parse(b"PORT=0 DESTPORT=65535") == XClient(
        given=frozenset({"PORT", "DESTPORT"}), port=0, destination_port=65535
    )


@pytest.mark.parametrize("value", ["65536", "-1", "+5", "1_0", "0x19", "123456", "٢٥", "25+0A"])
def test_what_is_no_port_is_refused(value):
    assert parse(f"PORT={value}".encode()) is XCLIENT_SYNTAX
    assert parse(f"DESTPORT={value}".encode()) is XCLIENT_SYNTAX


@pytest.mark.parametrize("value", ["LMTP", "ESMTPS", "HTTP", "SMTP+0A", "ſMTP"])
def test_the_protocol_is_smtp_or_esmtp(value):
    assert parse(b"PROTO=smtp").protocol == "SMTP"
    assert parse(f"PROTO={value}".encode()) is XCLIENT_SYNTAX


@pytest.mark.parametrize(
    ("value", "login"),
    [
        ("user+2Btag", "user+tag"),
        ("user+tag", "user+tag"),
        ("user+", "user+"),
        ("user+2", "user+2"),
        ("user+2g", "user+2g"),
        ("user++2B", "user++"),
        ("a+3db", "a=b"),
        ("a+3Db", "a=b"),
        ("a=b=c", "a=b=c"),
        ("John+20Doe", "John Doe"),
        ("j+C3+BCrgen", "jürgen"),
        ("jürgen", "jürgen"),
        ("+2B41", "+41"),
    ],
)
def test_values_are_xtext_and_a_plus_alone_stands_for_itself(value, login):
    assert parse(f"LOGIN={value}".encode()).login == login


@pytest.mark.parametrize("attribute", ["NAME", "HELO", "LOGIN"])
@pytest.mark.parametrize(
    "value",
    [b"a+0D+0Ab", b"a+00", b"a\x01b", b"a\tb", b"+7F", b"+C2+85", b"+E2+80+A8", b"+ff", b"\xff"],
)
def test_control_characters_and_what_is_no_utf_8_are_refused(attribute, value):
    assert parse(attribute.encode() + b"=" + value) is XCLIENT_SYNTAX


@pytest.mark.parametrize("attribute", ["NAME", "HELO"])
@pytest.mark.parametrize("value", ["a+20b", "exämple"])
def test_names_of_hosts_are_words_in_ascii(attribute, value):
    assert parse(f"{attribute}={value}".encode()) is XCLIENT_SYNTAX


def test_a_value_has_at_most_255_octets_decoded():
    assert parse(b"LOGIN=" + b"+41" * 255).login == "A" * 255
    assert parse(b"LOGIN=" + b"a" * 256) is XCLIENT_SYNTAX


@pytest.mark.parametrize(
    "argument",
    [
        b"",
        b"  ",
        b"NAME",
        b"NAME=",
        b"=x",
        b"NAME =x",
        b"FOO=x",
        b"REVERSE_NAME=a.example",
        b"NAME=a FOO=x",
        b"NAME=a name=b",
        b"PORT=1 PORT=1",
        b"PORT=[UNAVAILABLE] PORT=1",
        b"PORT=1\tDESTPORT=2",
        b"\xff=\xff",
    ],
)
def test_no_attribute_an_unknown_one_or_the_same_twice_is_refused(argument):
    assert parse(argument) is XCLIENT_SYNTAX
