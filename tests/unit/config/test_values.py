from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from preforkmx.config.names import ListenAddress
from preforkmx.config.values import (
    LONGEST_DURATION,
    BadValue,
    Rate,
    format_duration,
    format_rate,
    format_size,
    format_size_rate,
    parse_domain,
    parse_duration,
    parse_host_name,
    parse_network,
    parse_rate,
    parse_size,
    parse_size_rate,
)
from preforkmx.session.listener import Listener

PARSERS = [
    parse_duration,
    parse_size,
    parse_rate,
    parse_size_rate,
    parse_network,
    parse_host_name,
    parse_domain,
]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("300ms", 0.3),
        ("5s", 5.0),
        ("5m", 300.0),
        ("24h", 86400.0),
        ("36d", 36 * 86400.0),
        ("1.5h", 5400.0),
        ("0.25 s", 0.25),
        ("0s", 0.0),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (300, 'did you mean "300s"?'),
        ("300", 'did you mean "300s"?'),
        ("5min", 'did you mean "5m"?'),
        ("5 minutes", 'did you mean "5m"?'),
        ("24 hours", 'did you mean "24h"?'),
        ("3 Days", 'did you mean "3d"?'),
        ("10sec", 'did you mean "10s"?'),
        ("250msec", 'did you mean "250ms"?'),
        ("7 fortnights", ""),
        ("soon", ""),
        ("-5s", ""),
        ("", ""),
        (True, ""),
        ("٣s", ""),
    ],
)
def test_a_bad_duration_is_refused_with_what_may_have_been_meant(value, hint):
    with pytest.raises(BadValue, match="must be a duration such as") as caught:
        parse_duration(value)
    assert caught.value.hint == hint


def test_a_duration_has_a_resolution_of_a_millisecond():
    with pytest.raises(BadValue, match="whole number of milliseconds"):
        parse_duration("0.5ms")


def test_a_duration_is_at_most_ten_years():
    assert parse_duration("3650d") == LONGEST_DURATION
    with pytest.raises(BadValue, match="at most 3650d"):
        parse_duration("3651d")


@settings(deadline=None)
@given(st.integers(0, int(LONGEST_DURATION * 1000)))
def test_every_duration_survives_being_written_and_read(milliseconds):
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds)) == seconds


def test_a_day_is_written_as_24_hours():
    assert [format_duration(s) for s in (86400.0, 172800.0, 0.3)] == ["24h", "2d", "300ms"]


@pytest.mark.parametrize(
    ("value", "octets"),
    [("25MiB", 26214400), ("512 KiB", 524288), ("1GiB", 1 << 30), ("10", 10), ("3B", 3), (10, 10)],
)
def test_a_size_is_a_number_of_octets_with_a_binary_unit(value, octets):
    assert parse_size(value) == octets


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("25MB", 'did you mean "25MiB"?'),
        ("25m", 'did you mean "25MiB"?'),
        ("1 gb", 'did you mean "1GiB"?'),
        ("25 parsecs", ""),
        ("MiB", ""),
        (-1, ""),
        (1.5, ""),
        (True, ""),
    ],
)
def test_a_bad_size_is_refused_with_what_may_have_been_meant(value, hint):
    with pytest.raises(BadValue, match="must be a size such as") as caught:
        parse_size(value)
    assert caught.value.hint == hint


@settings(deadline=None)
@given(st.integers(0, 10**15 - 1))
def test_every_size_survives_being_written_and_read(octets):
    assert parse_size(format_size(octets)) == octets


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10/s", Rate(10, 1.0)),
        ("60/min", Rate(60, 60.0)),
        ("60 / minute", Rate(60, 60.0)),
        ("600/hour", Rate(600, 3600.0)),
        ("5000/day", Rate(5000, 86400.0)),
    ],
)
def test_a_rate_is_a_count_in_a_period(text, rate):
    assert parse_rate(text) == rate


@pytest.mark.parametrize("value", ["60", "60/m", "60/fortnight", "/min", "1.5/min", 60, "-1/s"])
def test_a_bad_rate_is_refused(value):
    with pytest.raises(BadValue, match="must be a rate such as"):
        parse_rate(value)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("1KiB/s", Rate(1024, 1.0)),
        ("500 MiB / hour", Rate(500 << 20, 3600.0)),
        ("10GiB/day", Rate(10 << 30, 86400.0)),
        ("4096/min", Rate(4096, 60.0)),
    ],
)
def test_a_rate_of_octets_is_a_size_in_a_period(text, rate):
    assert parse_size_rate(text) == rate


@pytest.mark.parametrize(
    "value", ["1GiB", "GiB/s", "1MB/s", "1GiB/m", "1GiB/fortnight", "/s", "1/2/s", 1024, "-1KiB/s"]
)
def test_a_bad_rate_of_octets_is_refused(value):
    with pytest.raises(BadValue, match="must be a size in a time such as"):
        parse_size_rate(value)


@pytest.mark.parametrize("value", ["0B/s", "1023/s", "1025GiB/day"])
def test_a_rate_of_octets_has_bounds(value):
    with pytest.raises(BadValue, match="must be at least 1KiB and at most 1024GiB"):
        parse_size_rate(value)


@settings(deadline=None)
@given(st.integers(1024, 1 << 40), st.sampled_from([1.0, 60.0, 3600.0, 86400.0]))
def test_every_rate_of_octets_survives_being_written_and_read(octets, period):
    rate = Rate(octets, period)
    assert parse_size_rate(format_size_rate(rate)) == rate


def test_a_rate_of_nothing_is_refused_with_how_to_switch_it_off():
    with pytest.raises(BadValue) as caught:
        parse_rate("0/min")
    assert caught.value.hint == "leave the key out to switch it off"


@settings(deadline=None)
@given(st.integers(1, 10**9 - 1), st.sampled_from([1.0, 60.0, 3600.0, 86400.0]))
def test_every_rate_survives_being_written_and_read(count, period):
    rate = Rate(count, period)
    assert parse_rate(format_rate(rate)) == rate


@settings(deadline=None)
@given(st.ip_addresses() | st.builds(ip_network, st.ip_addresses(v=4)))
def test_every_address_is_a_network(address):
    mapped = getattr(getattr(address, "network_address", address), "ipv4_mapped", None)
    if mapped is None:
        assert parse_network(str(address)) == ip_network(address)


def test_a_network_with_bits_behind_its_prefix_is_refused_with_the_network():
    with pytest.raises(BadValue, match="bits set behind its prefix") as caught:
        parse_network("192.0.2.1/24")
    assert caught.value.hint == 'did you mean "192.0.2.0/24"?'


def test_a_mapped_network_is_refused_with_the_ipv4_one():
    with pytest.raises(BadValue, match="IPv4-mapped") as caught:
        parse_network("::ffff:10.0.0.0/104")
    assert caught.value.hint == 'write "10.0.0.0/8"'


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("mx.example.com", "mx.example.com"),
        ("MX.Example.COM.", "mx.example.com"),
        ("localhost", "localhost"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ],
)
def test_a_host_name_is_read_in_lower_case_without_its_last_dot(text, name):
    assert parse_host_name(text) == name


@pytest.mark.parametrize(
    "value",
    [
        "",
        ".",
        "a..b",
        "-a.example",
        "a b",
        "192.0.2.1",
        "bücher.example",
        "a" * 64,
        5,
        "a@b",
        "a\n",
    ],
)
def test_what_is_no_host_name_is_refused(value):
    with pytest.raises(BadValue, match="must be a domain name such as"):
        parse_host_name(value)


@pytest.mark.parametrize("text", ["*", "example.com", "[192.0.2.1]", "[ipv6:2001:db8::1]"])
def test_a_domain_is_a_name_an_address_literal_or_the_star(text):
    assert parse_domain(text) == text


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("info@example.com", 'did you mean "example.com"'),
        ("*.example.com", "list each subdomain by its name"),
        (".example.com", "list each subdomain by its name"),
        ("[2001:db8::1]", ""),
        ("[192.0.2.1", ""),
    ],
)
def test_a_bad_domain_is_refused(value, hint):
    with pytest.raises(BadValue) as caught:
        parse_domain(value)
    assert caught.value.hint == hint


_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


@settings(deadline=None)
@given(st.sampled_from(PARSERS), _anything)
def test_every_value_is_read_or_refused_with_a_text(parse, value):
    try:
        parse(value)
    except BadValue as error:
        assert str(error)  # noqa: PT017 - either is right


@given(st.text(max_size=130) | st.text(alphabet="/.a\n\0\udcffé", max_size=12))
@example("/" + "x" * 106)
@example("/" + "x" * 107)
@example("//run/smtp.sock")
def test_every_address_that_is_read_is_a_listeners(name):
    """The folder's path is short here, so what is refused is wrong itself."""
    try:
        address = ListenAddress().read(f"unix:{name}", Path("/f"))
    except BadValue:
        assert not name or set(name) & {"\0", "\n", "\udcff"} or len(name.encode()) > 100
        return
    path = Listener(address).unix_path
    assert path is not None
    assert path.is_absolute()
    assert not str(path).startswith("//")
    assert ListenAddress().read(address, Path("/elsewhere")) == address
