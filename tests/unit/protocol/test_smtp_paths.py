"""Reverse and forward paths: RFC 5321 sections 4.1.2 and 4.1.3. The dialogues mail-paths and
rcpt-paths have the grammar's cases; here is what they cannot say."""

from __future__ import annotations

from time import perf_counter

import pytest

from preforkmx.protocol.domains import MAX_DOMAIN
from preforkmx.protocol.paths import (
    MAX_LOCAL_PART,
    PathError,
    PathTooLong,
    is_address_literal,
    parse_path,
    split_mailbox,
)


@pytest.mark.parametrize(
    ("text", "address", "end"),
    [
        ("<>", "", 2),
        ("<> SIZE=1", "", 2),
        ("<a@example.org>", "a@example.org", 15),
        ("<a@example.org>junk", "a@example.org", 15),
        ("<@b.example:a@example.org> X", "a@example.org", 26),
        ("<Postmaster> X", "Postmaster", 12),
        ('<"a@b>"@example.org>', '"a@b>"@example.org', 20),
    ],
)
def test_the_path_is_what_the_text_begins_with(text, address, end):
    assert parse_path(text) == (address, end)


@pytest.mark.parametrize("text", ["", "<", "a", "x<a@example.org>", " <a@example.org>"])
def test_a_path_begins_with_its_bracket(text):
    with pytest.raises(PathError):
        parse_path(text)


def test_local_parts_have_at_most_255_octets():
    assert parse_path(f"<{'x' * MAX_LOCAL_PART}@a.example>")[0] == f"{'x' * 255}@a.example"
    with pytest.raises(PathTooLong):
        parse_path(f"<{'x' * (MAX_LOCAL_PART + 1)}@a.example>")
    with pytest.raises(PathTooLong):
        parse_path(f'<"{"x" * (MAX_LOCAL_PART - 1)}"@a.example>')
    with pytest.raises(PathTooLong):
        parse_path(f"<{'x' * (MAX_LOCAL_PART + 1)}@[192.0.2.1]>")


def test_domains_have_at_most_255_octets_and_labels_63():
    label = "x" * 63
    longest = f"{label}.{label}.{label}.{label}"
    assert len(longest) == MAX_DOMAIN
    assert parse_path(f"<a@{longest}>")[0] == f"a@{longest}"
    assert parse_path(f"<{'a' * 255}@{longest}>")[0] == f"{'a' * 255}@{longest}"
    with pytest.raises(PathTooLong):
        parse_path(f"<a@{longest[:-1]}.x>")
    with pytest.raises(PathError):
        parse_path(f"<a@x{label}.example>")


def test_the_length_of_a_source_route_is_no_part_of_the_address():
    route = ",".join(["@relay.example"] * 100)
    assert parse_path(f"<{route}:a@example.org>")[0] == "a@example.org"


@pytest.mark.parametrize(
    "literal",
    ["[192.0.2.1]", "[255.255.255.255]", "[IPv6:::1]", "[ipv6:2001:DB8::1]", "[IPv6:::192.0.2.1]"],
)
def test_an_address_literal_is_an_ipv4_or_a_marked_ipv6_address(literal):
    assert is_address_literal(literal)
    assert parse_path(f"<a@{literal}>")[0] == f"a@{literal}"


@pytest.mark.parametrize(
    "literal",
    [
        "192.0.2.1",
        "[192.0.2.1",
        "192.0.2.1]",
        "[]",
        "[192.0.2]",
        "[192.0.2.01]",
        "[192.0.2.256]",
        "[192.0.2.1/24]",
        "[::1]",
        "[IPv6:]",
        "[IPv6:192.0.2.1]",
        "[IPv6:::1/64]",
        "[IPv6:fe80::1%eth0]",
        "[IPv6:fe80::1%..]",
        "[IPv6:12345::]",
        "[x-tag:content]",
        "[a@192.0.2.1]",
        "[[192.0.2.1]]",
        "[ 192.0.2.1]",
        "[１92.0.2.1]",
    ],
)
def test_nothing_else_is_an_address_literal(literal):
    assert not is_address_literal(literal)
    if literal == "192.0.2.1":
        # Without its brackets it is a domain to the grammar.
        return
    with pytest.raises(PathError):
        parse_path(f"<a@{literal}>")


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("a@example.org", ("a", "example.org")),
        ('"a@b"@example.org', ('"a@b"', "example.org")),
        ("postmaster", ("postmaster", "")),
        ("", ("", "")),
    ],
)
def test_a_mailbox_is_split_at_its_last_at_sign(address, parts):
    assert split_mailbox(address) == parts


@pytest.mark.parametrize(
    "text",
    [
        "<" + "a." * 1000,
        "<" + "a" * 2000,
        "<" + "a" * 2000 + "@",
        "<" + "a." * 500 + "a@" + "b." * 500,
        "<a@" + "b" * 2000 + ">",
        "<a@" + "-" * 2000 + ">",
        "<a@" + "b-" * 1000 + ">",
        "<a@" + ("b" * 62 + ".") * 32 + "!",
        "<" + "@a," * 650,
        "<" + "@a" * 1000 + ":",
        "<" + ",".join(["@" + "a" * 62] * 30) + ":",
        '<"' + "a" * 2000,
        '<"' + "\\" * 2000,
        '<"' + '\\"' * 1000 + "@",
        "<a@[" + "1" * 2000 + "]>",
        "<" * 2000,
        "<" + "é." * 700,
        "<" + "é" * 1000 + "@",
        "<" + "é." * 300 + "é@" + "é." * 300,
        "<a@" + "é" * 1000 + ">",
        "<a@" + "é-" * 600 + ">",
        "<a@" + ("é" * 62 + ".") * 16 + "!",
        "<" + ",".join(["@" + "é" * 62] * 15) + ":",
        '<"' + "é" * 1000,
        "<a@" + "é." * 84 + "é>",
        "<a@" + "\u0301" * 63 + ">",
    ],
)
def test_a_line_made_to_confuse_costs_no_more_than_any_other(text):
    begin = perf_counter()
    with pytest.raises(PathError):
        parse_path(text)
    with pytest.raises(PathError):
        parse_path(text, smtputf8=True)
    # Microseconds, were the machine idle; what grows exponentially takes years.
    assert perf_counter() - begin < 1.0
