"""The paths' regular expressions against a grammar of RFC 5321 section 4.1.2 read by hand."""

from __future__ import annotations

import socket
import string

from hypothesis import example, given, settings
from hypothesis import strategies as st

from preforkmx.protocol.paths import PathError, PathTooLong, parse_path

LET_DIG = set(string.ascii_letters + string.digits + "_")
ATEXT = set(string.ascii_letters + string.digits + "!#$%&'*+-/=?^_`{|}~")
QTEXT = {chr(code) for code in range(32, 127)} - {'"', "\\"}
PRINTABLE = {chr(code) for code in range(32, 127)}


class No(Exception):
    """The text does not go on as the rule says."""


class Grammar:
    """Reads one path; each method one rule of RFC 5321, with the deviations of paths.py."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def next(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self, wanted: str) -> None:
        if self.next() != wanted:
            raise No
        self.at += 1

    def run(self, wanted: set[str]) -> str:
        begin = self.at
        while self.next() in wanted and self.next():
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

    def quoted(self) -> str:
        begin = self.at
        self.take('"')
        while self.next() != '"':
            if self.next() == "\\":
                self.at += 1
                if self.next() not in PRINTABLE or not self.next():
                    raise No
            elif self.next() not in QTEXT or not self.next():
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


def reference(text: str) -> tuple[str, int] | str:
    if text[:12].lower() == "<postmaster>":
        return text[1:11], 12
    grammar = Grammar(text)
    try:
        parts = grammar.path()
    except No:
        return "no path"
    if parts is None:
        return "", grammar.at
    local, domain = parts
    if len(local) > 255 or len(domain) > 255:
        return "too long"
    return f"{local}@{domain}", grammar.at


def parsed(text: str) -> tuple[str, int] | str:
    try:
        return parse_path(text)
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


@st.composite
def nearly_valid(draw):
    text = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        gone = draw(st.sampled_from([0, 0, 1, 1, 3]))
        text = text[:at] + draw(st.just("") | characters | pieces) + text[at + gone :]
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
    st.lists(
        st.sampled_from(["0", "1", "f", ":", "::", ".", "255", "01", "%", "ffff"]), max_size=14
    )
)
@settings(deadline=None, max_examples=800)
def test_an_address_literal_is_what_the_system_takes_for_an_address(parts):
    inner = "".join(parts)
    for literal in (f"<a@[{inner}]>", f"<a@[IPv6:{inner}]>"):
        assert parsed(literal) == reference(literal)
