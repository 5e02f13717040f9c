from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from preforkmx.delivery.maildir_path import (
    NAME_MAX,
    ascii_domain,
    directory_name,
    mailbox_path,
    unquoted,
)


def path(address: str) -> str:
    return mailbox_path(address, "mx.example.com")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("joe@example.com", "example.com/joe"),
        ("Joe.Doe+tag@Example.COM", "example.com/joe.doe+tag"),
        ("postmaster", "mx.example.com/postmaster"),
        ("Postmaster", "mx.example.com/postmaster"),
        ('"joe"@example.com', "example.com/joe"),
        (r'"j\oe"@example.com', "example.com/joe"),
        ('"joe doe"@example.com', "example.com/joe%20doe"),
        (r'"a\"b"@example.com', "example.com/a%22b"),
        (r'"a\\b"@example.com', "example.com/a%5Cb"),
        ('"a@b"@example.com', "example.com/a%40b"),
        ('""@example.com', "example.com/%-"),
        ('"."@example.com', "example.com/%2E"),
        ('".."@example.com', "example.com/%2E."),
        ("../../etc/passwd@example.com", "example.com/%2E.%2F..%2Fetc%2Fpasswd"),
        ("joe/new@example.com", "example.com/joe%2Fnew"),
        ("joe\0@example.com", "example.com/joe%00"),
        ("100%@example.com", "example.com/100%25"),
        ("jörg@example.com", "example.com/j%C3%B6rg"),
        ("jörg@Bücher.example", "xn--bcher-kva.example/j%C3%B6rg"),
        ("收件人@例え.テスト", "xn--r8jz45g.xn--zckzah/%E6%94%B6%E4%BB%B6%E4%BA%BA"),
        ("joe@[192.0.2.1]", "%5B192.0.2.1%5D/joe"),
        ("joe@[IPv6:2001:DB8::1]", "%5Bipv6%3A2001%3Adb8%3A%3A1%5D/joe"),
        ("joe@.hidden", "%2Ehidden/joe"),
        ("joe@", "%-/joe"),
        ("", "mx.example.com/%-"),
    ],
)
def test_an_address_has_its_mailbox(address, expected):
    assert path(address) == expected


def test_the_case_of_ascii_letters_makes_no_difference_and_that_of_others_does():
    assert path("JOE@example.com") == path("joe@EXAMPLE.com")
    assert path("JÖRG@example.com") != path("jörg@example.com")
    # U+212A KELVIN SIGN becomes k in Unicode's own folding and normalisation.
    assert path("\u212aarl@example.com") != path("karl@example.com")
    assert path("bob\u017f@example.com") != path("bobs@example.com")


def test_both_spellings_of_an_international_domain_are_one_mailbox():
    assert path("joe@bücher.example") == path("JOE@XN--bcher-KVA.example")
    # The DNS knows them by the same name, and so does the check of the domains.
    assert path("joe@BÜCHER.example") == path("joe@bücher.example")
    assert path("joe@bu\u0308cher.example") == path("joe@bücher.example")
    assert path("joe@bucher.example") != path("joe@bücher.example")


@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=40))
def test_two_international_domains_share_a_mailbox_only_when_ascii_case_tells_them_apart(one, two):
    same = ascii_domain(f"é{one}").lower() == ascii_domain(f"é{two}").lower()
    folded = [name_of_folded(label) for label in (one, two)]
    assert same == (folded[0] == folded[1])


def test_a_name_that_is_too_long_is_cut_and_told_apart_by_its_digest():
    one, two = directory_name("/" * 90 + "a"), directory_name("/" * 90 + "b")
    assert one != two
    assert len(one) <= NAME_MAX
    assert re.fullmatch(r"(?:%2F){63}%-[0-9a-f]{64}", one)
    assert directory_name("A" * 256) == directory_name("a" * 256)
    assert directory_name("a" * 255) == "a" * 255


@pytest.mark.parametrize("before", range(4))
def test_a_name_is_never_cut_inside_an_encoded_octet(before):
    name = directory_name("a" * before + "/" * 100)
    kept, _, digest = name.partition("%-")
    assert len(digest) == 64
    assert re.fullmatch(r"a*(?:%2F)+", kept)


texts = st.text(max_size=300) | st.text(alphabet='aA./\\"%-\0@é\ud800', max_size=120)


@given(texts)
@example("..")
@example("\udc80")
def test_every_text_has_one_safe_name(text):
    name = directory_name(text)
    assert 0 < len(name) <= NAME_MAX
    assert re.fullmatch(r"[a-z0-9_+=%-][A-Za-z0-9_+=.%-]*", name)
    assert name == directory_name(name_of_folded(text))


def name_of_folded(text: str) -> str:
    return text.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")


@given(texts)
def test_the_name_can_be_undone_unless_it_was_cut(text):
    name = directory_name(text)
    octets = text.encode("utf-8", "surrogatepass").lower()
    if not octets:
        assert name == "%-"
    elif "%-" not in name:
        assert unquote_to_bytes(name) == octets
    else:
        assert len(octets) > 63


@given(st.text(alphabet='ab. \\"@', max_size=12))
def test_quoting_a_local_part_does_not_change_its_mailbox(local):
    quoted = '"' + re.sub(r'([\\"])', r"\\\1", local) + '"'
    assert unquoted(quoted) == local
    assert path(f"{quoted}@example.com") == f"example.com/{directory_name(local)}"


@given(st.text(max_size=80))
def test_no_address_leaves_its_two_directories(address):
    domain, local = path(address).split("/")
    assert domain not in {"", ".", ".."}
    assert local not in {"", ".", ".."}
