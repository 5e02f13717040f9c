"""The parameters behind the path of MAIL and RCPT (RFC 5321 section 4.1.2, Esmtp-param)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from preforkmx.protocol import replies
from preforkmx.protocol.replies import Reply

_KEYWORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*\Z")
# esmtp-value: printable, without "=" and space.
_VALUE = re.compile(r"[!-<>-~]+\Z")
_DIGITS = re.compile(r"[0-9]{1,20}\Z")
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})+\Z")


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


def _pairs(text: str) -> dict[str, str] | Reply:
    """Split `text` into keywords (upper case) and values (``""`` where there is none)."""
    pairs: dict[str, str] = {}
    # Not split(): it takes control characters for spaces.
    for item in filter(None, text.split(" ")):
        keyword, equals, value = item.partition("=")
        if _KEYWORD.match(keyword) is None or (equals and _VALUE.match(value) is None):
            return replies.BAD_PARAMETER
        keyword = keyword.upper()
        if keyword in pairs:
            return replies.BAD_PARAMETER
        pairs[keyword] = value
    return pairs


def mail_parameters(text: str, *, max_size: int, auth: bool) -> MailParameters | Reply:
    """Parse what stands behind MAIL's path.

    :param max_size: the server's limit in octets; a larger SIZE is 552 (RFC 1870 section 6.1).
    :param auth: whether AUTH is offered, so that its parameter is known (RFC 4954 section 5).
    :returns: the parameters, or the reply that refuses them.
    """
    pairs = _pairs(text)
    if isinstance(pairs, Reply):
        return pairs
    parameters = MailParameters()
    for keyword, value in pairs.items():
        if keyword == "SIZE":
            if _DIGITS.match(value) is None:
                return replies.BAD_PARAMETER
            parameters.size = int(value)
            if parameters.size > max_size:
                return replies.TOO_LARGE
        elif keyword == "BODY":
            body = value.upper()
            if body not in ("7BIT", "8BITMIME"):
                return replies.BAD_PARAMETER
            parameters.body = body
        elif keyword == "AUTH" and auth:
            # An MX trusts nobody to vouch for a submitter, which RFC 4954 section 5 answers
            # with AUTH=<>: the syntax is checked, the value goes no further.
            if value != "<>" and _XTEXT.match(value) is None:
                return replies.BAD_PARAMETER
        else:
            return replies.UNKNOWN_PARAMETER
    return parameters


def rcpt_parameters(text: str) -> Reply | None:
    """Parse what stands behind RCPT's path; None, or the reply that refuses it."""
    pairs = _pairs(text)
    if isinstance(pairs, Reply):
        return pairs
    return replies.UNKNOWN_PARAMETER if pairs else None
