"""xtext (RFC 3461 section 4) against its grammar read octet by octet."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from preforkmx.protocol import xtext

UPPER_HEX = "0123456789ABCDEF"


def reference(text: str) -> bytes | None:
    octets = bytearray()
    at = 0
    while at < len(text):
        character = text[at]
        if character == "+":
            digits = text[at + 1 : at + 3]
            if len(digits) != 2 or any(digit not in UPPER_HEX for digit in digits):
                return None
            octets.append(int(digits, 16))
            at += 3
        elif "!" <= character <= "~" and character != "=":
            octets.append(ord(character))
            at += 1
        else:
            return None
    return bytes(octets)


near = st.lists(
    st.sampled_from(["+", "+2B", "+0D+0A", "+00", "+FF", "+a0", "+2", "=", " ", "a", "é", "１"])
).map("".join)


@given(st.binary(max_size=300))
def test_what_is_encoded_is_decoded_to_the_same_octets(octets):
    encoded = xtext.encode(octets)
    assert xtext.is_xtext(encoded)
    assert xtext.decode(encoded) == octets == reference(encoded)


@given(near | st.text(max_size=40))
@settings(max_examples=500)
@example("a\n")
@example("+2B\n")
@example("+١٢")
def test_xtext_is_decoded_as_the_grammar_says(text):
    assert xtext.decode(text) == reference(text)
    assert xtext.is_xtext(text) == (reference(text) is not None)


@given(st.lists(st.sampled_from(["+2B", "+", "2", "B"])).map("".join))
def test_xtext_is_decoded_once(text):
    decoded = xtext.decode(text)
    if decoded is not None:
        assert decoded == reference(text)
        assert decoded.count(b"+") == sum(1 for _ in text.split("+2B")) - 1
