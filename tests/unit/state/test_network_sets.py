from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from preforkmx.state.networks import PRIVATE, NetworkSet, host_octets, network_octets

ALLOW = NetworkSet(
    ip_network(text)
    for text in ("192.0.2.0/24", "198.51.100.7/32", "203.0.113.0/25", "2001:db8:1::/48")
)


@pytest.mark.parametrize(
    "address",
    [
        "192.0.2.0",
        "192.0.2.255",
        "198.51.100.7",
        "203.0.113.127",
        "2001:db8:1:ffff::1",
        "::ffff:192.0.2.1",
    ],
)
def test_an_address_of_one_of_the_networks_is_in_the_set(address):
    assert ip_address(address) in ALLOW


@pytest.mark.parametrize(
    "address",
    [
        "192.0.3.0",
        "198.51.100.6",
        "203.0.113.128",
        "2001:db8:2::1",
        "::192.0.2.1",
        "::ffff:1.2.3.4",
    ],
)
def test_any_other_address_is_not(address):
    assert ip_address(address) not in ALLOW


def test_everything_and_nothing_are_sets_too():
    everything = NetworkSet([ip_network("0.0.0.0/0")])
    assert ip_address("192.0.2.1") in everything
    assert ip_address("2001:db8::1") not in everything
    assert ip_address("192.0.2.1") not in NetworkSet()
    assert (bool(everything), bool(NetworkSet())) == (True, False)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "172.31.0.1", "192.168.1.1", "::1", "fd00::1", "fe80::1"]
)
def test_a_sites_own_networks_are_private(address):
    assert ip_address(address) in PRIVATE


@pytest.mark.parametrize("address", ["192.0.2.1", "172.32.0.1", "8.8.8.8", "2001:db8::1"])
def test_a_neighbours_networks_are_not_private(address):
    assert ip_address(address) not in PRIVATE


@pytest.mark.parametrize(
    ("address", "host", "network"),
    [
        ("192.0.2.1", b"\xc0\x00\x02\x01", b"\xc0\x00\x02"),
        ("::ffff:192.0.2.1", b"\xc0\x00\x02\x01", b"\xc0\x00\x02"),
        ("2001:db8:1:2:3::4", b"\x20\x01\x0d\xb8\0\x01\0\x02", b"\x20\x01\x0d\xb8\0\x01"),
    ],
)
def test_a_host_is_32_or_64_bits_and_its_network_24_or_48(address, host, network):
    assert host_octets(ip_address(address)) == host
    assert network_octets(host) == network
