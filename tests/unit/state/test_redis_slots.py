"""Hash slots and what a cluster says about them, against redis-py and the replies of servers."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from preforkmx.state.redis.slots import Range, read_redirection, read_slots, slot_of
from preforkmx.state.redis.url import Address

ASKED = "redis.test"


@given(st.binary(max_size=40) | st.text("{}ab", max_size=12).map(str.encode))
def test_a_keys_slot_is_redis_own(key):
    assert slot_of(key) == key_slot(key)


def test_keys_with_one_tag_share_a_slot():
    assert slot_of(b"preforkmx:{c00002}:h") == slot_of(b"other:{c00002}:z") == slot_of(b"c00002")


def row(first, last, *nodes):
    return [first, last, *([host, port, b"id", *more] for host, port, *more in nodes)]


def test_a_table_has_ranges_with_a_primary_and_its_replicas():
    assert read_slots(
        [
            row(0, 8191, (b"192.0.2.1", 6379, []), (b"192.0.2.2", 6379, [])),
            row(8192, 16_383, (b"2001:db8::1", 6380)),
        ],
        ASKED,
    ) == [
        Range(0, 8191, Address("192.0.2.1", 6379), (Address("192.0.2.2", 6379),)),
        Range(8192, 16_383, Address("2001:db8::1", 6380), ()),
    ]


@pytest.mark.parametrize("host", [b"", None, b"?"])
def test_a_node_without_a_host_is_the_one_that_was_asked(host):
    (only,) = read_slots([row(0, 16_383, (host, 7000, []))], ASKED)
    assert only.primary == Address(ASKED, 7000)


def test_a_node_without_a_name_is_reached_by_its_address():
    (only,) = read_slots([row(0, 9, (b"?", 7000, [b"ip", b"192.0.2.7"]))], ASKED)
    assert only.primary == Address("192.0.2.7", 7000)


@pytest.mark.parametrize(
    "reply",
    [
        None,
        b"OK",
        7,
        [],
        [[]],
        [None],
        [[0, 1]],
        [row(-1, 5, (b"h", 1))],
        [row(5, 4, (b"h", 1))],
        [row(0, 16_384, (b"h", 1))],
        [row(b"0", b"5", (b"h", 1))],
        [row(0, 5, (b"h", 0))],
        [row(0, 5, (b"h", 65_536))],
        [row(0, 5, (b"h", b"1"))],
        [row(0, 5, (b"\xff", 1))],
        [row(0, 5, (7, 1))],
        [[0, 5, []]],
        [row(slot, slot, (b"h", slot + 1)) for slot in range(1025)],
    ],
)
def test_what_is_no_table_is_refused(reply):
    with pytest.raises(ValueError):
        read_slots(reply, ASKED)


@given(
    st.recursive(
        st.none() | st.integers() | st.binary(max_size=5),
        lambda children: st.lists(children, max_size=4),
    )
)
def test_any_reply_is_a_table_or_a_value_error(reply):
    with contextlib.suppress(ValueError):
        assert read_slots(reply, ASKED)


@pytest.mark.parametrize(
    ("text", "slot", "address"),
    [
        ("MOVED 3999 192.0.2.1:6381", 3999, Address("192.0.2.1", 6381)),
        ("ASK 0 2001:db8::1:6381", 0, Address("2001:db8::1", 6381)),
        ("MOVED 3999 :6381", 3999, Address(ASKED, 6381)),
        ("MOVED 3999 ?:6381", 3999, Address(ASKED, 6381)),
    ],
)
def test_a_redirection_names_a_slot_and_a_node(text, slot, address):
    assert read_redirection(text, ASKED) == (slot, address)


@pytest.mark.parametrize(
    "text",
    [
        "MOVED",
        "MOVED 1",
        "MOVED 1 h",
        "MOVED 1 h:",
        "MOVED 1 h:0",
        "MOVED 1 h:65536",
        "MOVED x h:1",
        "MOVED -1 h:1",
        "MOVED 16384 h:1",
        "MOVED 1 \udcff:1",
    ],
)
def test_what_is_no_redirection_is_refused(text):
    with pytest.raises(ValueError):
        read_redirection(text, ASKED)
