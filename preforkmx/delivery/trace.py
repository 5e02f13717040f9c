"""The header lines that a delivery writes in front of a message: RFC 5321 section 4.4.

What a client said (its HELO name, the addresses of its envelope) is written only where the
grammar has room for it, and only when it fits that grammar: no client can end a header line,
open a second one or close a comment.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from preforkmx.protocol.paths import is_address_literal

if TYPE_CHECKING:
    from preforkmx.model import IPAddress, Peer

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = (
    *("Jan", "Feb", "Mar", "Apr", "May", "Jun"),
    *("Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
)

_DOMAIN = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*", re.ASCII)
#: What may not stand in a comment as itself: RFC 5322 section 3.2.2, ``ctext`` and a space.
_NO_COMMENT = re.compile(r"[^!-'*-\[\]-~ ]")
_NO_ATOM = re.compile(r"[^A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]", re.ASCII)
_MAX_NAME = 255


def trace(
    peer: Peer,
    sender: str,
    recipient: str | None,
    *,
    transaction: str,
    hostname: str,
    now: float,
    smtputf8: bool = False,
) -> bytes:
    """Return Return-Path, Delivered-To and Received, each with its CRLF.

    :param sender: the reverse path, ``""`` for the null one.
    :param recipient: the only recipient. None where there are several: neither Delivered-To
        nor ``for`` is written then, so that none of them learns of the others.
    :param transaction: the envelope's id.
    :param hostname: the name of this server.
    :param now: when the message came, in seconds since the epoch.
    :param smtputf8: the transaction uses SMTPUTF8.
    """
    lines = return_path(sender)
    if recipient is not None:
        lines += delivered_to(recipient)
    return lines + received(
        peer,
        recipient=recipient,
        transaction=transaction,
        hostname=hostname,
        now=now,
        smtputf8=smtputf8,
    )


def return_path(sender: str) -> bytes:
    """Return the Return-Path line: the reverse path of MAIL, as it came."""
    return _octets(f"Return-Path: <{_one_line(sender)}>\r\n")


def delivered_to(recipient: str) -> bytes:
    """Return the Delivered-To line: the forward path that the message was accepted for."""
    return _octets(f"Delivered-To: {_one_line(recipient)}\r\n")


def received(
    peer: Peer,
    *,
    recipient: str | None,
    transaction: str,
    hostname: str,
    now: float,
    smtputf8: bool = False,
) -> bytes:
    """Return the Received line, folded before each of its clauses.

    ``from`` has the name that the client gave and its address. A name that is neither a
    domain nor an address literal, or none, is replaced by the address, and stands in a
    comment with ``?`` for what a comment may not hold.
    """
    clauses = [_from_clause(peer)]
    if peer.tls is not None:
        version, cipher, bits = peer.tls
        clauses.append(f"(using {_comment(version)} with cipher {_comment(cipher)} ({bits} bits))")
    clauses.append(f"by {hostname} (preforkmx)")
    name = _NO_ATOM.sub("", peer.protocol) or "SMTP"
    if smtputf8:
        # RFC 6531 section 4.3: UTF8SMTP and UTF8LMTP, with the S and A of RFC 3848.
        name = f"UTF8{name.removeprefix('E')}"
    protocol = f"with {name}"
    identity = _NO_ATOM.sub("", transaction)
    clauses.append(f"{protocol} id {identity}" if identity else protocol)
    if recipient is not None:
        clauses.append(f"for <{_one_line(recipient)}>")
    return _octets("Received: " + "\r\n\t".join(clauses) + f";\r\n\t{date(now)}\r\n")


def date(now: float) -> str:
    """Return `now` (seconds since the epoch) as a date-time of RFC 5322 section 3.3, in UTC."""
    year, month, day, hour, minute, second, weekday = time.gmtime(now)[:7]
    return (
        f"{_DAYS[weekday]}, {day:02d} {_MONTHS[month - 1]} {year:04d}"
        f" {hour:02d}:{minute:02d}:{second:02d} +0000"
    )


def _from_clause(peer: Peer) -> str:
    name = peer.helo_name
    literal = _literal(peer.address)
    # RFC 5321 has a domain or a literal here; a comment may follow the clause.
    shown = name if is_domain(name) or is_address_literal(name) else literal or "unknown"
    information = f" ({literal})" if literal else " (unix socket)"
    comment = "" if shown == name or not name else f" (HELO {_comment(name)})"
    return f"from {shown}{information}{comment}"


def is_domain(name: str) -> bool:
    """Say whether `name` can stand as a Domain in a Received line; underscores are let pass."""
    return 0 < len(name) <= _MAX_NAME and _DOMAIN.fullmatch(name) is not None


def _literal(address: IPAddress | None) -> str:
    if address is None:
        return ""
    return f"[IPv6:{address}]" if address.version == 6 else f"[{address}]"


def _comment(text: str) -> str:
    return _NO_COMMENT.sub("?", text[:_MAX_NAME])


def _one_line(address: str) -> str:
    """Return an address without characters that end a line; the parser lets none through."""
    if address.isascii() and address.isprintable():
        return address
    return "".join(
        character if character >= " " and character not in "\x7f\x85\u2028\u2029" else "?"
        for character in address
    )


def _octets(line: str) -> bytes:
    return line.encode("utf-8", "replace")
