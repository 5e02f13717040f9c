"""Passwords: their comparable form, their hashes, and what a hash costs."""

from __future__ import annotations

import pytest
from argon2.low_level import Type, hash_secret
from hypothesis import given, settings
from hypothesis import strategies as st

from preforkmx.middleware.passwords import (
    Parameters,
    decoy,
    hash_password,
    parse_hash,
    prepare_name,
    prepare_password,
    verify,
)

SALT, DIGEST = "c2FsdHNhbHQ", "AAAAAAAAAAAAAAAAAAAAAA"
CHEAP = f"$argon2id$v=19$m=8,t=1,p=1${SALT}${DIGEST}"


def test_a_hash_has_the_parameters_that_rfc_9106_recommends():
    text = hash_password(b"secret")
    assert parse_hash(text) == Parameters("argon2id", 19, 65536, 3, 4, 16, 32)
    assert verify(text, b"secret")
    assert not verify(text, b"secreT")


def test_no_two_hashes_of_one_password_are_the_same():
    assert hash_password(b"secret") != hash_password(b"secret")


@pytest.mark.parametrize(("name", "kind"), [("argon2i", Type.I), ("argon2d", Type.D)])
@pytest.mark.parametrize("version", [16, 19])
def test_every_kind_and_version_of_argon2_is_verified(name, kind, version):
    text = hash_secret(b"secret", b"saltsalt", 1, 8, 1, 16, kind, version).decode()
    assert parse_hash(text) == Parameters(name, version, 8, 1, 1, 8, 16)
    assert verify(text, b"secret")
    assert not verify(text, b"other")


def test_a_hash_without_a_version_is_of_version_16():
    text = hash_secret(b"secret", b"saltsalt", 1, 8, 1, 16, Type.I, 16).decode()
    text = text.replace("$v=16", "")
    assert parse_hash(text).version == 16
    assert verify(text, b"secret")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "secret",
        "{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=",
        "$2b$12$abcdefghijklmnopqrstuv",
        "$argon2$v=19$m=8,t=1,p=1$" + f"{SALT}${DIGEST}",
        "$argon2id$v=17$m=8,t=1,p=1$" + f"{SALT}${DIGEST}",
        "$argon2id$v=19$t=1,m=8,p=1$" + f"{SALT}${DIGEST}",
        "$argon2id$v=19$m=08,t=1,p=1$" + f"{SALT}${DIGEST}",
        "$argon2id$v=19$m=٨,t=1,p=1$" + f"{SALT}${DIGEST}",
        "$argon2id$v=19$m=8,t=1,p=1,keyid=AAAA$" + f"{SALT}${DIGEST}",
        f"{CHEAP} ",
        f"{CHEAP}\n",
        f" {CHEAP}",
        CHEAP.replace(SALT, SALT + "="),
    ],
)
def test_what_is_no_argon2_hash_is_refused_without_being_shown(text):
    with pytest.raises(ValueError) as caught:
        parse_hash(text)
    assert str(caught.value) == "what follows the name is no Argon2 hash"


@pytest.mark.parametrize(
    "text",
    [
        CHEAP.replace(SALT, "c2FsdHNhbA"),
        CHEAP.replace(SALT, "c2FsdHNhbHR"),
        CHEAP.replace(SALT, "c2FsdHNhbHQAA"),
        CHEAP.replace(DIGEST, "AAAA"),
        CHEAP.replace("m=8", "m=7"),
        CHEAP.replace("p=1", "p=2"),
    ],
    ids=["salt", "bits after the salt", "no base64", "hash", "memory", "memory of two lanes"],
)
def test_a_hash_that_argon2_would_not_verify_is_refused(text):
    with pytest.raises(ValueError, match="too small"):
        parse_hash(text)


@pytest.mark.parametrize("text", ["m=1048577,t=1,p=1", "m=8,t=101,p=1", "m=1024,t=1,p=65"])
def test_a_hash_that_would_stop_the_server_is_refused(text):
    with pytest.raises(ValueError, match="costs too much"):
        parse_hash(CHEAP.replace("m=8,t=1,p=1", text))


@given(
    variant=st.sampled_from(["argon2id", "argon2i", "argon2d", "argon2"]),
    version=st.sampled_from(["v=19$", "v=16$", "v=18$", ""]),
    memory=st.integers(0, 64),
    time=st.integers(0, 3),
    lanes=st.integers(0, 3),
    salt=st.text("AQgw", max_size=20),
    digest=st.text("AQgw", max_size=20),
)
@settings(max_examples=300)
def test_what_is_accepted_can_be_verified(variant, version, memory, time, lanes, salt, digest):
    """verify() raises where Argon2 cannot read a hash."""
    text = f"${variant}${version}m={memory},t={time},p={lanes}${salt}${digest}"
    try:
        parameters = parse_hash(text)
    except ValueError:
        return
    assert verify(text, b"secret") is False
    assert parse_hash(decoy(parameters)) == parameters
    assert verify(decoy(parameters), b"secret") is False


@given(st.text())
def test_any_text_is_a_hash_or_a_value_error(text):
    try:
        parse_hash(text)
    except ValueError as error:
        assert text not in str(error) or len(text) < 8  # noqa: PT017


def test_a_decoy_is_another_each_time():
    parameters = parse_hash(CHEAP)
    assert decoy(parameters) != decoy(parameters)


def test_names_are_compared_in_nfc_and_in_their_case():
    assert prepare_name("Jose\u0301") == "Jos\u00e9"
    assert prepare_name("Joe") != prepare_name("joe")


def test_passwords_are_compared_in_nfc_with_ascii_spaces():
    assert prepare_password("e\u0301 x") == "\u00e9 x".encode()
    assert prepare_password("a\u00a0b\u3000c d") == b"a b c d"
    assert prepare_password("Secret") != prepare_password("secret")


@given(st.text(min_size=1))
def test_a_prepared_password_is_prepared_and_not_empty(text):
    if any("\ud800" <= each <= "\udfff" for each in text):
        return
    prepared = prepare_password(text)
    assert prepared
    assert prepare_password(prepared.decode()) == prepared
