"""XCLIENT's argument: against a reading word by word, and what is written is read again."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address

from preforkmx.protocol.replies import XCLIENT_SYNTAX
from preforkmx.protocol.xclient import ATTRIBUTES, XClient, parse

TOKENS = (
    *(f" {name}=".encode() for name in ATTRIBUTES),
    b"[UNAVAILABLE]",
    b"[tempunavail]",
    b"IPV6:",
    b"::ffff:192.0.2.1",
    b"192.0.2.1",
    b"2001:db8::1",
    b"%eth0",
    b"ESMTP",
    b"65536",
    b"+20",
    b"+0A",
    b"+00",
    b"+",
    b"\xc3\xbc",
)
OUTCOMES = {"refused", "not known", "name", "address", "port", "protocol", "helo", "login"}
COUNT = 6000
MAX_VALUE = 255
_HEX = b"0123456789abcdefABCDEF"
_FIELDS = (
    "name",
    "address",
    "port",
    "protocol",
    "helo",
    "login",
    "destination_address",
    "destination_port",
)


def check(data: bytes) -> str:
    client = parse(data)
    words = reference(data)
    try:
        meant = {} if words is None else {name: meaning(name, words[name]) for name in words}
    except ValueError:
        words = None
    if words is None:
        assert client is XCLIENT_SYNTAX
        return "refused"
    assert isinstance(client, XClient)
    assert client.given == set(words)
    for attribute, field in zip(ATTRIBUTES, _FIELDS, strict=True):
        assert getattr(client, field) == meant.get(attribute)
    assert parse(written(client)) == client
    known = [field for field in _FIELDS if getattr(client, field) is not None]
    return known[len(data) % len(known)] if known else "not known"


def reference(data: bytes) -> dict[str, bytes] | None:
    """Return the attributes and their decoded values; None: they are no such list."""
    words: dict[str, bytes] = {}
    for item in data.split(b" "):
        if not item:
            continue
        keyword, equals, encoded = item.partition(b"=")
        name = keyword.decode("latin-1")
        name = "".join(chr(ord(c) - 32) if "a" <= c <= "z" else c for c in name)
        value = bytearray()
        at = 0
        while at < len(encoded):
            digits = encoded[at + 1 : at + 3]
            hexadecimal = len(digits) == 2 and all(digit in _HEX for digit in digits)
            if encoded[at : at + 1] == b"+" and hexadecimal:
                value.append(int(digits, 16))
                at += 3
            else:
                value.append(encoded[at])
                at += 1
        if not equals or name not in ATTRIBUTES or name in words or not 0 < len(value) <= MAX_VALUE:
            return None
        words[name] = bytes(value)
    return words or None


def written(client: XClient) -> bytes:
    """Write `client` as a proxy does, with every octet encoded."""
    items = []
    for attribute, field in zip(ATTRIBUTES, _FIELDS, strict=True):
        if attribute in client.given:
            value = getattr(client, field)
            text = "[UNAVAILABLE]" if value is None else str(value)
            items.append(f"{attribute}=" + "".join(f"+{octet:02x}" for octet in text.encode()))
    return " ".join(items).encode()


def meaning(attribute: str, octets: bytes) -> object:
    """Return what the value of `attribute` says; a ValueError where it says nothing good."""
    if octets.upper() in (b"[UNAVAILABLE]", b"[TEMPUNAVAIL]"):
        return None
    text = octets.decode()
    good = text.isprintable()
    if attribute in ("PORT", "DESTPORT"):
        good &= len(text) <= 5 and all("0" <= digit <= "9" for digit in text)
        if good and int(text) <= 65535:
            return int(text)
    elif attribute in ("ADDR", "DESTADDR"):
        return address(text) if good else _nothing(text)
    elif attribute == "PROTO":
        if octets.upper() in (b"SMTP", b"ESMTP"):
            return text.upper()
    elif good and (attribute == "LOGIN" or (text.isascii() and " " not in text)):
        return text
    return _nothing(text)


def address(text: str) -> IPv4Address | IPv6Address:
    """Return the address as the system reads it."""
    prefix, colon, inner = text.partition(":")
    try:
        if not colon:
            return IPv4Address(socket.inet_pton(socket.AF_INET, text))
        octets = socket.inet_pton(socket.AF_INET6, inner if prefix.upper() == "IPV6" else text)
    except OSError as error:
        raise ValueError(text) from error
    if octets[:12] == bytes(10) + b"\xff\xff":
        return IPv4Address(octets[12:])
    return IPv6Address(octets)


def _nothing(text: str) -> object:
    raise ValueError(text)
