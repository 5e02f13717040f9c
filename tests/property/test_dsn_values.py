"""The values of DSN's parameters, and of whole commands, whatever octets stand in them."""

from __future__ import annotations

import unicodedata

from hypothesis import example, given, settings
from hypothesis import strategies as st

from preforkmx.protocol import xtext
from preforkmx.protocol.commands import mail, rcpt, vrfy
from preforkmx.protocol.dsn import parse_envid, parse_notify, parse_orcpt, parse_ret
from preforkmx.protocol.events import Mail, Rcpt, Verify
from preforkmx.protocol.replies import Reply
from preforkmx.protocol.settings import Settings

ALL = Settings(hostname="mx.example.com", smtputf8=True, dsn=True, requiretls=True, auth=True)
NONE = Settings(hostname="mx.example.com", chunking=False)
UNWANTED = {"Cc", "Cs", "Zl", "Zp"}
TURNING = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}

printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=30)


def harmless(text: str) -> bool:
    return not any(
        unicodedata.category(character) in UNWANTED
        or unicodedata.bidirectional(character) in TURNING
        for character in text
    )


foreign = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30)


def embedded(text: str, *, ascii_only: bool) -> str:
    """Encode `text` as RFC 6533 section 3 says, by hand."""
    return "".join(
        character
        if "!" <= character <= "~" and character not in "\\+="
        else character
        if not ascii_only and ord(character) > 127
        else f"\\x{{{ord(character):02X}}}"
        for character in text
    )


@given(printable)
def test_an_envid_is_what_the_client_encoded(text):
    encoded = xtext.encode(text.encode())
    assert parse_envid(encoded) == (text if len(encoded) <= 100 else None)


@given(printable, st.sampled_from(["rfc822", "X400", "utf-8"]), st.booleans())
def test_an_original_recipient_is_what_the_client_encoded(text, address_type, smtputf8):
    value = f"{address_type};{xtext.encode(text.encode())}"
    assert parse_orcpt(value, utf8=False, smtputf8=smtputf8) == (address_type.lower(), text)


@given(foreign | printable)
@settings(max_examples=500)
@example("\x80")
@example("\u2028")
@example("\u202e")
@example("\x7f")
@example("ü\\x{FC}+=")
@example("\U0010ffff")
def test_an_address_of_type_utf8_is_what_the_client_encoded(text):
    expected = ("utf-8", text) if harmless(text) else None
    value = f"utf-8;{embedded(text, ascii_only=True)}"
    assert parse_orcpt(value, utf8=True, smtputf8=False) == expected
    assert parse_orcpt(value, utf8=True, smtputf8=True) == expected
    value = f"utf-8;{embedded(text, ascii_only=False)}"
    assert parse_orcpt(value, utf8=True, smtputf8=True) == expected
    if not text.isascii():
        assert parse_orcpt(value, utf8=True, smtputf8=False) is None


words = st.sampled_from(["NEVER", "success", "FAILURE", "Delay", "", "ALWAYS", "ſUCCESS", " DELAY"])


@given(st.lists(words, max_size=5))
def test_a_notify_is_never_alone_or_a_set_of_reasons(parts):
    notify = parse_notify(",".join(parts))
    upper = sorted(part.upper() if part.isascii() else part for part in parts)
    allowed = upper == ["NEVER"] or (
        bool(upper)
        and len(set(upper)) == len(upper)
        and set(upper) <= {"SUCCESS", "FAILURE", "DELAY"}
    )
    assert (notify is not None) == allowed
    if notify is not None:
        assert sorted(notify) == upper


@given(st.text(max_size=20))
def test_no_text_makes_a_parser_raise(text):
    assert parse_ret(text) in (None, "FULL", "HDRS")
    for value in (text, f"utf-8;{text}", f"rfc822;{text}"):
        for utf8 in (False, True):
            original = parse_orcpt(value, utf8=utf8, smtputf8=utf8) if is_text(value) else None
            assert original is None or (original[1] and harmless(original[1]))
    envid = parse_envid(text)
    assert envid is None or (envid and harmless(envid) and envid.isascii())
    parse_notify(text)


def is_text(value: str) -> bool:
    """Whether a client's octets can be decoded to this."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


fragments = st.sampled_from(
    [
        b"FROM:",
        b"TO:",
        b"<a@example.org>",
        b"<>",
        b"<",
        b">",
        b"@",
        b" ",
        b"=",
        b"SIZE=1",
        b"BODY=BINARYMIME",
        b"SMTPUTF8",
        b"RET=FULL",
        b"ENVID=a+2B",
        b"AUTH=<>",
        b"AUTH=+C3+BC",
        b"REQUIRETLS",
        b"NOTIFY=DELAY,",
        b"ORCPT=utf-8;",
        b"\\x{FC}",
        b"\\x{202E}",
        "ü@b\u00fccher.example".encode(),
        "ſ\u212a\u2028\u202e\x85".encode(),
        b"\xc3",
        b"\xff",
        b"\0\r\n\x7f",
    ]
)
octets = st.lists(fragments | st.binary(max_size=4), max_size=12).map(b"".join)


@given(octets, octets, st.sampled_from([ALL, NONE]), st.booleans())
@settings(deadline=None, max_examples=2000)
def test_no_octets_make_a_command_raise_or_bring_in_what_is_not_printable(
    path, parameters, offered, flag
):
    for argument in (
        path,
        b"FROM:" + path,
        b"FROM:<a@example.org> " + parameters,
        b"FROM:<" + path + b"@example.org> SMTPUTF8 " + parameters,
    ):
        event = mail(argument, offered, tls=flag)
        assert isinstance(event, Mail | Reply)
        if isinstance(event, Mail):
            values = (event.path, event.parameters.auth or "", event.parameters.envid or "")
            assert all(harmless(value) for value in values)
            if not event.parameters.smtputf8:
                assert all(value.isascii() for value in values)
            assert offered is ALL or not event.parameters.smtputf8
    for argument in (
        path,
        b"TO:" + path,
        b"TO:<a@example.org> " + parameters,
        b"TO:<a@" + path + b"> " + parameters,
    ):
        event = rcpt(argument, offered, smtputf8=flag)
        assert isinstance(event, Rcpt | Reply)
        if isinstance(event, Rcpt):
            assert harmless(event.path)
            assert flag or event.path.isascii()
            assert event.dsn is None or offered is ALL
            if event.dsn is not None and event.dsn.original is not None:
                assert harmless(event.dsn.original[1])
    event = vrfy(path, offered)
    assert isinstance(event, Verify | Reply)
    if isinstance(event, Verify):
        assert harmless(event.text)
