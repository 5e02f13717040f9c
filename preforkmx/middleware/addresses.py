"""Addresses as checks compare them: case, quotes and IDNA do not make two of one."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import NamedTuple

from preforkmx.protocol.domains import to_ascii
from preforkmx.protocol.paths import split_mailbox

_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_QUOTABLE = re.compile(r'(["\\])')
#: Dot-string of RFC 5321 section 4.1.2, with RFC 6531's characters that are not ASCII.
_DOT_STRING = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\U0010ffff-]+"
    r"(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\U0010ffff-]+)*"
)


def comparable_domain(domain: str) -> str:
    """Return a form that two spellings of one domain or address literal have in common."""
    lower = domain.lower()
    if not lower.startswith("["):
        if domain.isascii():
            return lower
        try:
            return to_ascii(domain)
        except ValueError:
            return lower
    inner = lower.strip("[]").removeprefix("ipv6:")
    try:
        return f"[{ip_address(inner)}]"
    except ValueError:
        return lower


def comparable(address: str) -> str:
    """Return a form that two spellings of one address have in common.

    The local part has no quotes (RFC 5321 section 4.1.2) and ASCII capitals as small letters,
    which is how Maildirs are named too: nothing else is folded, so that no Unicode
    normalisation leads one address into another's mailbox. The domain is in A-labels.
    """
    local, domain = split_mailbox(address)
    local = lower_case(unquoted(local))
    return f"{local}@{comparable_domain(domain)}" if domain else local


def lower_case(text: str) -> str:
    """Return `text` with its ASCII capitals as small letters."""
    if text.isascii():
        return text.lower()
    return text.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")


def unquoted(local: str) -> str:
    """Return what a local part means: a quoted string without its quotes and backslashes."""
    if len(local) >= 2 and local[0] == local[-1] == '"':
        return _ESCAPED.sub(r"\1", local[1:-1])
    return local


def quoted(local: str) -> str:
    """Return a local part as it is written: with quotes where it needs them."""
    if _DOT_STRING.fullmatch(local):
        return local
    return '"' + _QUOTABLE.sub(r"\\\1", local) + '"'


class Recipient(NamedTuple):
    """A forward path, as those who know the recipients are asked for it."""

    address: str
    """As the client gave it."""
    name: str
    """:func:`comparable`."""
    base: str
    """`name` without its extension; the same where it has none."""
    plain: str
    """`address` without its extension, as it is written."""
    domain: str
    """Its :func:`comparable_domain`."""

    @classmethod
    def of(cls, address: str, separator: str) -> Recipient:
        """Take `address` apart.

        :param separator: what an extension begins with (RFC 5233): the first one behind the
            local part's first character counts. ``""``: there are none.
        """
        local, domain = split_mailbox(address)
        meant = unquoted(local)
        at = meant.find(separator, 1) if separator else -1
        end = comparable_domain(domain)
        name = f"{lower_case(meant)}@{end}"
        if at < 0:
            return cls(address, name, name, address, end)
        meant = meant[:at]
        return cls(address, name, f"{lower_case(meant)}@{end}", f"{quoted(meant)}@{domain}", end)
