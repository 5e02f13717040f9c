"""Addresses as checks compare them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkmx.middleware.addresses import Recipient, comparable, quoted, unquoted


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("joe@example.com", "JOE@EXAMPLE.COM"),
        ("joe@example.com", '"joe"@example.com'),
        ('"a\\"b"@example.com', '"a\\"B"@example.com'),
        ("joe@bücher.example", "joe@XN--BCHER-KVA.example"),
        ("joe@BÜCHER.example", "joe@xn--bcher-kva.example"),
        ("joe@[IPv6:2001:db8::1]", "joe@[IPv6:2001:DB8:0::1]"),
        ("postmaster", "Postmaster"),
    ],
)
def test_two_spellings_of_one_address_are_one(one, other):
    assert comparable(one) == comparable(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("joe@example.com", "jo@example.com"),
        ("joe@example.com", "joe@example.org"),
        # Maildirs of these two differ too.
        ("grå@example.com", "grÅ@example.com"),
        ("é@example.com", "e\u0301@example.com"),
        ("joe@[192.0.2.1]", "joe@[192.0.2.2]"),
    ],
)
def test_two_addresses_are_two(one, other):
    assert comparable(one) != comparable(other)


@pytest.mark.parametrize(
    ("address", "separator", "base", "plain"),
    [
        ("joe+lists@example.com", "+", "joe@example.com", "joe@example.com"),
        ("Joe+a+b@Example.com", "+", "joe@example.com", "Joe@Example.com"),
        ("+joe@example.com", "+", "+joe@example.com", "+joe@example.com"),
        ("joe+@example.com", "+", "joe@example.com", "joe@example.com"),
        ("joe-lists@example.com", "-", "joe@example.com", "joe@example.com"),
        ("joe+lists@example.com", "", "joe+lists@example.com", "joe+lists@example.com"),
        ('"joe+x y"@example.com', "+", "joe@example.com", "joe@example.com"),
        ('"j oe+x"@example.com', "+", "j oe@example.com", '"j oe"@example.com'),
        ('"joe.+x"@example.com', "+", "joe.@example.com", '"joe."@example.com'),
    ],
)
def test_an_extension_begins_with_the_first_separator_behind_the_first_character(
    address, separator, base, plain
):
    recipient = Recipient.of(address, separator)
    assert (recipient.base, recipient.plain) == (base, plain)
    assert recipient.address == address
    assert recipient.domain == "example.com"


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1))
def test_what_is_quoted_means_what_it_was(local):
    assert unquoted(quoted(local)) == local or (local[0] == local[-1] == '"' and len(local) > 1)
