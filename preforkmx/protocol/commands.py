"""The arguments of commands: what follows the verb, turned into an event or a refusal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.protocol import replies
from preforkmx.protocol.events import Hello, Mail, Rcpt, Verify
from preforkmx.protocol.parameters import NO_PARAMETERS, mail_parameters, rcpt_parameters
from preforkmx.protocol.paths import PathError, PathTooLong, parse_path
from preforkmx.protocol.replies import Reply

if TYPE_CHECKING:
    from preforkmx.protocol.settings import Settings

MAX_HELLO_NAME = 255
"""Octets of the name in HELO and EHLO."""


def hello(argument: bytes, *, extended: bool) -> Hello | Reply:
    """Parse what follows HELO or EHLO.

    RFC 5321 section 4.1.4 forbids refusing a client for a name that does not match its
    address, and names that break the grammar (underscores above all) are common: any
    printable word passes here; check_helo hooks may be stricter.
    """
    if not argument or len(argument) > MAX_HELLO_NAME or not argument.isascii():
        return replies.HELLO_SYNTAX
    name = argument.decode("ascii")
    if not name.isprintable() or " " in name:
        return replies.HELLO_SYNTAX
    return Hello(name, extended)


def mail(argument: bytes, settings: Settings) -> Mail | Reply:
    """Parse what follows MAIL: ``FROM:<path>`` and its parameters."""
    if argument[:5].upper() != b"FROM:":
        return replies.MAIL_SYNTAX
    if not argument.isascii():
        return replies.SENDER_NOT_ASCII if _is_utf8(argument) else replies.BAD_SENDER
    text = argument[5:].decode("ascii")
    if text[:1] == " ":
        text = text.lstrip(" ")
    try:
        path, end = parse_path(text)
    except PathTooLong:
        return replies.SENDER_TOO_LONG
    except PathError:
        return replies.BAD_SENDER
    # <Postmaster> without a domain is a forward path only (RFC 5321 section 4.1.1.3).
    if path and "@" not in path:
        return replies.BAD_SENDER
    if len(text) == end:
        return Mail(path, NO_PARAMETERS)
    if text[end] != " ":
        return replies.BAD_SENDER
    parameters = mail_parameters(text[end:], max_size=settings.message_size, auth=settings.auth)
    return parameters if type(parameters) is Reply else Mail(path, parameters)  # type: ignore[arg-type]


def rcpt(argument: bytes, settings: Settings) -> Rcpt | Reply:
    """Parse what follows RCPT: ``TO:<path>`` and its parameters."""
    if argument[:3].upper() != b"TO:":
        return replies.RCPT_SYNTAX
    if not argument.isascii():
        return replies.RECIPIENT_NOT_ASCII if _is_utf8(argument) else replies.BAD_RECIPIENT
    text = argument[3:].decode("ascii")
    if text[:1] == " ":
        text = text.lstrip(" ")
    try:
        path, end = parse_path(text)
    except PathTooLong:
        return replies.RECIPIENT_TOO_LONG
    except PathError:
        return replies.BAD_RECIPIENT
    if not path:
        return replies.BAD_RECIPIENT
    if len(text) > end:
        refusal = replies.BAD_RECIPIENT if text[end] != " " else rcpt_parameters(text[end:])
        if refusal is not None:
            return refusal
    if "@" not in path:
        # RFC 5321 section 2.3.5: <Postmaster> alone is this host's postmaster.
        path = f"{path}@{settings.hostname}"
    return Rcpt(path)


def vrfy(argument: bytes) -> Verify | Reply:
    """Parse what follows VRFY: any printable text (RFC 5321 section 4.1.1.6)."""
    if not argument or not argument.isascii():
        return replies.VRFY_SYNTAX
    text = argument.decode("ascii")
    return Verify(text) if text.isprintable() else replies.VRFY_SYNTAX


def redact(line: bytes, *, known: bool) -> bytes:
    """Hide what may be credentials, in any spelling: AUTH<TAB>PLAIN<TAB>… too.

    :param known: the line begins with a command. What does not may be the response to a 334
        that was never sent: a client that did not wait went on with its password.
    """
    if line.lstrip()[:4].upper() == b"AUTH":
        return b"AUTH <credentials>"
    return line if known else f"<{len(line)} octets, not a command>".encode()


def _is_utf8(argument: bytes) -> bool:
    try:
        argument.decode()
    except UnicodeDecodeError:
        return False
    return True
