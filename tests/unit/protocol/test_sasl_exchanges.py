"""SASL PLAIN (RFC 4616) and LOGIN, and base64 as RFC 4954 wants it."""

from __future__ import annotations

from base64 import b64encode

import pytest

from preforkmx.protocol import replies
from preforkmx.protocol.sasl import MECHANISMS, Identity, Login, Plain, decode


def test_the_mechanisms_are_plain_and_login():
    assert list(MECHANISMS) == [b"PLAIN", b"LOGIN"]


@pytest.mark.parametrize("authorize", [b"", b"alice"])
def test_plain_is_three_strings_with_nul_between_them(authorize):
    assert Plain().respond(authorize + b"\0alice\0secret") == Identity("alice", "secret")


def test_plain_takes_utf_8():
    assert Plain().respond("\0jürgen\0schlüssel".encode()) == Identity("jürgen", "schlüssel")


@pytest.mark.parametrize("response", [b"", b"alice", b"alice\0secret", b"\0a\0b\0c", b"\0\0\0"])
def test_plain_with_another_number_of_strings_is_no_response(response):
    assert Plain().respond(response) is replies.AUTH_BAD_BASE64


@pytest.mark.parametrize("response", [b"\0alice\0\xff", b"\0\xff\0secret"])
def test_a_response_that_is_no_utf_8_is_none(response):
    assert Plain().respond(response) is replies.AUTH_BAD_BASE64


def test_nobody_acts_for_somebody_else():
    assert Plain().respond(b"bob\0alice\0secret") is replies.AUTH_FAILED


@pytest.mark.parametrize("response", [b"\0\0secret", b"\0alice\0", b"\0\0"])
def test_an_empty_user_name_or_password_never_reaches_a_hook(response):
    assert Plain().respond(response) is replies.AUTH_FAILED


def test_login_asks_for_the_user_name_then_for_the_password():
    login = Login()
    assert login.prompt is replies.USERNAME_PROMPT
    assert login.respond(b"alice") is None
    assert login.prompt is replies.PASSWORD_PROMPT
    assert login.respond(b"secret") == Identity("alice", "secret")


@pytest.mark.parametrize("responses", [(b"", b"secret"), (b"alice", b""), (b"", b"")])
def test_login_with_something_empty_fails_after_both_questions(responses):
    login = Login()
    assert login.respond(responses[0]) is None
    assert login.respond(responses[1]) is replies.AUTH_FAILED


@pytest.mark.parametrize(("name", "password"), [(b"al\0ice", b"secret"), (b"alice", b"sec\0ret")])
def test_login_cannot_say_a_nul_as_plain_cannot(name, password):
    login = Login()
    login.respond(name)
    assert login.respond(password) is replies.AUTH_FAILED


def test_the_two_spellings_of_a_user_name_are_one():
    exchange = Plain()
    said = exchange.respond("\0jo\u0308rg\0secret".encode())
    assert said == Identity("j\u00f6rg", "secret")


def test_a_user_name_of_more_than_1024_octets_is_nobodys():
    assert Plain().respond(b"\0" + b"x" * 1025 + b"\0secret") is replies.AUTH_FAILED
    assert Plain().respond(b"\0" + b"x" * 1024 + b"\0secret") == Identity("x" * 1024, "secret")


def test_no_password_stands_in_what_is_printed_of_an_identity():
    assert "secret" not in repr(Identity("alice", "secret"))


@pytest.mark.parametrize("octets", [b"", b"a", b"ab", b"abc", b"\0\xff", bytes(range(256))])
def test_base64_decodes_to_what_was_encoded(octets):
    assert decode(b64encode(octets)) == octets


def test_one_equals_sign_is_the_empty_response():
    assert decode(b"=") == b""


@pytest.mark.parametrize(
    "line",
    [
        b"*",
        b"YQ",
        b"YQ=",
        b"YQ===",
        b"YQ==YQ==",
        b"GEAY=",
        b"GEAY==",
        b"GEAY====",
        b"Y Q==",
        b"YQ==\n",
        b"====",
        b"Y-_=",
        b"\xff",
    ],
)
def test_what_is_not_base64_to_the_last_octet_is_refused(line):
    assert decode(line) is None
