"""The arguments of commands: what follows the verb, turned into an event or a refusal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from preforkmx.protocol import replies
from preforkmx.protocol.events import Hello, Mail, Rcpt, Verify
from preforkmx.protocol.parameters import NO_PARAMETERS, mail_parameters, rcpt_parameters
from preforkmx.protocol.paths import PathError, PathTooLong, is_printable, parse_path
from preforkmx.protocol.replies import Reply

if TYPE_CHECKING:
    from preforkmx.protocol.dsn import RecipientDSN
    from preforkmx.protocol.settings import Settings

MAX_HELLO_NAME = 255
"""Octets of the name in HELO and EHLO."""

# Behind the text: "VRFY SMTPUTF8" asks for somebody of that name.
_VRFY_PARAMETER = re.compile(r"(?<=[^ ]) +SMTPUTF8(=[^ ]*)? *\Z", re.IGNORECASE | re.ASCII)


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


def mail(argument: bytes, settings: Settings, *, tls: bool = False) -> Mail | Reply:
    """Parse what follows MAIL: ``FROM:<path>`` and its parameters.

    :param tls: TLS is active.
    """
    # Octets know no case but that of ASCII: U+017F is no S here, nor U+212A a K.
    if argument[:5].upper() != b"FROM:":
        return replies.MAIL_SYNTAX
    try:
        text = argument[5:].decode()
    except UnicodeDecodeError:
        return replies.NOT_UTF8
    utf8 = not argument.isascii()
    if utf8 and not settings.smtputf8:
        # RFC 6531 section 3.5.
        return replies.SENDER_NOT_ASCII
    if text[:1] == " ":
        text = text.lstrip(" ")
    try:
        path, end = parse_path(text, smtputf8=True) if utf8 else parse_path(text)
    except PathTooLong:
        return replies.SENDER_TOO_LONG
    except PathError:
        return replies.BAD_SENDER
    # <Postmaster> without a domain is a forward path only (RFC 5321 section 4.1.1.3).
    if path and "@" not in path:
        return replies.BAD_SENDER
    if len(text) == end:
        return replies.SENDER_NOT_ASCII if utf8 else Mail(path, NO_PARAMETERS)
    if text[end] != " ":
        return replies.BAD_SENDER
    parameters = mail_parameters(text[end:], settings, tls=tls)
    if isinstance(parameters, Reply):
        return parameters
    if utf8 and not parameters.smtputf8:
        return replies.SENDER_NOT_ASCII
    return Mail(path, parameters)


def rcpt(argument: bytes, settings: Settings, *, smtputf8: bool = False) -> Rcpt | Reply:
    """Parse what follows RCPT: ``TO:<path>`` and its parameters.

    :param smtputf8: this transaction's MAIL asked for SMTPUTF8 (RFC 6531 section 3.4).
    """
    if argument[:3].upper() != b"TO:":
        return replies.RCPT_SYNTAX
    try:
        text = argument[3:].decode()
    except UnicodeDecodeError:
        return replies.NOT_UTF8
    utf8 = not argument.isascii()
    if utf8 and not smtputf8:
        # RFC 6531 section 3.5.
        return replies.RECIPIENT_NOT_ASCII
    if text[:1] == " ":
        text = text.lstrip(" ")
    try:
        path, end = parse_path(text, smtputf8=True) if utf8 else parse_path(text)
    except PathTooLong:
        return replies.RECIPIENT_TOO_LONG
    except PathError:
        return replies.BAD_RECIPIENT
    if not path:
        return replies.BAD_RECIPIENT
    dsn: RecipientDSN | None = None
    if len(text) > end:
        if text[end] != " ":
            return replies.BAD_RECIPIENT
        parsed = rcpt_parameters(text[end:], settings, smtputf8=smtputf8)
        if isinstance(parsed, Reply):
            return parsed
        dsn = parsed
    if "@" not in path:
        # RFC 5321 section 2.3.5: <Postmaster> alone is this host's postmaster.
        path = f"{path}@{settings.hostname}"
    return Rcpt(path, dsn)


def vrfy(argument: bytes, settings: Settings) -> Verify | Reply:
    """Parse what follows VRFY: any printable text (RFC 5321 section 4.1.1.6).

    Where SMTPUTF8 is offered, the text may hold UTF-8, and its last word may be SMTPUTF8, which
    is about the reply and not about the text (RFC 6531 section 3.7.4.2).
    """
    if settings.smtputf8:
        try:
            text = argument.decode()
        except UnicodeDecodeError:
            return replies.NOT_UTF8
        match = _VRFY_PARAMETER.search(text)
        if match is not None:
            if match[1]:
                # The parameter takes no value.
                return replies.VRFY_SYNTAX
            text = text[: match.start()]
        if text and is_printable(text):
            return Verify(text, smtputf8=match is not None)
    elif argument.isascii():
        text = argument.decode("ascii")
        if text and text.isprintable():
            return Verify(text)
    elif not _is_utf8(argument):
        return replies.NOT_UTF8
    return replies.VRFY_SYNTAX


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
