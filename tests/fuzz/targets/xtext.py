"""xtext (RFC 3461 section 4): against its grammar read octet by octet, and back again."""

from __future__ import annotations

from preforkmx.protocol import dsn, xtext

TOKENS = (b"+2B", b"+", b"+0A", b"+0a", b"+C3+BC", b"=", b" ", b"\n", b"\\x{FC}", b"\xc3\xbc")
OUTCOMES = {"xtext", "not xtext"}
COUNT = 6000


def check(data: bytes) -> str:
    encoded = xtext.encode(data)
    assert xtext.is_xtext(encoded)
    assert xtext.decode(encoded) == reference(encoded) == data

    text = data.decode("utf-8", "surrogateescape")
    decoded = xtext.decode(text)
    assert decoded == reference(text)
    assert xtext.is_xtext(text) == (decoded is not None)
    _notifications(text, decoded)
    if decoded is None:
        return "not xtext"
    assert xtext.decode(xtext.encode(decoded)) == decoded
    return "xtext"


def reference(text: str) -> bytes | None:
    """Decode xtext octet by octet."""
    octets = bytearray()
    at = 0
    while at < len(text):
        character = text[at]
        if character == "+":
            digits = text[at + 1 : at + 3]
            if len(digits) != 2 or any(digit not in "0123456789ABCDEF" for digit in digits):
                return None
            octets.append(int(digits, 16))
            at += 3
        elif "!" <= character <= "~" and character != "=":
            octets.append(ord(character))
            at += 1
        else:
            return None
    return bytes(octets)


def _notifications(text: str, decoded: bytes | None) -> None:
    """What a notification would quote is printable, and no more than the client said."""
    good = bool(decoded) and all(32 <= octet < 127 for octet in decoded or b"")
    envid = dsn.parse_envid(text)
    assert (envid is not None) == (good and len(text) <= dsn.MAX_ENVID)
    if envid is not None:
        assert envid.encode() == decoded
    if not text.isascii() and not text.isprintable():
        # Half a character: the line was decoded before.
        return
    original = dsn.parse_orcpt(f"RFC822;{text}", utf8=True, smtputf8=True)
    assert (original is not None) == (good and len(text) + 7 <= dsn.MAX_ORCPT)
    if original is not None:
        assert original == ("rfc822", (decoded or b"").decode())
    for smtputf8 in (False, True):
        original = dsn.parse_orcpt(f"utf-8;{text}", utf8=True, smtputf8=smtputf8)
        if original is not None:
            assert original[1]
            assert not any(ord(character) < 32 or character == "\x7f" for character in original[1])
            assert smtputf8 or text.isascii()
