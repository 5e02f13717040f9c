"""SPF records of any shape have a result, and ask for no more than may be."""

from __future__ import annotations

import asyncio
import time
from ipaddress import ip_address
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st
from zone import Zone

from preforkmx.middleware.spf_check import SPFVerdict, check_host
from preforkmx.middleware.spf_query import MAX_CPU, MAX_NAMES

NAMES = ["example.org", *(f"n{number}.example.org" for number in range(6)), "why.example.org"]
ADDRESSES = ["192.0.2.1", "198.51.100.1"]

names = st.sampled_from(NAMES)
macros = st.builds(
    "%{{{}{}{}}}".format,
    st.sampled_from("slodiphcrtvSLODIPHx"),
    st.sampled_from(["", "0", "1", "2r", "r", "99999"]),
    st.text("-.+,/_=", max_size=3),
)
specs = st.one_of(
    names,
    st.lists(st.one_of(macros, names, st.text(max_size=8)), min_size=1, max_size=4).map(".".join),
)
terms = st.one_of(
    st.builds(
        "{}{}{}{}".format,
        st.sampled_from(["", "+", "-", "~", "?", "/"]),
        st.sampled_from(["a", "mx", "ptr", "include", "exists", "all", "ip4", "ip6", "A", "x"]),
        st.one_of(st.just(""), specs.map(":{}".format)),
        st.sampled_from(["", "/24", "/33", "//64", "/24//129", "/"]),
    ),
    st.builds("{}={}".format, st.sampled_from(["redirect", "exp", "other", "default"]), specs),
    st.sampled_from(["ip4:192.0.2.0/24", "ip4:1.2.3", "ip6:2001:db8::/32", "ip6:::ffff:1.2.3.4"]),
    st.text(max_size=20),
)
records = st.one_of(
    st.lists(terms, max_size=12).map(lambda found: ("TXT", " ".join(["v=spf1", *found]))),
    st.text(max_size=50).map(lambda text: ("TXT", text)),
    st.sampled_from(ADDRESSES).map(lambda address: ("A", address)),
    st.tuples(st.just("MX"), st.tuples(st.integers(0, 9), names)),
    st.just("TIMEOUT"),
)
zones = st.dictionaries(
    st.one_of(names, st.just("1.2.0.192.in-addr.arpa")), st.lists(records, max_size=14)
)
senders = st.one_of(
    st.just("joe@example.org"),
    st.just(""),
    st.builds("{}@example.org".format, st.text(max_size=70)),
    st.text(max_size=40),
)


@given(zones, senders, st.one_of(names, st.text(max_size=20)), st.booleans())
def test_whatever_a_record_says_there_is_a_result_within_bounds(records, sender, helo, cached):
    zone = Zone(records, cached=cached)
    began = time.thread_time()
    found = asyncio.run(check_host(zone, ip_address("192.0.2.1"), helo, sender))
    # As a whole, this test's own part included.
    assert time.thread_time() - began < 3 * MAX_CPU
    assert found.result in get_args(SPFVerdict)
    assert len(zone.asked) <= MAX_NAMES
    if not cached:
        assert set(zone.asked.values()) <= {1}
    for text in (found.reason, found.explanation):
        assert text.isascii()
        assert text.isprintable()
        assert len(text) <= 255
    # What nobody foresaw is a temperror, and says which exception it was.
    assert "Error: " not in found.reason or not found.reason.startswith(
        ("IndexError", "TypeError", "AttributeError", "KeyError", "RecursionError")
    ), found.reason
