"""Received-SPF: what was found out, in front of the message (RFC 7208 section 9.1)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from preforkmx.middleware.spf_check import SPFResult

_DOT_ATOM: Final = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
)
_QUOTABLE: Final = re.compile(r'(["\\])')
#: What ends a line, or moves the text around it.
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
#: RFC 5322 section 3.2.2, ``ctext`` and a space.
_NO_COMMENT: Final = re.compile(r"[^!-'*-\[\]-~ ]")
#: Octets of a value; quoted it may have twice as many, and a line has 998.
_MAX_VALUE: Final = 400

_COMMENTS: Final = {
    "pass": "domain of {domain} designates {address} as permitted sender",
    "fail": "domain of {domain} does not designate {address} as permitted sender",
    "softfail": "domain of {domain} does not designate {address} as permitted sender",
    "neutral": "{address} is neither permitted nor denied by domain of {domain}",
    "none": "domain of {domain} does not designate permitted sender hosts",
    "temperror": "temporary error in processing during lookup of {domain}",
    "permerror": "permanent error in processing the record of {domain}",
}


def received_spf(found: SPFResult, receiver: str, *, utf8: bool = False) -> bytes:
    """Return the field with its CRLF, folded before each of its pairs.

    :param receiver: the name of this server.
    :param utf8: the header may hold UTF-8; else ``?`` stands for what is not ASCII.
    """
    comment = _COMMENTS[found.result].format(domain=found.domain, address=found.address)
    pairs = [("client-ip", str(found.address))]
    if found.identity == "mailfrom":
        pairs.append(("envelope-from", found.sender))
    pairs += [("helo", found.helo), ("receiver", receiver), ("identity", found.identity)]
    if found.result in {"pass", "fail", "softfail", "neutral"}:
        pairs.append(("mechanism", found.reason if found.matched else "default"))
    elif found.result == "permerror":
        pairs.append(("problem", found.reason))
    lines = [f"Received-SPF: {found.result} ({_comment(receiver)}: {_comment(comment)})"]
    lines += [f"{key}={_value(value, utf8=utf8)};" for key, value in pairs]
    return ("\r\n\t".join(lines).removesuffix(";") + "\r\n").encode()


def _value(text: str, *, utf8: bool) -> str:
    text = _UNPRINTABLE.sub("?", text)
    octets = text.encode("utf-8" if utf8 else "ascii", "replace")
    text = octets[:_MAX_VALUE].decode("utf-8", "ignore")
    if _DOT_ATOM.fullmatch(text):
        return text
    return '"' + _QUOTABLE.sub(r"\\\1", text) + '"'


def _comment(text: str) -> str:
    return _NO_COMMENT.sub("?", text)[:_MAX_VALUE]
