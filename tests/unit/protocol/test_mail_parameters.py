"""Parameters of MAIL and RCPT. The dialogues mail-parameters and rcpt-parameters have the rest."""

from __future__ import annotations

import pytest

from preforkmx.protocol import replies
from preforkmx.protocol.commands import mail, rcpt
from preforkmx.protocol.events import Mail, Rcpt
from preforkmx.protocol.parameters import (
    NO_PARAMETERS,
    MailParameters,
    mail_parameters,
    rcpt_parameters,
)
from preforkmx.protocol.settings import Settings

SETTINGS = Settings(hostname="mx.example.com", message_size=1000)


def parse(text, *, tls=False, **offered):
    settings = Settings(hostname="mx.example.com", message_size=1000, **offered)
    return mail_parameters(text, settings, tls=tls)


def test_a_mail_without_parameters_declares_no_size_and_seven_bits():
    assert parse("") == MailParameters(size=None, body="7BIT")
    assert mail(b"FROM:<>", SETTINGS) == Mail("", MailParameters(size=None, body="7BIT"))


def test_size_and_body_reach_the_event():
    assert mail(b"FROM:<a@example.org> SIZE=7 body=8bitmime", SETTINGS) == Mail(
        "a@example.org", MailParameters(size=7, body="8BITMIME")
    )


def test_each_mail_has_parameters_of_its_own_unless_it_has_none():
    first, second = parse(" SIZE=1"), parse(" SIZE=1")
    assert first == second
    assert first is not second


@pytest.mark.parametrize("parameters", [" SIZE=999", " SIZE=1000"])
def test_a_size_up_to_the_limit_is_taken(parameters):
    assert isinstance(parse(parameters), MailParameters)


def test_a_size_over_the_limit_is_552_before_the_message_comes():
    assert parse(" SIZE=1001") is replies.TOO_LARGE


@pytest.mark.parametrize(
    ("value", "mailbox"),
    [
        ("<>", ""),
        ("+3C+3E", ""),
        ("a@example.org", "a@example.org"),
        ("e+3Dmc2@example.org", "e=mc2@example.org"),
        ("+22a+20b+22@example.org", '"a b"@example.org'),
        ("a", "a"),
        ("+2B", "+"),
    ],
)
def test_the_auth_parameter_is_a_mailbox_in_xtext_or_null(value, mailbox):
    assert parse(f" AUTH={value}", auth=True, tls=True) == MailParameters(auth=mailbox)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "=",
        "=\t",
        "=é",
        "=a=b",
        "=\x7f",
        "=+",
        "=+a0",
        "=+3",
        "=a+0D+0Ab",
        "=+00",
        "=+7F",
        "=+FF",
        "=+C2+85",
    ],
)
def test_an_auth_parameter_that_is_no_xtext_or_not_printable_is_refused(value):
    assert parse(f" AUTH{value}", auth=True, tls=True) is replies.BAD_PARAMETER


def test_a_mailbox_that_is_not_ascii_needs_smtputf8():
    offered = {"auth": True, "tls": True, "smtputf8": True}
    expected = MailParameters(auth="ü@example.org", smtputf8=True)
    assert parse(" AUTH=+C3+BC@example.org SMTPUTF8", **offered) == expected
    assert parse(" SMTPUTF8 AUTH=+C3+BC@example.org", **offered) == expected
    assert parse(" AUTH=+C3+BC@example.org", **offered) is replies.BAD_PARAMETER
    for value in ("+FF", "+C3", "+E2+80+A8", "+E2+80+AE", "+C2+85"):
        assert parse(f" SMTPUTF8 AUTH=a{value}", **offered) is replies.BAD_PARAMETER


def test_the_auth_parameter_is_unknown_where_auth_is_not_offered():
    assert parse(" AUTH=<>") is replies.UNKNOWN_PARAMETER
    assert parse(" AUTH=<>", tls=True) is replies.UNKNOWN_PARAMETER
    assert parse(" AUTH=<>", auth=True) is replies.UNKNOWN_PARAMETER
    assert parse(" AUTH=<>", auth=True, tls=True) == MailParameters(auth="")
    assert parse(" AUTH=<>", auth=True, allow_insecure_auth=True) == MailParameters(auth="")


def test_binary_bodies_are_taken_where_chunking_and_binarymime_are_offered():
    for value in ("BINARYMIME", "binaryMime"):
        assert parse(f" BODY={value}", chunking=True, binarymime=True) == MailParameters(
            body="BINARYMIME"
        )
    for offered in (
        {"chunking": False, "binarymime": True},
        {"chunking": True, "binarymime": False},
        {"chunking": False, "binarymime": False},
    ):
        assert parse(" BODY=BINARYMIME", **offered) is replies.BAD_PARAMETER


@pytest.mark.parametrize("value", ["", "=", "=8BIT", "=BINARY", "=7BIT,8BITMIME", "=8BıTMIME"])
def test_any_other_body_is_refused(value):
    assert parse(f" BODY{value}") is replies.BAD_PARAMETER


def test_requiretls_is_known_under_tls_where_it_is_offered():
    assert parse(" REQUIRETLS", requiretls=True, tls=True) == MailParameters(require_tls=True)
    assert parse(" requireTls", requiretls=True, tls=True) == MailParameters(require_tls=True)
    assert parse(" REQUIRETLS", requiretls=True, tls=False) is replies.UNKNOWN_PARAMETER
    assert parse(" REQUIRETLS", requiretls=False, tls=True) is replies.UNKNOWN_PARAMETER


@pytest.mark.parametrize("parameters", ["REQUIRETLS=", "REQUIRETLS=1", "REQUIRETLS REQUIRETLS"])
def test_requiretls_takes_no_value_and_stands_once(parameters):
    assert parse(f" {parameters}", requiretls=True, tls=True) is replies.BAD_PARAMETER


def test_all_parameters_together_reach_the_event():
    settings = Settings(
        hostname="mx.example.com", smtputf8=True, dsn=True, requiretls=True, auth=True
    )
    line = (
        "FROM:<ü@example.org> SIZE=5 BODY=BINARYMIME SMTPUTF8 RET=HDRS ENVID=x+2By REQUIRETLS"
        " AUTH=a@example.org"
    )
    assert mail(line.encode(), settings, tls=True) == Mail(
        "ü@example.org",
        MailParameters(
            size=5,
            body="BINARYMIME",
            auth="a@example.org",
            smtputf8=True,
            require_tls=True,
            ret="HDRS",
            envid="x+y",
        ),
    )


def test_the_parameters_that_are_shared_stay_empty():
    mail(b"FROM:<a@example.org> SIZE=7 BODY=8BITMIME", SETTINGS)
    assert mail(b"FROM:<a@example.org>", SETTINGS).parameters is NO_PARAMETERS
    assert MailParameters() == NO_PARAMETERS


@pytest.mark.parametrize("text", ["\t", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x1f", "\x85"])
def test_only_spaces_stand_between_parameters(text):
    assert parse(f" SIZE=1{text}BODY=7BIT") is replies.BAD_PARAMETER
    assert parse(f" {text}SIZE=1") is replies.BAD_PARAMETER
    assert rcpt_parameters(f" {text}", SETTINGS, smtputf8=False) is replies.BAD_PARAMETER


@pytest.mark.parametrize("digits", ["１", "²", "1\n"])
def test_a_size_has_ascii_digits(digits):
    assert parse(f" SIZE={digits}") is replies.BAD_PARAMETER


def test_a_rcpt_has_no_parameters_where_nothing_offers_one():
    assert rcpt_parameters("", SETTINGS, smtputf8=False) is None
    assert rcpt_parameters("  ", SETTINGS, smtputf8=False) is None
    unknown = rcpt_parameters(" NOTIFY=NEVER", SETTINGS, smtputf8=False)
    assert unknown is replies.UNKNOWN_PARAMETER
    bad = rcpt_parameters(" N OTIFY= NEVER", SETTINGS, smtputf8=False)
    assert bad is replies.BAD_PARAMETER


def test_postmaster_alone_is_this_hosts():
    assert rcpt(b"TO:<postMaster>", SETTINGS) == Rcpt("postMaster@mx.example.com")
