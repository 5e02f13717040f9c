"""The parameters behind the path of MAIL and RCPT (RFC 5321 section 4.1.2, Esmtp-param)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from preforkmx.protocol import replies, xtext
from preforkmx.protocol.dsn import (
    RecipientDSN,
    parse_envid,
    parse_notify,
    parse_orcpt,
    parse_ret,
)
from preforkmx.protocol.extensions import auth_offered
from preforkmx.protocol.paths import NON_ASCII, is_printable
from preforkmx.protocol.replies import Reply

if TYPE_CHECKING:
    from preforkmx.protocol.settings import Settings

_KEYWORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*\Z")
# esmtp-value: printable, without "=" and space.
_VALUE = re.compile(r"[!-<>-~]+\Z")
_UTF8_VALUE = re.compile(rf"[!-<>-~{NON_ASCII}]+\Z")
_DIGITS = re.compile(r"[0-9]{1,20}\Z")
_BODIES = ("7BIT", "8BITMIME")


@dataclass(slots=True)
class MailParameters:
    """What MAIL said behind its path."""

    size: int | None = None
    """SIZE (RFC 1870): the message's declared size in octets."""
    body: str = "7BIT"
    """BODY: ``7BIT``, ``8BITMIME`` (RFC 6152) or ``BINARYMIME`` (RFC 3030)."""
    auth: str | None = None
    """AUTH (RFC 4954 section 5), decoded: ``""`` for ``<>``; None: not said."""
    smtputf8: bool = False
    """SMTPUTF8 (RFC 6531)."""
    require_tls: bool = False
    """REQUIRETLS (RFC 8689)."""
    ret: str | None = None
    """RET (RFC 3461 section 4.3): ``FULL`` or ``HDRS``."""
    envid: str | None = None
    """ENVID (RFC 3461 section 4.4), decoded."""


NO_PARAMETERS = MailParameters()
"""Those of a MAIL without any: shared, and never changed."""


def _pairs(text: str, value_syntax: re.Pattern[str]) -> dict[str, str] | Reply:
    """Split `text` into keywords (upper case) and values (``""`` where there is none)."""
    pairs: dict[str, str] = {}
    # Not split(): it takes control characters for spaces.
    for item in filter(None, text.split(" ")):
        keyword, equals, value = item.partition("=")
        if _KEYWORD.match(keyword) is None or (equals and value_syntax.match(value) is None):
            return replies.BAD_PARAMETER
        keyword = keyword.upper()
        if keyword in pairs:
            return replies.BAD_PARAMETER
        pairs[keyword] = value
    return pairs


def mail_parameters(text: str, settings: Settings, *, tls: bool) -> MailParameters | Reply:
    """Parse what stands behind MAIL's path.

    A parameter of an extension that is not offered is 555 (RFC 5321 section 4.1.1.11).

    :param tls: TLS is active: some extensions are offered only then.
    :returns: the parameters, or the reply that refuses them.
    """
    pairs = _pairs(text, _VALUE)
    if isinstance(pairs, Reply):
        return pairs
    parameters = MailParameters()
    for keyword, value in pairs.items():
        if keyword == "SIZE":
            if _DIGITS.match(value) is None:
                return replies.BAD_PARAMETER
            parameters.size = int(value)
            if parameters.size > settings.message_size:
                # RFC 1870 section 6.1.
                return replies.TOO_LARGE
        elif keyword == "BODY":
            body = value.upper()
            # The keyword is known (RFC 6152 section 2), so that 555 is not the word for a value
            # that is not: BINARYMIME without its extension is 501 as any other.
            if body not in _BODIES and not (
                body == "BINARYMIME" and settings.chunking and settings.binarymime
            ):
                return replies.BAD_PARAMETER
            parameters.body = body
        elif keyword == "SMTPUTF8" and settings.smtputf8:
            # RFC 6531 section 3.4: it takes no value.
            if value:
                return replies.BAD_PARAMETER
            parameters.smtputf8 = True
        elif keyword == "RET" and settings.dsn:
            parameters.ret = parse_ret(value)
            if parameters.ret is None:
                return replies.BAD_PARAMETER
        elif keyword == "ENVID" and settings.dsn:
            parameters.envid = parse_envid(value)
            if parameters.envid is None:
                return replies.BAD_PARAMETER
        elif keyword == "REQUIRETLS" and settings.requiretls and tls:
            # RFC 8689 section 2: it takes no value.
            if value:
                return replies.BAD_PARAMETER
            parameters.require_tls = True
        elif keyword == "AUTH" and auth_offered(settings, tls=tls):
            parameters.auth = _parse_auth(value)
            if parameters.auth is None:
                return replies.BAD_PARAMETER
        else:
            return replies.UNKNOWN_PARAMETER
    if parameters.auth and not parameters.smtputf8 and not parameters.auth.isascii():
        return replies.BAD_PARAMETER
    return parameters


def rcpt_parameters(
    text: str, settings: Settings, *, smtputf8: bool
) -> RecipientDSN | Reply | None:
    """Parse what stands behind RCPT's path.

    :param smtputf8: the transaction is one of SMTPUTF8 (RFC 6531 section 3.3: values may hold
        UTF-8).
    :returns: what it asks about notifications; None: nothing; or the reply that refuses it.
    """
    pairs = _pairs(text, _UTF8_VALUE if smtputf8 else _VALUE)
    if isinstance(pairs, Reply):
        return pairs
    notify: frozenset[str] | None = None
    original: tuple[str, str] | None = None
    for keyword, value in pairs.items():
        if keyword == "NOTIFY" and settings.dsn:
            notify = parse_notify(value)
            if notify is None:
                return replies.BAD_PARAMETER
        elif keyword == "ORCPT" and settings.dsn:
            original = parse_orcpt(value, utf8=settings.smtputf8, smtputf8=smtputf8)
            if original is None:
                return replies.BAD_PARAMETER
        else:
            return replies.UNKNOWN_PARAMETER
    return RecipientDSN(notify, original) if pairs else None


def _parse_auth(value: str) -> str | None:
    """Decode AUTH (RFC 4954 section 5); None when its syntax is wrong.

    It is xtext of a mailbox, which some submission servers write without its domain: what is
    printable passes. Where the mailbox is not ASCII, the xtext is that of its UTF-8.
    """
    octets = xtext.decode(value)
    if not octets:
        return None
    try:
        mailbox = octets.decode()
    except UnicodeDecodeError:
        return None
    if mailbox == "<>":
        return ""
    return mailbox if is_printable(mailbox) else None
