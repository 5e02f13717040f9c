"""SMTPUTF8 (RFC 6531): who may write what is not ASCII, and what comes of it."""

from __future__ import annotations

import pytest

from preforkmx.protocol import replies
from preforkmx.protocol.commands import mail, rcpt, vrfy
from preforkmx.protocol.events import Mail, Rcpt, Verify
from preforkmx.protocol.parameters import MailParameters
from preforkmx.protocol.settings import Settings

OFFERED = Settings(hostname="mx.example.com", smtputf8=True, dsn=True)
NOT_OFFERED = Settings(hostname="mx.example.com", smtputf8=False, dsn=True)

ADDRESSES = [
    "grüße@example.org",
    "GRÜSSE@BÜCHER.example",
    "gru\u0308ße@bu\u0308cher.example",
    "a@straße.example",
    "δοκιμή@παράδειγμα.δοκιμή",
    '"用户 名"@例子.测试',
    "ü@[192.0.2.1]",
    "ü@[IPv6:2001:db8::1]",
    "😀@example.org",
    "a.ü-b+ß@xn--bcher-kva.example",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_stored_as_the_client_wrote_it(address):
    assert mail(f"FROM:<{address}> SMTPUTF8".encode(), OFFERED) == Mail(
        address, MailParameters(smtputf8=True)
    )
    assert rcpt(f"TO:<{address}>".encode(), OFFERED, smtputf8=True) == Rcpt(address)


@pytest.mark.parametrize("address", ADDRESSES)
def test_without_the_parameter_an_address_is_ascii(address):
    for settings in (OFFERED, NOT_OFFERED):
        for parameters in ("", " SIZE=1", " "):
            line = f"FROM:<{address}>{parameters}".encode()
            assert mail(line, settings) is replies.SENDER_NOT_ASCII
        assert rcpt(f"TO:<{address}>".encode(), settings) is replies.RECIPIENT_NOT_ASCII


def test_the_refusals_are_those_of_rfc_6531():
    assert (replies.SENDER_NOT_ASCII.code, replies.SENDER_NOT_ASCII.enhanced) == (550, (5, 6, 7))
    assert replies.RECIPIENT_NOT_ASCII.code == 553
    assert replies.RECIPIENT_NOT_ASCII.enhanced == (5, 6, 7)


def test_the_parameter_is_unknown_where_it_is_not_offered():
    assert mail(b"FROM:<a@example.org> SMTPUTF8", NOT_OFFERED) is replies.UNKNOWN_PARAMETER
    line = "FROM:<ü@example.org> SMTPUTF8".encode()
    assert mail(line, NOT_OFFERED) is replies.SENDER_NOT_ASCII


def test_the_parameter_stands_anywhere_in_any_case_and_alone():
    expected = Mail("ü@example.org", MailParameters(size=1, smtputf8=True))
    for parameters in ("SIZE=1 SMTPUTF8", "smtpUtf8 SIZE=1", "  SMTPUTF8  SIZE=1 "):
        assert mail(f"FROM:<ü@example.org> {parameters}".encode(), OFFERED) == expected
    for parameters in ("SMTPUTF8=", "SMTPUTF8=1", "SMTPUTF8 SMTPUTF8", "SMTPUTF8 smtputf8"):
        line = f"FROM:<a@example.org> {parameters}".encode()
        assert mail(line, OFFERED) is replies.BAD_PARAMETER


def test_ascii_goes_on_as_before_with_the_parameter():
    assert mail(b"FROM:<> SMTPUTF8", OFFERED) == Mail("", MailParameters(smtputf8=True))
    assert rcpt(b"TO:<Postmaster>", OFFERED, smtputf8=True) == Rcpt("Postmaster@mx.example.com")
    assert rcpt(b"TO:<a>", OFFERED, smtputf8=True) is replies.BAD_RECIPIENT


@pytest.mark.parametrize(
    "octets", [b"\xff", b"\xc3", b"\xc0\xbc", b"\xe2\x84", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"]
)
def test_what_is_not_utf8_is_501_everywhere(octets):
    for settings in (OFFERED, NOT_OFFERED):
        for line in (
            b"FROM:<" + octets + b"@example.org> SMTPUTF8",
            b"FROM:<a@" + octets + b".example> SMTPUTF8",
            b"FROM:<a@example.org> SMTPUTF8 ENVID=" + octets,
            b"FROM:<a@example.org>" + octets,
        ):
            assert mail(line, settings) is replies.NOT_UTF8
        for smtputf8 in (False, True):
            line = b"TO:<" + octets + b"@example.org>"
            assert rcpt(line, settings, smtputf8=smtputf8) is replies.NOT_UTF8
            line = b"TO:<a@example.org> ORCPT=utf-8;" + octets
            assert rcpt(line, settings, smtputf8=smtputf8) is replies.NOT_UTF8
        assert vrfy(b"a" + octets + b" SMTPUTF8", settings) is replies.NOT_UTF8
    assert replies.NOT_UTF8.code == 501


@pytest.mark.parametrize(
    "character",
    [
        "\0",
        "\t",
        "\n",
        "\r",
        "\x1b",
        "\x7f",
        "\x80",
        "\x85",
        "\x9b",
        "\x9f",
        "\u2028",
        "\u2029",
        "\u202a",
        "\u202e",
        "\u2066",
        "\u2069",
    ],
)
def test_what_ends_or_turns_a_line_is_in_no_address(character):
    for address in (
        f"ü{character}@example.org",
        f'"ü{character}"@example.org',
        f'"ü\\{character}"@example.org',
        f"ü@a{character}b.example",
        f"ü@a{character}é.example",
        f"@a{character}b.example:ü@example.org",
    ):
        line = f"FROM:<{address}> SMTPUTF8".encode()
        assert mail(line, OFFERED) is replies.BAD_SENDER
        line = f"TO:<{address}>".encode()
        assert rcpt(line, OFFERED, smtputf8=True) is replies.BAD_RECIPIENT
    line = f"TO:<a@example.org> ORCPT=utf-8;ü{character}".encode()
    assert rcpt(line, OFFERED, smtputf8=True) is replies.BAD_PARAMETER
    assert vrfy(f"ü{character}x".encode(), OFFERED) is replies.VRFY_SYNTAX


@pytest.mark.parametrize(
    "domain",
    [
        "💩.example",
        "-é.example",
        "é-.example",
        "é..example",
        "é.example.",
        "é_.example",
        "xn--é.example",
        "a＠é.example",
        "[é]",
        "[１92.0.2.1]",
        "é" * 64 + ".example",
        "ab--é.example",
        "é" + "." + "x" * 64,
    ],
)
def test_a_domain_that_idna_does_not_know_is_501(domain):
    line = f"FROM:<a@{domain}> SMTPUTF8".encode()
    assert mail(line, OFFERED) is replies.BAD_SENDER
    line = f"TO:<a@{domain}>".encode()
    assert rcpt(line, OFFERED, smtputf8=True) is replies.BAD_RECIPIENT


def test_lengths_are_octets_of_utf8():
    for longest in ("ü" * 127 + "x", "例" * 85, "😀" * 63 + "xyz"):
        assert len(longest.encode()) == 255
        address = f"{longest}@example.org"
        assert rcpt(f"TO:<{address}>".encode(), OFFERED, smtputf8=True) == Rcpt(address)
        line = f"FROM:<x{address}> SMTPUTF8".encode()
        assert mail(line, OFFERED) is replies.SENDER_TOO_LONG
        line = f"TO:<{longest}x@example.org>".encode()
        assert rcpt(line, OFFERED, smtputf8=True) is replies.RECIPIENT_TOO_LONG
    line = f"TO:<a@{'.'.join(['é' * 32] * 4)}>".encode()
    assert rcpt(line, OFFERED, smtputf8=True) is replies.RECIPIENT_TOO_LONG


def test_keywords_are_compared_in_ascii_only():
    # U+017F and U+212A are S and K to str.upper() and str.lower().
    assert mail("FROM:<a@example.org> ſIZE=1 SMTPUTF8".encode(), OFFERED) is replies.BAD_PARAMETER
    assert mail("FROM:<a@example.org> SMTPUTF8 ſMTPUTF8".encode(), OFFERED) is replies.BAD_PARAMETER
    assert mail("FROM:<a@example.org> ſMTPUTF8".encode(), OFFERED) is replies.BAD_PARAMETER
    assert mail("FROM:<a@example.org> SMTPUTF8 RET=HDRſ".encode(), OFFERED) is replies.BAD_PARAMETER
    # ı and ﬀ go to ASCII with upper() too.
    line = "FROM:<a@example.org> SMTPUTF8 BODY=8BıTMIME".encode()
    assert mail(line, OFFERED) is replies.BAD_PARAMETER
    for notify in ("ſUCCESS", "SUCCEſS", "FAıLURE"):
        line = f"TO:<a@example.org> NOTIFY={notify}".encode()
        assert rcpt(line, OFFERED, smtputf8=True) is replies.BAD_PARAMETER
    line = "TO:<a@example.org> ORCPT=utf-８;a".encode()
    assert rcpt(line, OFFERED, smtputf8=True) is replies.BAD_PARAMETER
    assert mail("ＦROM:<a@example.org> SMTPUTF8".encode(), OFFERED) is replies.MAIL_SYNTAX
    assert rcpt("ＴO:<a@example.org>".encode(), OFFERED, smtputf8=True) is replies.RCPT_SYNTAX
    assert rcpt("TO:<poſtmaster>".encode(), OFFERED, smtputf8=True) is replies.BAD_RECIPIENT


def test_foreign_spaces_separate_nothing():
    for space in ("\xa0", "\u3000", "\u2003"):
        line = f"FROM:<ü@example.org>{space}SMTPUTF8".encode()
        assert mail(line, OFFERED) is replies.BAD_SENDER
        line = f"FROM:<ü@example.org> SIZE=1{space}SMTPUTF8".encode()
        assert mail(line, OFFERED) is replies.BAD_PARAMETER
        assert mail(f"FROM:{space}<ü@example.org>".encode(), OFFERED) is replies.BAD_SENDER


@pytest.mark.parametrize("text", ["alice", "Alice Liddell", "<alice@example.com>", "SMTPUTF8"])
def test_vrfy_takes_any_text(text):
    for settings in (OFFERED, NOT_OFFERED):
        assert vrfy(text.encode(), settings) == Verify(text)


def test_vrfys_last_word_allows_utf8_in_the_reply():
    assert vrfy(b"alice SMTPUTF8", OFFERED) == Verify("alice", smtputf8=True)
    assert vrfy(b"alice  smtputf8 ", OFFERED) == Verify("alice", smtputf8=True)
    assert vrfy("grüße SMTPUTF8".encode(), OFFERED) == Verify("grüße", smtputf8=True)
    assert vrfy(b"SMTPUTF8 SMTPUTF8", OFFERED) == Verify("SMTPUTF8", smtputf8=True)
    assert vrfy(b"alice SMTPUTF8 x", OFFERED) == Verify("alice SMTPUTF8 x")
    assert vrfy("alice ſMTPUTF8".encode(), OFFERED) == Verify("alice ſMTPUTF8")
    assert vrfy(b"alice SMTPUTF8", NOT_OFFERED) == Verify("alice SMTPUTF8")
    for value in (b"=", b"=1"):
        assert vrfy(b"alice SMTPUTF8" + value, OFFERED) is replies.VRFY_SYNTAX


def test_vrfys_text_may_be_utf8_where_smtputf8_is_offered():
    # Its parameter is about the reply (RFC 6531 section 3.7.4.2).
    assert vrfy("grüße".encode(), OFFERED) == Verify("grüße", smtputf8=False)
    assert vrfy("grüße".encode(), NOT_OFFERED) is replies.VRFY_SYNTAX


def test_vrfy_without_text_is_501():
    for settings in (OFFERED, NOT_OFFERED):
        assert vrfy(b"", settings) is replies.VRFY_SYNTAX
        assert vrfy(b"\x01", settings) is replies.VRFY_SYNTAX
