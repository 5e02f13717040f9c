"""What a client asks about delivery status notifications (RFC 3461): values, and their syntax."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from preforkmx.protocol import xtext
from preforkmx.protocol.paths import NON_ASCII, is_printable

MAX_ENVID = 100
"""Octets of ENVID, as encoded (RFC 3461 section 4.4)."""
MAX_ORCPT = 500
"""Octets of ORCPT, as encoded (RFC 3461 section 4.2)."""

_REASONS = frozenset(("SUCCESS", "FAILURE", "DELAY"))
_NEVER = frozenset(("NEVER",))
# addr-type is an atom of RFC 822.
_ADDRESS_TYPE = re.compile(r"[A-Za-z0-9!#$%&'*+/?^_`{|}~-]+\Z")
# HEXPOINT of RFC 6533 section 3, without the control characters that it allows: of ASCII what
# may not stand for itself, then the rest of Unicode, shortest form only. The surrogates are left
# to is_printable.
_HEX = "[0-9A-Fa-f]"
_POINT = rf"20|2[Bb]|3[Dd]|5[Cc]|[89A-Fa-f]{_HEX}|[1-9A-Fa-f]{_HEX}{{2,4}}|10{_HEX}{{4}}"
_EMBEDDED = re.compile(rf"\\x\{{({_POINT})\}}")
# QUCHAR: printable, without backslash, plus and equals sign.
_UTF8_ADDRESS = re.compile(rf"(?:[!-*,-<>-\[\]-~{NON_ASCII}]|\\x\{{(?:{_POINT})\}})+\Z")


class RecipientDSN(NamedTuple):
    """What RCPT asked for one recipient."""

    notify: frozenset[str] | None = None
    """NOTIFY: ``NEVER`` alone, or of ``SUCCESS``, ``FAILURE`` and ``DELAY``; None: not said."""
    original: tuple[str, str] | None = None
    """ORCPT: the address type (``"rfc822"``, ``"utf-8"``, in lower case) and the address,
    decoded; None: not said."""


@dataclass(slots=True)
class DSN:
    """What a transaction asked; nobody here writes notifications, a delivery may."""

    ret: str | None = None
    """RET: ``"FULL"`` or ``"HDRS"``; None: not said."""
    envid: str | None = None
    """ENVID, decoded; None: not said."""
    recipients: dict[str, RecipientDSN] = field(default_factory=dict)
    """By their forward path as it stands in ``envelope.recipients``: only those that asked."""


def parse_ret(value: str) -> str | None:
    """Parse RET (RFC 3461 section 4.3): ``FULL`` or ``HDRS``; None when it is neither."""
    ret = value.upper()
    # upper() makes ASCII of what is none: U+017F is an S to it.
    return ret if ret in ("FULL", "HDRS") and value.isascii() else None


def parse_envid(value: str) -> str | None:
    """Parse ENVID (RFC 3461 section 4.4) and decode it; None when its syntax is wrong."""
    return _decode(value) if len(value) <= MAX_ENVID else None


def parse_notify(value: str) -> frozenset[str] | None:
    """Parse NOTIFY (RFC 3461 section 4.1), in upper case; None when its syntax is wrong."""
    if not value.isascii():
        return None
    words = value.upper().split(",")
    notify = frozenset(words)
    if len(words) != len(notify):
        return None
    return notify if notify == _NEVER or notify <= _REASONS else None


def parse_orcpt(value: str, *, utf8: bool, smtputf8: bool) -> tuple[str, str] | None:
    """Parse ORCPT (RFC 3461 section 4.2); None when its syntax is wrong.

    :param utf8: the address type ``utf-8`` is known (RFC 6533 section 3). It is where SMTPUTF8
        is offered; elsewhere its addresses are xtext like those of any other type.
    :param smtputf8: the transaction is one of SMTPUTF8, so that an address of that type may
        hold UTF-8 as it is.
    :returns: the type in lower case, and the address, decoded: printable, never empty.
    """
    address_type, semicolon, encoded = value.partition(";")
    if not semicolon or _ADDRESS_TYPE.match(address_type) is None:
        return None
    if len(value.encode()) > MAX_ORCPT:
        return None
    address_type = address_type.lower()
    if address_type == "utf-8" and utf8:
        address = _decode_utf8(encoded) if smtputf8 or encoded.isascii() else None
    else:
        address = _decode(encoded)
    return None if address is None else (address_type, address)


def _decode(text: str) -> str | None:
    """Decode xtext that is not empty, and whose octets are printable ASCII.

    RFC 3461 sections 4.2 and 4.4 want both to be so: they stand in the header of a notification.
    """
    octets = xtext.decode(text)
    if not octets or not octets.isascii():
        return None
    decoded = octets.decode("ascii")
    return decoded if decoded.isprintable() else None


def _decode_utf8(text: str) -> str | None:
    """Decode utf-8-addr-xtext and utf-8-addr-unitext (RFC 6533 section 3)."""
    if _UTF8_ADDRESS.match(text) is None:
        return None
    decoded = _EMBEDDED.sub(lambda match: chr(int(match[1], 16)), text)
    return decoded if is_printable(decoded) else None
