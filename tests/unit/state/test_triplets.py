"""What makes two tries the same triplet."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from preforkmx.state.triplets import (
    network_of,
    normalise_recipient,
    normalise_sender,
    recipients_of,
    short_key,
    triplet_key,
)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("::ffff:192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:1:2:3:4:5:6", "2001:0db8:0001:0002::/64"),
    ],
)
def test_the_network_of_a_client_is_its_24_or_its_64(address, network):
    assert network_of(ip_address(address)) == network


@pytest.mark.parametrize(
    ("sender", "normalised"),
    [
        ("", ""),
        ("Joe@Example.COM", "Joe@example.com"),
        ("Postmaster", "Postmaster"),
        # extensions and VERP
        ("joe+list@example.com", "joe@example.com"),
        ("bounces+8411-77af-user=example.net@mail.example.com", "bounces@mail.example.com"),
        ("+joe@example.com", "+joe@example.com"),
        # digits
        ("bounce-20240131-77@m2.example.com", "bounce-#-#@m2.example.com"),
        ("joe1990@example.com", "joe#@example.com"),
        # BATV
        ("prvs=1234abcdef=joe@example.com", "joe@example.com"),
        ("PRVS=1234ABCDEF=joe+x@example.com", "joe@example.com"),
        ("btv1==042abc9==joe@example.com", "joe@example.com"),
        ("prvs=joe@example.com", "prvs=joe@example.com"),
        # SRS
        ("SRS0=HHH1=TT=example.org=joe@fwd.example", "SRS=example.org=joe@fwd.example"),
        ("SRS0+HHH2=T2=example.org=joe@fwd.example", "SRS=example.org=joe@fwd.example"),
        ("srs0-HHH3=T3=example.org=joe@fwd.example", "SRS=example.org=joe@fwd.example"),
        (
            "SRS1=HHH=fwd.example==GGG=TT=example.org=joe@fwd2.example",
            "SRS=fwd.example=example.org=joe@fwd2.example",
        ),
        (
            "SRS1+HHH=fwd.example=+GGG=TT=example.org=joe@fwd2.example",
            "SRS=fwd.example=example.org=joe@fwd2.example",
        ),
        ("SRS0=HHH=joe@fwd.example", "SRS#=HHH=joe@fwd.example"),
        # a quoted local part may hold an @
        ('"a@b"@Example.com', '"a@b"@example.com'),
    ],
)
def test_what_changes_from_try_to_try_is_taken_from_a_sender(sender, normalised):
    assert normalise_sender(sender) == normalised


@pytest.mark.parametrize(
    "sender",
    [
        "SRS0=" + "=" * 5000 + "@example.com",
        "SRS1=" + "a=" * 5000 + "@example.com",
        "btv1==" + "=" * 5000,
        "+" * 10_000,
        "1a" * 5000,
    ],
)
def test_a_sender_made_to_be_slow_is_not(sender):
    for _ in range(100):
        normalise_sender(sender)


def test_recipients_are_compared_without_case():
    assert normalise_recipient("Joe@Example.COM") == "joe@example.com"


def test_several_recipients_are_one_text_of_bounded_length_in_any_order():
    one = ["a@example.com"]
    many = [f"user{n}@example.com" for n in range(1000)]
    assert recipients_of(one) == "a@example.com"
    assert recipients_of(many) == recipients_of(reversed([to.upper() for to in many]))
    assert recipients_of(many) != recipients_of(many[1:])
    assert len(recipients_of(many)) == 32


def test_a_long_key_is_hashed_and_meets_no_short_one():
    assert short_key("user:joe") == b"user:joe"
    long = short_key("x" * 1000)
    assert len(long) == 17
    assert short_key(long.decode("latin-1")) != long
    assert short_key("\ud800") != short_key("?")


def test_a_triplet_is_16_octets_whatever_its_parts():
    keys = {
        triplet_key("192.0.2.0/24", "", "b"),
        triplet_key("192.0.2.0/24", "b", ""),
        triplet_key("192.0.2.0/24", "\udcff", "b" * 9999),
    }
    assert {len(key) for key in keys} == {16}
    assert len(keys) == 3
