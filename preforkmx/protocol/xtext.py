"""xtext: printable ASCII, everything else as ``+`` and two digits (RFC 3461 section 4)."""

from __future__ import annotations

import re

_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*\Z")
_HEXCHAR = re.compile(rb"\+([0-9A-F]{2})")


def is_xtext(text: str) -> bool:
    """Say whether `text` is xtext; the empty text is."""
    return _XTEXT.match(text) is not None


def decode(text: str) -> bytes | None:
    """Decode xtext; None when `text` is not xtext."""
    if not is_xtext(text):
        return None
    octets = text.encode("ascii")
    if b"+" not in octets:
        return octets
    return _HEXCHAR.sub(lambda match: bytes.fromhex(match[1].decode("ascii")), octets)


def encode(octets: bytes) -> str:
    """Encode `octets` as xtext."""
    return "".join(
        chr(octet) if 33 <= octet <= 126 and octet not in b"+=" else f"+{octet:02X}"
        for octet in octets
    )
