"""Version 1 of the PROXY protocol: one line of text."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from preforkmx.errors import ProxyError
from preforkmx.protocol.proxy import HeaderReader, ProxyInfo


def read(line):
    reader = HeaderReader()
    for octet in line:
        info = reader.feed(bytes([octet]))
        if info is not None:
            return info
    return None


def endpoint(address, port):
    return ip_address(address), port


def test_tcp4():
    assert read(b"PROXY TCP4 192.0.2.1 198.51.100.7 40000 25\r\n") == ProxyInfo(
        1, source=endpoint("192.0.2.1", 40000), destination=endpoint("198.51.100.7", 25)
    )


def test_tcp6():
    assert read(b"PROXY TCP6 2001:db8::1 2001:DB8:0:0:0:0:0:2 0 65535\r\n") == ProxyInfo(
        1, source=endpoint("2001:db8::1", 0), destination=endpoint("2001:db8::2", 65535)
    )


def test_an_ipv4_mapped_address_is_ipv4():
    info = read(b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:c633:6407 40000 25\r\n")
    assert info.source == endpoint("192.0.2.1", 40000)
    assert info.destination == endpoint("198.51.100.7", 25)


@pytest.mark.parametrize(
    "rest", [b"", b" ", b" 1 2 3", b" ffff:f...f:ffff 65535 65535", b" \xff\0\r", b" " + b"x" * 90]
)
def test_unknown_names_no_address_and_has_anything_behind_it(rest):
    line = b"PROXY UNKNOWN" + rest + b"\r\n"
    assert len(line) <= 107
    assert read(line) == ProxyInfo(1)


def test_the_longest_line_of_the_specification_is_taken():
    longest = (
        b"PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff "
        b"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n"
    )
    assert len(longest) == 107
    assert read(longest) == ProxyInfo(1)


def test_a_line_of_107_octets_without_an_end_is_an_error():
    reader = HeaderReader()
    for octet in b"PROXY UNKNOWN " + b"x" * 92:
        assert reader.feed(bytes([octet])) is None
    with pytest.raises(ProxyError, match="no CRLF within 107"):
        reader.feed(b"\r")


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY TCP4 192.0.2.1 198.51.100.7 40000 25\n",
        b"PROXY UNKNOWN\n",
        b"PROXY \n",
    ],
)
def test_a_line_feed_alone_ends_nothing(line):
    with pytest.raises(ProxyError, match="does not end with CRLF"):
        read(line)


def test_a_short_line_is_an_error_also_with_more_behind_it_in_the_first_read():
    with pytest.raises(ProxyError, match="does not end with CRLF"):
        HeaderReader().feed(b"PROXY \r\nEHLO")
    with pytest.raises(ProxyError, match="does not end with CRLF"):
        HeaderReader().feed(b"PROXY \r\nab\r\n")


@pytest.mark.parametrize(
    "family", [b"", b"TCP5", b"tcp4", b"UDP4", b"TCP4\t", b"UNKNOWNS", b"unknown", b" TCP4"]
)
def test_another_protocol_is_an_error(family):
    with pytest.raises(ProxyError, match="none of TCP4, TCP6 and UNKNOWN"):
        read(b"PROXY " + family + b" 192.0.2.1 198.51.100.7 40000 25\r\n")


@pytest.mark.parametrize(
    "rest",
    [
        b"192.0.2.1 198.51.100.7 40000",
        b"192.0.2.1 198.51.100.7 40000 25 ",
        b"192.0.2.1 198.51.100.7 40000 25 26",
        b"192.0.2.1  198.51.100.7 40000 25",
        b" 192.0.2.1 198.51.100.7 40000 25",
        b"192.0.2.1\t198.51.100.7 40000 25",
        b"",
    ],
)
def test_there_are_four_words_with_single_spaces(rest):
    with pytest.raises(ProxyError, match="single spaces"):
        read(b"PROXY TCP4 " + rest + b"\r\n")


@pytest.mark.parametrize("family", [b"TCP4", b"TCP6"])
def test_a_protocol_alone_is_an_error(family):
    with pytest.raises(ProxyError, match="none of"):
        read(b"PROXY " + family + b"\r\n")


@pytest.mark.parametrize(
    "address",
    [b"2001:db8::1", b"192.0.2", b"192.0.2.01", b"192.0.2.256", b"0x7f.1", b"a", b"", b"1"],
)
def test_tcp4_has_ipv4_addresses(address):
    for pair in (address + b" 192.0.2.1", b"192.0.2.1 " + address):
        with pytest.raises(ProxyError, match="not an IPv4 address"):
            read(b"PROXY TCP4 " + pair + b" 40000 25\r\n")


@pytest.mark.parametrize("address", [b"192.0.2.1", b"[::1]", b"::1::", b"g::", b"", b"1" * 40])
def test_tcp6_has_ipv6_addresses(address):
    for pair in (address + b" ::1", b"::1 " + address):
        with pytest.raises(ProxyError, match="not an IPv6 address"):
            read(b"PROXY TCP6 " + pair + b" 40000 25\r\n")


def test_an_address_has_no_zone():
    with pytest.raises(ProxyError, match="zone"):
        read(b"PROXY TCP6 fe80::1%eth0 ::1 40000 25\r\n")


@pytest.mark.parametrize(
    "port",
    [b"0123", b"00", b"65536", b"99999", b"123456", b"-1", b"+5", b"1_0", b"2a", b"", b"25\r"],
)
def test_a_port_is_a_canonical_number_up_to_65535(port):
    for pair in (port + b" 25", b"40000 " + port):
        with pytest.raises(ProxyError, match="a port is not"):
            read(b"PROXY TCP4 192.0.2.1 198.51.100.7 " + pair + b"\r\n")


def test_digits_of_other_scripts_are_none():
    with pytest.raises(ProxyError, match="not ASCII"):
        read("PROXY TCP4 192.0.2.1 198.51.100.7 40000 ٢\r\n".encode())
