"""The codes of lists: what is one, what is an error, and what a range holds."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from preforkmx.middleware.rbl_codes import Codes, is_code, is_error, parse_codes

ADDRESSES = st.integers(0, 2**32 - 1).map(IPv4Address) | st.integers(0, 2**24 - 1).map(
    lambda number: IPv4Address((127 << 24) + number)
)


@given(ADDRESSES)
@example(IPv4Address("126.255.255.255"))
@example(IPv4Address("127.0.0.0"))
@example(IPv4Address("127.255.254.255"))
@example(IPv4Address("127.255.255.0"))
@example(IPv4Address("127.255.255.255"))
@example(IPv4Address("128.0.0.0"))
def test_what_is_a_code_and_what_an_error(address):
    assert is_code(address) == (address in ip_network("127.0.0.0/8"))
    assert is_error(address) == (address in ip_network("127.255.255.0/24"))


INSIDE = st.integers(127 << 24, (128 << 24) - 1)
# Small ranges that neighbours meet, and any.
RANGES = st.tuples(INSIDE, INSIDE).map(sorted) | st.tuples(
    st.integers(127 << 24, (127 << 24) + 40), st.integers(0, 3)
).map(lambda pair: [pair[0], pair[0] + pair[1]])


@given(st.lists(RANGES, min_size=1, max_size=5), st.data())
def test_codes_hold_what_is_between_the_ends_of_one_of_their_ranges(ranges, data):
    codes = Codes(
        f"{IPv4Address(low)}-{IPv4Address(high)}" if low < high else str(IPv4Address(low))
        for low, high in ranges
    )
    near = st.sampled_from([end + step for pair in ranges for end in pair for step in (-1, 0, 1)])
    number = data.draw(near | INSIDE)
    slow = any(
        ip_address(number) in network for low, high in ranges for network in summarised(low, high)
    )
    assert (IPv4Address(number) in codes) == slow


def summarised(low, high):
    from ipaddress import summarize_address_range

    return summarize_address_range(IPv4Address(low), IPv4Address(high))


def test_where_nothing_is_said_127_0_0_1_and_errors_do_not_count():
    counted = Codes()
    for text, counts in {
        "127.0.0.0": False,
        "127.0.0.1": False,
        "127.0.0.2": True,
        "127.1.2.3": True,
        "127.255.254.255": True,
        "127.255.255.0": False,
    }.items():
        assert (IPv4Address(text) in counted) == counts, text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is no code"),
        ("127.0.0", "is no code"),
        ("127.0.0.2-", "is no code"),
        ("-127.0.0.2", "is no code"),
        ("127.0.0.2-7", "is no code"),
        ("127.0.0.2-127.0.0.4-127.0.0.7", "is no code"),
        ("127.0.0.02", "is no code"),
        ("127.0.0.2/31", "is no code"),
        ("::1", "is no code"),
        ("192.0.2.1", "not in 127.0.0.0/8"),
        ("127.0.0.2-128.0.0.1", "not in 127.0.0.0/8"),
        ("127.0.0.7-127.0.0.4", "ends before it begins"),
    ],
)
def test_what_is_no_code_is_refused_with_the_reason(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_codes(text)


@given(st.text(alphabet="0127.-/ x", max_size=40))
def test_any_text_is_a_range_inside_127_or_refused(text):
    try:
        first, last = parse_codes(text)
    except ValueError:
        return
    assert 127 << 24 <= first <= last < 128 << 24


def test_a_list_without_codes_is_none():
    with pytest.raises(ValueError, match="without codes"):
        Codes(())
