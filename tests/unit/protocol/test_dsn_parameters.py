"""DSN: RET and ENVID of MAIL, NOTIFY and ORCPT of RCPT (RFC 3461, RFC 6533 section 3)."""

from __future__ import annotations

import pytest

from preforkmx.protocol import replies
from preforkmx.protocol.commands import mail, rcpt
from preforkmx.protocol.dsn import RecipientDSN
from preforkmx.protocol.events import Mail, Rcpt
from preforkmx.protocol.parameters import MailParameters
from preforkmx.protocol.settings import Settings

OFFERED = Settings(hostname="mx.example.com", dsn=True)
WITH_SMTPUTF8 = Settings(hostname="mx.example.com", dsn=True, smtputf8=True)
NOT_OFFERED = Settings(hostname="mx.example.com", smtputf8=True)


def of_mail(parameters, settings=OFFERED):
    event = mail(f"FROM:<a@example.org> {parameters}".encode(), settings)
    return event.parameters if isinstance(event, Mail) else event


def of_rcpt(parameters, settings=OFFERED, *, smtputf8=False):
    event = rcpt(f"TO:<b@example.com> {parameters}".encode(), settings, smtputf8=smtputf8)
    return event.dsn if isinstance(event, Rcpt) else event


@pytest.mark.parametrize("parameter", ["RET=FULL", "RET=HDRS", "ENVID=x", "RET=", "ENVID="])
def test_mails_parameters_are_unknown_where_dsn_is_not_offered(parameter):
    expected = replies.BAD_PARAMETER if parameter[-1] == "=" else replies.UNKNOWN_PARAMETER
    assert of_mail(parameter, NOT_OFFERED) is expected


@pytest.mark.parametrize("parameter", ["NOTIFY=NEVER", "ORCPT=rfc822;b@example.com", "NOTIFY"])
def test_rcpts_parameters_are_unknown_where_dsn_is_not_offered(parameter):
    assert of_rcpt(parameter, NOT_OFFERED) is replies.UNKNOWN_PARAMETER


def test_each_command_has_its_own_parameters():
    for parameter in ("NOTIFY=NEVER", "ORCPT=rfc822;a@example.org"):
        assert of_mail(parameter) is replies.UNKNOWN_PARAMETER
    for parameter in ("RET=FULL", "ENVID=x", "SIZE=1", "BODY=7BIT", "SMTPUTF8", "AUTH=<>"):
        assert of_rcpt(parameter) is replies.UNKNOWN_PARAMETER


def test_ret_and_envid_reach_the_event():
    assert of_mail("RET=FULL ENVID=QQ314159") == MailParameters(ret="FULL", envid="QQ314159")
    assert of_mail("envid=a+2Bb+3Dc+20d ret=hdrs") == MailParameters(ret="HDRS", envid="a+b=c d")


@pytest.mark.parametrize(
    "parameters",
    [
        "RET",
        "RET=",
        "RET=NONE",
        "RET=FULL,HDRS",
        "RET=FULL RET=FULL",
        "RET=FULL ret=hdrs",
        "ENVID",
        "ENVID=",
        "ENVID=x ENVID=y",
        "ENVID=+",
        "ENVID=+2",
        "ENVID=+2b",
        "ENVID=a=b",
        "ENVID=+0D+0Ax",
        "ENVID=+00",
        "ENVID=+09",
        "ENVID=+1B[2J",
        "ENVID=+7F",
        "ENVID=+80",
        "ENVID=+C3+BC",
    ],
)
def test_a_ret_or_envid_that_is_none_is_501(parameters):
    assert of_mail(parameters) is replies.BAD_PARAMETER


def test_envid_has_at_most_100_octets_as_encoded():
    assert of_mail("ENVID=" + "x" * 100) == MailParameters(envid="x" * 100)
    assert of_mail("ENVID=" + "x" * 101) is replies.BAD_PARAMETER
    assert of_mail("ENVID=" + "+2B" * 33) == MailParameters(envid="+" * 33)
    assert of_mail("ENVID=" + "+2B" * 34) is replies.BAD_PARAMETER


@pytest.mark.parametrize(
    ("value", "notify"),
    [
        ("NEVER", {"NEVER"}),
        ("never", {"NEVER"}),
        ("SUCCESS", {"SUCCESS"}),
        ("Failure,dElay", {"FAILURE", "DELAY"}),
        ("DELAY,SUCCESS,FAILURE", {"SUCCESS", "FAILURE", "DELAY"}),
    ],
)
def test_notify_is_never_or_a_list(value, notify):
    assert of_rcpt(f"NOTIFY={value}") == RecipientDSN(notify=frozenset(notify))


@pytest.mark.parametrize(
    "parameters",
    [
        "NOTIFY",
        "NOTIFY=",
        "NOTIFY=,",
        "NOTIFY=ALWAYS",
        "NOTIFY=NEVER,SUCCESS",
        "NOTIFY=NEVER,NEVER",
        "NOTIFY=SUCCESS,success",
        "NOTIFY=SUCCESS,",
        "NOTIFY=,SUCCESS",
        "NOTIFY=SUCCESS,,DELAY",
        "NOTIFY=SUCCESS;DELAY",
        "NOTIFY=NEVER NOTIFY=NEVER",
    ],
)
def test_any_other_notify_is_501(parameters):
    assert of_rcpt(parameters) is replies.BAD_PARAMETER


@pytest.mark.parametrize(
    ("value", "original"),
    [
        ("rfc822;b@example.com", ("rfc822", "b@example.com")),
        ("RFC822;B@Example.com", ("rfc822", "B@Example.com")),
        ("rfc822;a+2Bb+3Dc@example.com", ("rfc822", "a+b=c@example.com")),
        ("rfc822;+22a+20b+22@example.com", ("rfc822", '"a b"@example.com')),
        ("x400;/C;DE/", ("x400", "/C;DE/")),
        ("x-Type;x", ("x-type", "x")),
        # Without SMTPUTF8 this type is one like any other.
        ("utf-8;\\x{FC}@example.com", ("utf-8", "\\x{FC}@example.com")),
        ("utf-8;a+2Bb@example.com", ("utf-8", "a+b@example.com")),
    ],
)
def test_orcpt_is_an_address_type_and_an_address(value, original):
    assert of_rcpt(f"ORCPT={value}") == RecipientDSN(original=original)


@pytest.mark.parametrize(
    "parameters",
    [
        "ORCPT",
        "ORCPT=",
        "ORCPT=;",
        "ORCPT=;b@example.com",
        "ORCPT=rfc822",
        "ORCPT=rfc822;",
        "ORCPT=b@example.com",
        "ORCPT=rfc 822;b@example.com",
        "ORCPT=(x);b",
        "ORCPT=rfc822:b@example.com",
        "ORCPT=rfc822;b@example.com ORCPT=rfc822;b@example.com",
        "ORCPT=rfc822;a+",
        "ORCPT=rfc822;a+2b",
        "ORCPT=rfc822;a=b",
        "ORCPT=rfc822;a+0D+0AX:+20y",
        "ORCPT=rfc822;+00",
        "ORCPT=rfc822;+7F",
        "ORCPT=rfc822;+C3+BC",
    ],
)
def test_any_other_orcpt_is_501(parameters):
    assert of_rcpt(parameters) is replies.BAD_PARAMETER


def test_orcpt_has_at_most_500_octets_as_encoded():
    assert of_rcpt("ORCPT=x;" + "y" * 498) == RecipientDSN(original=("x", "y" * 498))
    assert of_rcpt("ORCPT=x;" + "y" * 499) is replies.BAD_PARAMETER
    longest = "utf-8;" + "ü" * 247
    assert of_rcpt(f"ORCPT={longest}", WITH_SMTPUTF8, smtputf8=True) == RecipientDSN(
        original=("utf-8", "ü" * 247)
    )
    longer = f"ORCPT={longest}x"
    assert of_rcpt(longer, WITH_SMTPUTF8, smtputf8=True) is replies.BAD_PARAMETER


@pytest.mark.parametrize(
    ("encoded", "address"),
    [
        ("b@example.com", "b@example.com"),
        ("\\x{FC}@example.com", "ü@example.com"),
        ("\\x{fc}@example.com", "ü@example.com"),
        ("\\x{3B4}\\x{4F8B}\\x{1F600}\\x{10FFFD}@example.com", "δ例😀\U0010fffd@example.com"),
        ("a\\x{2B}b\\x{3D}\\x{20}\\x{5C}@example.com", "a+b= \\@example.com"),
        # Decoded once.
        ("\\x{5C}x{FC}@example.com", "\\x{FC}@example.com"),
    ],
)
def test_an_address_of_type_utf8_is_ascii_on_the_wire(encoded, address):
    for smtputf8 in (False, True):
        assert of_rcpt(f"ORCPT=UTF-8;{encoded}", WITH_SMTPUTF8, smtputf8=smtputf8) == RecipientDSN(
            original=("utf-8", address)
        )


def test_in_an_smtputf8_transaction_an_address_of_type_utf8_is_utf8_too():
    parameters = "ORCPT=utf-8;gr\\x{FC}ße@bücher.example"
    assert of_rcpt(parameters, WITH_SMTPUTF8, smtputf8=True) == RecipientDSN(
        original=("utf-8", "grüße@bücher.example")
    )
    assert of_rcpt(parameters, WITH_SMTPUTF8) is replies.RECIPIENT_NOT_ASCII
    assert of_rcpt("ORCPT=rfc822;ü", WITH_SMTPUTF8, smtputf8=True) is replies.BAD_PARAMETER


@pytest.mark.parametrize(
    "encoded",
    [
        "",
        "a+b",
        "a+2Bb",
        "a\\b",
        "\\x{}",
        "\\x{FC",
        "\\xFC",
        "\\X{FC}",
        "\\x{0FC}",
        "\\x{0020}",
        "\\x{41}",
        "\\x{0}",
        "\\x{00}",
        "\\x{0A}",
        "\\x{0D}",
        "\\x{01}",
        "\\x{11}",
        "\\x{7F}",
        "\\x{85}",
        "\\x{2028}",
        "\\x{202E}",
        "\\x{D800}",
        "\\x{DFFF}",
        "\\x{110000}",
        "\\x{FFFFFF}",
        "\\x{1000000}",
        "\\x{FC}\n",
        "\\x{ FC}",
        "\\x{+FC}",
        "\\x{F_C}",
        "\\x{١}",
    ],
)
def test_any_other_address_of_type_utf8_is_501(encoded):
    parameters = f"ORCPT=utf-8;{encoded}"
    assert of_rcpt(parameters, WITH_SMTPUTF8, smtputf8=True) is replies.BAD_PARAMETER
    if encoded.isascii():
        assert of_rcpt(parameters, WITH_SMTPUTF8) is replies.BAD_PARAMETER


def test_a_recipient_that_asks_nothing_has_no_dsn():
    assert rcpt(b"TO:<b@example.com>", OFFERED) == Rcpt("b@example.com", None)
    assert rcpt(b"TO:<b@example.com>  ", OFFERED) == Rcpt("b@example.com", None)


def test_postmaster_alone_may_ask_too():
    assert rcpt(b"TO:<Postmaster> NOTIFY=DELAY", OFFERED) == Rcpt(
        "Postmaster@mx.example.com", RecipientDSN(notify=frozenset({"DELAY"}))
    )
