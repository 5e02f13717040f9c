"""The paths' regular expressions against a grammar read by hand: RFC 5321 section 4.1.2, and
what RFC 6531 section 3.3 adds to it."""

from __future__ import annotations

import re
import socket
import string
import unicodedata

import idna
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from preforkmx.protocol.paths import PathError, PathTooLong, parse_path

LET_DIG = set(string.ascii_letters + string.digits + "_")
ATEXT = set(string.ascii_letters + string.digits + "!#$%&'*+-/=?^_`{|}~")
QTEXT = {chr(code) for code in range(32, 127)} - {'"', "\\"}
PRINTABLE = {chr(code) for code in range(32, 127)}


UNWANTED = {"Cc", "Cs", "Zl", "Zp"}
TURNING = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}


class No(Exception):
    """The text does not go on as the rule says."""


class Grammar:
    """Reads one path; each method one rule of RFC 5321, with the deviations of paths.py."""

    def __init__(self, text: str, *, utf8: bool) -> None:
        self.text = text
        self.utf8 = utf8
        self.at = 0

    def within(self, wanted: set[str]) -> bool:
        character = self.next()
        if not character or character.isascii():
            return character in wanted
        return (
            self.utf8
            and unicodedata.category(character) not in UNWANTED
            and unicodedata.bidirectional(character) not in TURNING
        )

    def next(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self, wanted: str) -> None:
        if self.next() != wanted:
            raise No
        self.at += 1

    def run(self, wanted: set[str]) -> str:
        begin = self.at
        while self.within(wanted):
            self.at += 1
        if self.at == begin:
            raise No
        return self.text[begin : self.at]

    def path(self) -> tuple[str, str] | None:
        self.take("<")
        if self.next() == ">":
            self.at += 1
            return None
        if self.next() == "@":
            self.route()
        local = self.quoted() if self.next() == '"' else self.dots(ATEXT)
        self.take("@")
        domain = self.literal() if self.next() == "[" else self.domain()
        self.take(">")
        return local, domain

    def route(self) -> None:
        while True:
            self.take("@")
            self.domain()
            if self.next() != ",":
                break
            self.at += 1
        self.take(":")

    def dots(self, allowed: set[str]) -> str:
        atoms = [self.run(allowed)]
        while self.next() == ".":
            self.at += 1
            atoms.append(self.run(allowed))
        return ".".join(atoms)

    def domain(self) -> str:
        domain = self.dots(LET_DIG | {"-"})
        for label in domain.split("."):
            if len(label) > 63 or label[0] == "-" or label[-1] == "-":
                raise No
        return domain

    def registered(self, domain: str) -> None:
        """The domain of the mailbox is one of IDNA; those of a route nobody looks up."""
        for label in re.split("[.。．｡]", domain):
            try:
                encoded = label if label.isascii() else idna.encode(label, uts46=True).decode()
            except UnicodeError:
                raise No from None
            if not 0 < len(encoded) < 64 or encoded[0] == "-" or encoded[-1] == "-":
                raise No

    def quoted(self) -> str:
        begin = self.at
        self.take('"')
        while self.next() != '"':
            if self.next() == "\\":
                self.at += 1
                if self.next() not in PRINTABLE or not self.next():
                    raise No
            elif not self.within(QTEXT):
                raise No
            self.at += 1
        self.at += 1
        return self.text[begin : self.at]

    def literal(self) -> str:
        end = self.text.find("]", self.at)
        if end < 0:
            raise No
        literal = self.text[self.at : end + 1]
        self.at = end + 1
        inner = literal[1:-1]
        family = socket.AF_INET
        if inner[:5].upper() == "IPV6:":
            family, inner = socket.AF_INET6, inner[5:]
        try:
            socket.inet_pton(family, inner)
        except (OSError, ValueError):
            raise No from None
        return literal


def reference(text: str, *, utf8: bool = False) -> tuple[str, int] | str:
    if text[:12].lower() == "<postmaster>" and text[:12].isascii():
        return text[1:11], 12
    grammar = Grammar(text, utf8=utf8)
    try:
        parts = grammar.path()
    except No:
        return "no path"
    if parts is None:
        return "", grammar.at
    local, domain = parts
    if len(local.encode()) > 255 or len(domain.encode()) > 255:
        return "too long"
    if domain[0] != "[":
        try:
            grammar.registered(domain)
        except No:
            return "no path"
    return f"{local}@{domain}", grammar.at


def parsed(text: str, *, utf8: bool = False) -> tuple[str, int] | str:
    try:
        return parse_path(text, smtputf8=utf8)
    except PathTooLong:
        return "too long"
    except PathError:
        return "no path"


VALID = [
    "<>",
    "<Postmaster>",
    "<a@example.org>",
    "<a.b-c@sub.example.org> SIZE=1",
    '<"a b\\"c@"@example.org>',
    "<a@[192.0.2.1]>",
    "<a@[IPv6:2001:db8::192.0.2.1]>",
    "<@one.example,@two.example:a@b.example>",
    "<" + "x" * 254 + "@b.example>",
    "<a@" + ".".join(["x" * 63] * 4) + ">",
]
characters = st.sampled_from('<>@.,:;"\\[]-_ aZ09!#%+/=\t\0\x7féſK１')
pieces = st.sampled_from(
    [
        "<",
        ">",
        "@",
        ".",
        '"',
        "\\",
        "[",
        "]",
        "a",
        "b.example",
        "a@b",
        "@b.example:",
        "@b.example,",
        "[192.0.2.1]",
        "[IPv6:",
        "::1",
        "1:2:3:4:5:6:7:8",
        "255",
        "x" * 63,
        "-",
        "<>",
        "postmaster",
    ]
)


INTERNATIONAL = [
    "<grüße@example.org>",
    "<δοκιμή@παράδειγμα.δοκιμή> SMTPUTF8",
    '<"用户 名"@例子.测试>',
    "<@eins.example,@zwölf.example:ü@b.example>",
    "<a@BÜCHER.example>",
    "<a@例子。测试>",
    "<מאיר@דוגמה.example>",
    "<ü@[192.0.2.1]>",
    "<" + "ü" * 127 + "@b.example>",
    "<a@" + ".".join(["ü" * 30] * 4) + ">",
]
foreign = st.sampled_from(
    "éÉßſKｆ１。．·\xad\x80\x85\x9f\xa0\u0301\u200b\u200d\u200f\u2027\u2028\u2029\u202a\u202e"
    "\u2060\u2065\u2066\u2069\u206a\ufeff\uffff\U0001f600\U0010fffd用דع٣"
)


nothing = st.nothing()


@st.composite
def nearly_valid(draw, valid=tuple(VALID), more=nothing):
    text = draw(st.sampled_from(valid))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        gone = draw(st.sampled_from([0, 0, 1, 1, 3]))
        text = text[:at] + draw(st.just("") | characters | pieces | more) + text[at + gone :]
    return text


@given(nearly_valid() | st.lists(pieces | characters, max_size=12).map("".join))
@settings(deadline=None, max_examples=1500)
@example("<a@[x@192.0.2.1]>")
@example("<a@[IPv6:fe80::1%x]>")
@example("<a@[192.0.2.01]>")
@example('<"' + "x" * 254 + '"@b.example>')
def test_a_path_is_parsed_as_the_grammar_says(text):
    assert parsed(text) == reference(text)


@given(
    nearly_valid((*VALID, *INTERNATIONAL), foreign)
    | st.lists(pieces | characters | foreign, max_size=12).map("".join)
    | st.tuples(st.text(max_size=20), st.text(max_size=20)).map("<{0[0]}@{0[1]}.example>".format)
)
@settings(deadline=None, max_examples=2500)
@example("<a@" + "é" * 60 + ".example>")
@example("<a@example.org-é>")
@example("<é@" + "x" * 64 + ">")
@example("<é@[x@192.0.2.1]>")
@example('<"\\é"@example.org>')
@example("<poſtmaster>")
def test_a_path_of_an_smtputf8_transaction_is_parsed_as_the_grammar_says(text):
    assert parsed(text, utf8=True) == reference(text, utf8=True)


@given(nearly_valid() | st.lists(pieces, max_size=12).map("".join))
@settings(deadline=None, max_examples=500)
def test_smtputf8_changes_nothing_for_what_is_ascii(text):
    if text.isascii():
        assert parsed(text, utf8=True) == parsed(text)


@pytest.mark.parametrize("text", INTERNATIONAL[:-2])
def test_what_is_not_ascii_is_a_path_with_smtputf8_only(text):
    assert parsed(text) == "no path"
    assert parsed(text, utf8=True) == (
        text[text.find(":") + 1 :].strip("<").split(">")[0],
        text.index(">") + 1,
    )


@given(
    st.lists(
        st.sampled_from(["0", "1", "f", ":", "::", ".", "255", "01", "%", "ffff"]), max_size=14
    )
)
@settings(deadline=None, max_examples=800)
def test_an_address_literal_is_what_the_system_takes_for_an_address(parts):
    inner = "".join(parts)
    for literal in (f"<a@[{inner}]>", f"<a@[IPv6:{inner}]>"):
        assert parsed(literal) == reference(literal)
