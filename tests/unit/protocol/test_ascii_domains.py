"""Domains in ASCII: A-labels by IDNA2008, mapped by UTS #46."""

from __future__ import annotations

from time import perf_counter

import pytest

from preforkmx.protocol.domains import MAX_DOMAIN, to_ascii


@pytest.mark.parametrize(
    ("domain", "ascii"),
    [
        ("example.org", "example.org"),
        ("Example.ORG", "example.org"),
        ("under_score._domainkey.example", "under_score._domainkey.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.Example", "xn--bcher-kva.example"),
        ("bu\u0308cher.example", "xn--bcher-kva.example"),
        ("straße.example", "xn--strae-oqa.example"),
        ("例子.测试", "xn--fsqu00a.xn--0zwm56d"),
        ("例子。测试", "xn--fsqu00a.xn--0zwm56d"),
        ("ｅｘａｍｐｌｅ．org", "example.org"),
        ("under_score.bücher.example", "under_score.xn--bcher-kva.example"),
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("[IPv6:2001:DB8::1]", "[IPv6:2001:DB8::1]"),
    ],
)
def test_a_domain_in_ascii_is_what_the_dns_is_asked_for(domain, ascii):  # noqa: A002
    assert to_ascii(domain) == ascii


def test_sharp_s_is_no_double_s():
    assert to_ascii("straße.example") != to_ascii("strasse.example")


@pytest.mark.parametrize(
    "domain",
    [
        "",
        ".",
        "example.",
        ".example",
        "a..b",
        "-a.example",
        "a-.example",
        "a b.example",
        "a@b.example",
        "a\n.example",
        "example.org\n",
        "x" * 64 + ".example",
        "[192.0.2.1",
        "[]",
        "[a\r\nb]",
        "[é]",
        "é..example",
        "é.example.",
        "é-.example",
        "-é.example",
        "xé--y.example",
        "é@b.example",
        "é b.example",
        "é_b.example",
        "é．．example",
        "a\u00ad.\u00ad.example",
        "☃️!.example",
        "💩.example",
        "\u0301a.example",
        "a\u200db.example",
        "a\u0085.example",
        "a\u202eb.example",
        "אa.example",
        "ｘｎ－－zz－.example",
        "xn--é.example",
        "a／b.example",
        "a＠b.example",
        "\udc80.example",
        "é" * 60 + ".example",
    ],
)
def test_what_is_no_domain_is_a_value_error(domain):
    with pytest.raises(ValueError):
        to_ascii(domain)


def test_a_domain_has_at_most_255_octets_written_and_in_ascii():
    label = "x" * 63
    longest = f"{label}.{label}.{label}.{label}"
    assert len(longest) == MAX_DOMAIN
    assert to_ascii(longest) == longest
    with pytest.raises(ValueError):
        to_ascii(f"{longest}x")
    # 129 letters of two octets.
    with pytest.raises(ValueError, match="255"):
        to_ascii(".".join(["é" * 43] * 3))
    # 251 octets of UTF-8; the A-labels are longer.
    grown = ".".join("é" for _ in range(84))
    assert len(grown.encode()) <= MAX_DOMAIN
    with pytest.raises(ValueError, match="255"):
        to_ascii(grown)


@pytest.mark.parametrize(
    "domain", ["é" * 1_000_000, "a" * 1_000_000, "é." * 500_000, "\u0301" * 1_000_000]
)
def test_an_endless_domain_costs_nothing(domain):
    begin = perf_counter()
    with pytest.raises(ValueError):
        to_ascii(domain)
    assert perf_counter() - begin < 1.0


@pytest.mark.parametrize("character", ["é", "例", "א", "\u0301", "\u06f0", "\u30fb"])
def test_the_longest_domains_are_read_in_bounded_time(character):
    domain = character * (MAX_DOMAIN // len(character.encode()))
    begin = perf_counter()
    for _ in range(20):
        with pytest.raises(ValueError):
            to_ascii(domain)
    assert perf_counter() - begin < 2.0
