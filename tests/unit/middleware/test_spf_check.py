"""One SPF check: which names it asks for, what bounds it, and what it makes of hostile input."""

from __future__ import annotations

import asyncio
import time
from ipaddress import ip_address

import pytest
from zone import Zone

from preforkmx.errors import DNSTimeout
from preforkmx.middleware.spf_check import MAX_EXPLANATION, MAX_REASON, check_host
from preforkmx.middleware.spf_names import (
    MAX_MACROS,
    MAX_RECORD,
    MAX_TERM,
    is_too_costly,
    names_in_record,
)
from preforkmx.middleware.spf_query import MAX_CPU, MAX_NAMES

CLIENT = ip_address("192.0.2.1")


def check(zone, sender="joe@example.org", *, address=CLIENT, helo="mail.example.net", **options):
    return asyncio.run(check_host(zone, address, helo, sender, **options))


def spf(*records):
    return Zone({"example.org": [("TXT", text) for text in records]})


def test_the_term_that_matched_is_the_reason():
    found = check(spf("v=spf1 ip4:198.51.100.0/24 ip4:192.0.2.0/24 -all"))
    assert (found.result, found.reason, found.lookups) == ("pass", "ip4:192.0.2.0/24", 0)
    assert (found.identity, found.domain, found.passed) == ("mailfrom", "example.org", True)
    found = check(spf("v=spf1 ip4:198.51.100.0/24"))
    assert (found.result, found.reason) == ("neutral", "no term matches")
    assert (check(spf("another text")).result, check(Zone()).reason) == ("none", "no SPF record")


def test_the_null_reverse_path_is_checked_by_the_name_of_helo():
    zone = Zone({"mail.example.net": [("TXT", "v=spf1 ip4:192.0.2.1 -all")]})
    found = check(zone, "")
    assert (found.result, found.identity, found.domain) == ("pass", "helo", "mail.example.net")
    assert found.sender == "postmaster@mail.example.net"


@pytest.mark.parametrize(
    ("sender", "helo"),
    [
        ("", "[192.0.2.1]"),
        ("", "localhost"),
        ("", ""),
        ("joe@[192.0.2.1]", "mail.example.net"),
        ("joe@localhost", "mail.example.net"),
        ("joe@exam ple.org", "mail.example.net"),
        ("joe@" + "a." * 130 + "org", "mail.example.net"),
        ("postmaster", "mail.example.net"),
    ],
)
def test_what_is_no_domain_is_none_and_nobody_is_asked(sender, helo):
    zone = Zone()
    assert check(zone, sender, helo=helo).result == "none"
    assert not zone.asked


def test_an_at_sign_in_quotes_does_not_hide_the_domain():
    zone = Zone({"example.org": [("TXT", "v=spf1 exists:%{l}.%{o}._spf.example.org -all")]})
    found = check(zone, '"joe@example.com"@example.org')
    assert (found.result, found.domain) == ("fail", "example.org")
    assert ('"joe@example.com".example.org._spf.example.org', "A") in zone.asked


def test_an_international_domain_is_asked_for_by_its_a_labels():
    zone = Zone({"xn--bcher-kva.example": [("TXT", "v=spf1 -all")]})
    assert check(zone, "joe@bücher.example").domain == "xn--bcher-kva.example"
    assert check(zone, "joe@BÜCHER.example").result == "fail"


def test_a_local_part_that_is_not_ascii_matches_no_macro():
    zone = spf("v=spf1 exists:%{l}.example.org -all")
    assert check(zone, "jürgen@example.org").result == "fail"
    assert list(zone.asked) == [("example.org", "TXT")]


def test_an_ipv4_mapped_address_is_an_ipv4_address():
    found = check(spf("v=spf1 ip4:192.0.2.1 -all"), address=ip_address("::ffff:192.0.2.1"))
    assert (found.result, found.address) == ("pass", CLIENT)


def test_an_explanation_is_asked_for_only_once_there_is_a_fail():
    record = "v=spf1 ip4:{} -all exp=why.example.org"
    zone = spf(record.format("192.0.2.1"))
    zone.records["why.example.org"] = [("TXT", "%{i} is not one of %{d}'s")]
    assert check(zone).result == "pass"
    assert list(zone.asked) == [("example.org", "TXT")]
    zone.records["example.org"] = [("TXT", record.format("198.51.100.1"))]
    assert check(zone).explanation == "192.0.2.1 is not one of example.org's"


@pytest.mark.parametrize("data", ["TIMEOUT", "with a bad %macro", "ä", "x" * 600])
def test_an_explanation_that_cannot_be_had_changes_nothing(data):
    zone = spf("v=spf1 -all exp=why.example.org")
    zone.records["why.example.org"] = [("TXT", data)]
    found = check(zone)
    assert (found.result, found.explanation) == ("fail", "")


def test_texts_of_the_dns_are_short_and_printable():
    zone = spf("v=spf1 -all exp=why.example.org")
    zone.records["why.example.org"] = [("TXT", "a\r\n250 ok\x00\x7f" + "%{s} " * 100)]
    found = check(zone, "j" * 200 + "@example.org")
    assert found.explanation.startswith("a?250 ok?jjj")
    assert len(found.explanation) == MAX_EXPLANATION
    zone = spf("v=spf1 a:exa\x07mple.org" + "y" * 250 + "!")
    found = check(zone)
    assert found.result == "permerror"
    assert len(found.reason) <= MAX_REASON
    assert found.reason.isprintable()


def test_names_of_a_record_are_asked_for_together():
    names = [f"n{number}.example.org" for number in range(8)]
    zone = Zone({name: [("TXT", "v=spf1 ip4:198.51.100.1 -all")] for name in names})
    zone.records["example.org"] = [("TXT", "v=spf1 " + " ".join(f"include:{n}" for n in names))]
    assert check(zone).result == "neutral"
    assert zone.most_together == 8
    assert set(zone.asked.values()) == {1}


def test_nothing_is_asked_for_ahead_of_a_term_that_matches():
    zone = spf("v=spf1 ip4:192.0.2.1 include:a.example.org include:b.example.org -all")
    assert check(zone).result == "pass"
    assert list(zone.asked) == [("example.org", "TXT")]


def test_what_is_slow_and_not_needed_is_not_waited_for():
    class Slow(Zone):
        async def wait(self, name):
            if name == "slow.example.org":
                await asyncio.sleep(60)

    zone = Slow({"example.org": [("TXT", "v=spf1 a:fast.example.org a:slow.example.org -all")]})
    zone.records["fast.example.org"] = [("A", "192.0.2.1")]
    began = time.monotonic()
    assert check(zone).result == "pass"
    assert ("slow.example.org", "A") in zone.asked
    assert time.monotonic() - began < 10


def test_a_resolver_that_never_answers_costs_the_time_of_one_check():
    class Silent(Zone):
        async def wait(self, _name):
            await asyncio.Event().wait()

    found = check(Silent(), timeout=0.05)
    assert (found.result, found.reason) == ("temperror", "no result within 0.05 s")


@pytest.mark.parametrize("error", [DNSTimeout("no answer"), RuntimeError("a bug"), KeyError("x")])
def test_every_exception_of_a_look_up_is_a_temperror(error):
    class Broken(Zone):
        async def wait(self, _name):
            raise error

    found = check(Broken())
    assert found.result == "temperror"


def test_an_exception_in_pyspf_that_is_not_its_own_is_a_temperror(monkeypatch):
    monkeypatch.setattr("spf.query.check0", lambda *_: {}["x"])
    found = check(spf("v=spf1 -all"))
    assert (found.result, found.reason) == ("temperror", "KeyError: 'x'")


def test_two_hundred_checks_at_once_do_not_mix():
    zone = Zone()
    for number in range(200):
        zone.records[f"d{number}.example.org"] = [
            ("TXT", f"v=spf1 include:i{number}.example.org ~all")
        ]
        zone.records[f"i{number}.example.org"] = [("TXT", f"v=spf1 ip4:192.0.2.{number} -all")]

    async def scenario():
        return await asyncio.gather(
            *(
                check_host(
                    zone,
                    ip_address(f"192.0.2.{client}"),
                    "h.example.net",
                    f"x@d{domain}.example.org",
                )
                for domain in range(200)
                for client in (domain, (domain + 1) % 200)
            )
        )

    found = asyncio.run(scenario())
    assert [each.result for each in found] == ["pass", "softfail"] * 200


def test_others_in_the_process_use_pyspf_as_ever():
    import spf as pyspf

    check(spf("v=spf1 -all"))
    query = pyspf.query(i="192.0.2.1", s="joe@example.org", h="mail.example.net")
    assert query.check("v=spf1 ip4:192.0.2.1 -all")[0] == "pass"


def test_a_check_that_is_cancelled_leaves_no_task():
    class Silent(Zone):
        async def wait(self, name):
            if name != "example.org":
                await asyncio.Event().wait()

    zone = Silent({"example.org": [("TXT", "v=spf1 a:a.example.org a:b.example.org -all")]})

    async def scenario():
        task = asyncio.create_task(check_host(zone, CLIENT, "h.example.net", "joe@example.org"))
        while len(zone.asked) < 3:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


# --- the limits of RFC 7208 section 4.6.4 ---------------------------------------------------------


def test_more_than_ten_look_ups_are_a_permerror():
    zone = spf("v=spf1 " + " ".join(f"a:n{n}.example.org" for n in range(11)) + " -all")
    for number in range(11):
        zone.records[f"n{number}.example.org"] = [("A", "198.51.100.1")]
    found = check(zone)
    assert (found.result, found.reason) == ("permerror", "Too many DNS lookups")
    zone.records["n9.example.org"] = [("A", "192.0.2.1")]
    found = check(zone)
    assert (found.result, found.lookups) == ("pass", 10)


def test_more_than_two_void_look_ups_are_a_permerror():
    zone = spf("v=spf1 a:n0.example.org a:n1.example.org a:n2.example.org ip4:192.0.2.1 -all")
    assert check(zone).result == "permerror"
    zone.records["n2.example.org"] = [("A", "198.51.100.1")]
    assert check(zone).result == "pass"


def test_a_record_with_a_thousand_includes_asks_for_eleven_names():
    zone = spf("v=spf1 " + " ".join(f"include:n{n}.example.org" for n in range(150)))
    zone.records.update(
        {f"n{n}.example.org": [("TXT", "v=spf1 ip4:198.51.100.1")] for n in range(150)}
    )
    assert check(zone).result == "permerror"
    assert sum(zone.asked.values()) == 11


def test_records_that_lead_to_each_other_end():
    zone = spf("v=spf1 include:b.example.org -all")
    zone.records["b.example.org"] = [("TXT", "v=spf1 redirect=example.org")]
    found = check(zone)
    assert found.result == "permerror"
    assert sum(zone.asked.values()) == 2


def test_the_most_that_records_can_ask_for_is_bounded():
    terms = " ".join(f"mx:m{number}.example.org" for number in range(10))
    zone = spf(f"v=spf1 a:%{{p}}.example.net {terms} -all")
    for number in range(10):
        zone.records[f"m{number}.example.org"] = [
            ("MX", (10, f"x{host}.m{number}.example.org")) for host in range(10)
        ]
        for host in range(10):
            zone.records[f"x{host}.m{number}.example.org"] = [("A", "198.51.100.1")]
    zone.records["1.2.0.192.in-addr.arpa"] = [("PTR", f"p{n}.example.org") for n in range(50)]
    for number in range(50):
        zone.records[f"p{number}.example.org"] = [("A", "192.0.2.1")]
    zone.records["p0.example.org.example.net"] = [("A", "198.51.100.1")]
    found = check(zone)
    assert found.result == "permerror"
    assert len(zone.asked) <= MAX_NAMES
    assert set(zone.asked.values()) == {1}


# --- records that were written to cost time -------------------------------------------------------

LOCAL = "a-" * 127 + "@"


@pytest.mark.parametrize(
    "term",
    [
        "a:x." + "a" * (MAX_TERM - 6) + "!",
        "a:" + "%%." * ((MAX_TERM - 5) // 3) + "com",
        "a:" + "%{s99r-}" * 30 + ".com",
        "include:" + "%{l1r-.+,/_=}" * 20 + ".example.org",
        "exists:%{s" + "9" * 300 + "}.org",
        "ip4:" + "1" * (MAX_TERM - 4),
        "a" + "/1" * 150,
        "mod=" + "%{d}" * 32,
    ],
)
def test_a_record_of_the_worst_terms_is_evaluated_within_the_time_for_it(term):
    text = "v=spf1"
    while (
        len(text) + len(term) + 1 <= MAX_RECORD
        and text.count("%{") + term.count("%{") <= MAX_MACROS
    ):
        text += f" {term}"
    assert not is_too_costly(text.encode())
    zone = spf("v=spf1 " + " ".join(f"include:n{n}.example.org" for n in range(9)))
    for number in range(9):
        zone.records[f"n{number}.example.org"] = [("TXT", text)]
    began = time.thread_time()
    check(zone, f"{LOCAL}example.org")
    # One record is looked at to its end before the time is looked at again.
    assert time.thread_time() - began < 3 * MAX_CPU


def test_records_that_take_too_long_are_a_permerror(monkeypatch):
    monkeypatch.setattr("preforkmx.middleware.spf_query.MAX_CPU", 0.0)
    found = check(spf("v=spf1 a -all"))
    assert (found.result, found.reason) == ("permerror", "The records take too long to evaluate")


@pytest.mark.parametrize(
    "text",
    [
        "v=spf1 " + "ip4:192.0.2.1 " * 300,
        "v=spf1 a:" + "a" * MAX_TERM,
        "v=spf1 " + "exists:%{i}.example.org " * (MAX_MACROS + 1),
    ],
)
def test_a_record_that_is_too_long_is_a_permerror(text):
    found = check(spf(text))
    assert (found.result, found.reason) == ("permerror", "The record is too long: example.org")


def test_a_long_text_that_is_no_spf_record_is_nobodys_business():
    assert check(spf("x" * 16_000, "v=spf1 ip4:192.0.2.1 -all")).result == "pass"


# --- the names in a record ------------------------------------------------------------------------


def names(text, address=CLIENT):
    return names_in_record(text.encode(), "example.org", address)


def test_names_are_those_that_the_terms_ask_for():
    text = "v=spf1 +a ~mx:b.example.org/24 ?include:C.example.org. exists:e.example.org -ptr ip4:1.2.3.4 x=y"
    assert names(f"{text} redirect=d.example.org") == [
        ("example.org", "A"),
        ("b.example.org", "MX"),
        ("c.example.org", "TXT"),
        ("e.example.org", "A"),
        ("1.2.0.192.in-addr.arpa", "PTR"),
        ("d.example.org", "TXT"),
    ]
    assert names("v=spf1 a a/24//64 exists:e", ip_address("2001:db8::1")) == [
        ("example.org", "AAAA"),
        ("example.org", "AAAA"),
        ("e", "A"),
    ]


def test_what_cannot_be_reached_or_is_not_known_yet_is_left_out():
    assert names("v=spf1 a -all mx redirect=d.example.org") == [("example.org", "A")]
    assert names("v=spf1 exists:%{i}.example.org include exists include:") == []
    assert names("v=spf10 a") == names("v=spf1,a") == names("") == []
