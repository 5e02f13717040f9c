"""Parameters of MAIL and RCPT. The dialogues mail-parameters and rcpt-parameters have the rest."""

from __future__ import annotations

import pytest

from preforkmx.protocol import replies
from preforkmx.protocol.commands import mail, rcpt
from preforkmx.protocol.events import Mail, Rcpt
from preforkmx.protocol.parameters import MailParameters, mail_parameters, rcpt_parameters
from preforkmx.protocol.settings import Settings

SETTINGS = Settings(hostname="mx.example.com", message_size=1000)


def parse(text, *, auth=False):
    return mail_parameters(text, max_size=1000, auth=auth)


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


@pytest.mark.parametrize("value", ["<>", "a@example.org", "e+3Dmc2@example.org", "+2B", "<"])
def test_the_auth_parameter_is_xtext_or_null(value):
    assert parse(f" AUTH={value}", auth=True) == MailParameters()


@pytest.mark.parametrize("value", ["", "=", "=\t", "=é", "=a=b", "=\x7f", "=+", "=+a0", "=+3"])
def test_an_auth_parameter_that_is_no_xtext_is_refused(value):
    assert parse(f" AUTH{value}", auth=True) is replies.BAD_PARAMETER


def test_the_auth_parameter_is_unknown_where_auth_is_not_offered():
    assert parse(" AUTH=<>", auth=False) is replies.UNKNOWN_PARAMETER
    assert parse(" AUTH=<>", auth=True) == MailParameters()


@pytest.mark.parametrize("text", ["\t", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x1f", "\x85"])
def test_only_spaces_stand_between_parameters(text):
    assert parse(f" SIZE=1{text}BODY=7BIT") is replies.BAD_PARAMETER
    assert parse(f" {text}SIZE=1") is replies.BAD_PARAMETER
    assert rcpt_parameters(f" {text}") is replies.BAD_PARAMETER


@pytest.mark.parametrize("digits", ["１", "²", "1\n"])
def test_a_size_has_ascii_digits(digits):
    assert parse(f" SIZE={digits}") is replies.BAD_PARAMETER


def test_a_rcpt_has_no_parameters():
    assert rcpt_parameters("") is None
    assert rcpt_parameters("  ") is None
    assert rcpt_parameters(" NOTIFY=NEVER") is replies.UNKNOWN_PARAMETER
    assert rcpt_parameters(" N OTIFY= NEVER") is replies.BAD_PARAMETER


def test_postmaster_alone_is_this_hosts():
    assert rcpt(b"TO:<postMaster>", SETTINGS) == Rcpt("postMaster@mx.example.com")
