"""XCLIENT: a trusted proxy tells who its client is (Postfix's XCLIENT_README)."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import NamedTuple

from preforkmx.protocol.proxy import unmapped
from preforkmx.protocol.replies import XCLIENT_SYNTAX, Reply

ATTRIBUTES = ("NAME", "ADDR", "PORT", "PROTO", "HELO", "LOGIN", "DESTADDR", "DESTPORT")
"""Those that are understood, in the order in which EHLO lists them."""
MAX_VALUE = 255
"""Octets of a decoded value."""

_NOT_KNOWN = {b"[UNAVAILABLE]", b"[TEMPUNAVAIL]"}
_PROTOCOLS = {b"SMTP", b"ESMTP"}
# Wider than the xtext of RFC 3461, as Postfix and the seed are: hexadecimal digits in either
# case, and a "+" without two of them stands for itself. Proxies exist that write a user name
# like user+tag unencoded, and a refusal would lose the client's mail; nothing is at stake, as
# only a trusted proxy gets here and the value is checked after it was decoded.
_HEXCHAR = re.compile(rb"\+([0-9A-Fa-f]{2})")
_PORT = re.compile(rb"[0-9]{1,5}")


class XClient(NamedTuple):
    """What XCLIENT said.

    An attribute that is None was not given, or was given as not known: see :attr:`given`.
    """

    given: frozenset[str]
    """The names of :data:`ATTRIBUTES` that the command had, not-known ones among them. What
    is not given keeps its value."""
    name: str | None = None
    """NAME: the client's host name."""
    address: IPv4Address | IPv6Address | None = None
    """ADDR; an IPv4-mapped IPv6 address is IPv4."""
    port: int | None = None
    """PORT"""
    protocol: str | None = None
    """PROTO: ``"SMTP"`` or ``"ESMTP"``."""
    helo: str | None = None
    """HELO: the name that the client greeted with."""
    login: str | None = None
    """LOGIN: who authenticated to the proxy."""
    destination_address: IPv4Address | IPv6Address | None = None
    """DESTADDR: the address that the client connected to."""
    destination_port: int | None = None
    """DESTPORT: the port that the client connected to."""


def parse(argument: bytes) -> XClient | Reply:
    """Parse what follows XCLIENT: ``attribute=value``, one or more, with spaces between them.

    :returns: what it says, or the reply that refuses it.
    """
    values: dict[str, bytes | None] = {}
    # Not split(): it takes control characters for spaces.
    for item in filter(None, argument.split(b" ")):
        keyword, _, encoded = item.partition(b"=")
        # bytes.upper() knows ASCII only: U+017F and U+212A fold to nothing.
        name = keyword.upper().decode("latin-1")
        value = _HEXCHAR.sub(lambda match: bytes.fromhex(match[1].decode("ascii")), encoded)
        if name not in ATTRIBUTES or name in values or not 0 < len(value) <= MAX_VALUE:
            return XCLIENT_SYNTAX
        values[name] = None if value.upper() in _NOT_KNOWN else value
    if not values:
        return XCLIENT_SYNTAX
    try:
        return XClient(
            given=frozenset(values),
            name=_word(values.get("NAME")),
            address=_address(values.get("ADDR")),
            port=_port(values.get("PORT")),
            protocol=_protocol(values.get("PROTO")),
            helo=_word(values.get("HELO")),
            login=_text(values.get("LOGIN")),
            destination_address=_address(values.get("DESTADDR")),
            destination_port=_port(values.get("DESTPORT")),
        )
    except ValueError:
        return XCLIENT_SYNTAX


def _text(value: bytes | None) -> str | None:
    """Any printable text, in UTF-8: it stands in log lines."""
    if value is None:
        return None
    text = value.decode()
    if not text.isprintable():
        raise ValueError(text)
    return text


def _word(value: bytes | None) -> str | None:
    """A printable word in ASCII: what this server takes as the name in HELO."""
    text = _text(value)
    if text is not None and (" " in text or not text.isascii()):
        raise ValueError(text)
    return text


def _address(value: bytes | None) -> IPv4Address | IPv6Address | None:
    """An IPv4 address, or an IPv6 address with or without ``IPV6:`` in front."""
    if value is None:
        return None
    text = value.decode("ascii")
    if text[:5].upper() == "IPV6:":
        text = text[5:]
    elif ":" not in text:
        return IPv4Address(text)
    address = IPv6Address(text)
    if address.scope_id is not None:
        # A zone means something on one machine only, and may hold anything.
        raise AddressValueError(text)
    return unmapped(address)


def _port(value: bytes | None) -> int | None:
    if value is None:
        return None
    if _PORT.fullmatch(value) is None or (port := int(value)) > 65535:
        raise ValueError(value)
    return port


def _protocol(value: bytes | None) -> str | None:
    if value is None:
        return None
    if value.upper() not in _PROTOCOLS:
        raise ValueError(value)
    return value.upper().decode("ascii")
