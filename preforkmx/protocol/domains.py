"""Domains as the DNS knows them: ASCII labels and A-labels (RFC 5890, RFC 5891, UTS #46)."""

from __future__ import annotations

import re

import idna

MAX_DOMAIN = 255
"""Octets of a domain, as written and in ASCII (RFC 5321 section 4.5.3.1.2)."""

LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
"""One ASCII label. Underscores are no part of RFC 5321's grammar, and stand in real names."""

_LABEL = re.compile(rf"{LABEL}\Z")
_DOMAIN = re.compile(rf"{LABEL}(?:\.{LABEL})*\Z")
# The full stops of UTS #46 section 4.
_DOT = re.compile("[.\u3002\uff0e\uff61]")
_LITERAL = re.compile(r"\[[!-Z^-~]{1,64}\]\Z")

# The library loads the mapping table with the first call: before the workers are forked, not in
# the middle of somebody's session.
idna.uts46_remap("ü")


def to_ascii(domain: str) -> str:
    """Return `domain` in ASCII and lower case: what to ask the DNS for, and what to compare.

    Labels that are not ASCII are mapped as UTS #46 says (non-transitional: ``ß`` stays ``ß``)
    and become A-labels if they are valid in IDNA2008. What is ASCII need not be: an ``xn--``
    that decodes to nothing is a name that nobody has. An address literal (RFC 5321 section
    4.1.3) is returned as it is.

    :param domain: without a dot at its end.
    :raises ValueError: when `domain` is no domain, or longer than 255 octets of UTF-8 or of
        ASCII.
    """
    if domain.isascii():
        if domain[:1] == "[":
            if _LITERAL.match(domain) is None:
                raise ValueError("not an address literal")
            return domain
        if len(domain) > MAX_DOMAIN or _DOMAIN.match(domain) is None:
            raise ValueError("not a domain")
        return domain.lower()
    # First of all: releases of the library needed a time that grew with the square of the length.
    if len(domain) > MAX_DOMAIN or len(domain.encode()) > MAX_DOMAIN:
        raise ValueError("a domain has at most 255 octets")
    result = ".".join(_label_to_ascii(label) for label in _DOT.split(domain))
    if len(result) > MAX_DOMAIN:
        raise ValueError("a domain has at most 255 octets")
    return result


def _label_to_ascii(label: str) -> str:
    if not label.isascii():
        return idna.alabel(idna.uts46_remap(label, std3_rules=False)).decode("ascii")
    if _LABEL.match(label) is None:
        raise ValueError("not a label")
    return label.lower()
