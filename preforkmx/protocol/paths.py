"""Reverse paths and forward paths: RFC 5321 sections 4.1.2 and 4.1.3.

The grammar is a handful of regular expressions, each linear in the length of the line (the
framer bounds that). The stdlib ``email`` package has no part in it: its address parser is
quadratic, recursive, and made for headers.

Deviations, all wider than the grammar, each for senders that exist:

- local parts may have up to 255 octets instead of 64 (VERP and SRS addresses need it; section
  4.5.3.1 asks for as few limits as possible);
- labels of a domain may hold underscores;
- spaces between the colon and the path are skipped.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address

MAX_LOCAL_PART = 255
"""Octets of a local part that are accepted."""
MAX_DOMAIN = 255
"""Octets of a domain (RFC 5321 section 4.5.3.1.2)."""

_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_LOCAL = rf'{_ATEXT}+(?:\.{_ATEXT}+)*|"(?:[ !#-\[\]-~]|\\[ -~])*"'
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DOMAIN = rf"{_LABEL}(?:\.{_LABEL})*"
_LITERAL = r"\[[!-?A-Z^-~]{1,64}\]"
# A-d-l: the source route of RFC 5321 appendix C, accepted and dropped.
_ROUTE = rf"@{_DOMAIN}(?:,@{_DOMAIN})*:"

_PATH = re.compile(rf"<(?:({_ROUTE})?(?:{_LOCAL})@(?:{_DOMAIN}|{_LITERAL}))?>")
_POSTMASTER = re.compile(r"<postmaster>", re.IGNORECASE | re.ASCII)


class PathError(ValueError):
    """The text is not a path."""


class PathTooLong(PathError):
    """The path's local part or domain is longer than its limit."""


def parse_path(text: str) -> tuple[str, int]:
    """Parse the path that `text` begins with.

    :returns: the address without angle brackets and source route (``""`` for ``<>``,
        ``"postmaster"`` as the client wrote it for ``<Postmaster>``), its local part as the
        client wrote it; and the index behind the closing bracket.
    :raises PathError: when `text` does not begin with a path.
    """
    match = _PATH.match(text)
    if match is None:
        match = _POSTMASTER.match(text)
        if match is None:
            raise PathError(text)
        return text[1 : match.end() - 1], match.end()
    end = match.end()
    address = text[1 : end - 1]
    if match.lastindex is not None:
        address = address[match.end(1) - 1 :]
    if len(address) > MAX_DOMAIN or address[-1:] == "]":
        local, domain = split_mailbox(address)
        if len(local) > MAX_LOCAL_PART or len(domain) > MAX_DOMAIN:
            raise PathTooLong(text)
        if domain[0] == "[" and not is_address_literal(domain):
            raise PathError(text)
    return address, end


def is_address_literal(text: str) -> bool:
    """Say whether `text` is ``[192.0.2.1]`` or ``[IPv6:2001:db8::1]`` (RFC 5321 section 4.1.3)."""
    if not (text.startswith("[") and text.endswith("]")):
        return False
    inner = text[1:-1]
    try:
        if inner[:5].lower() == "ipv6:":
            # A zone ("%eth0") means something on one machine only, and may hold anything.
            return IPv6Address(inner[5:]).scope_id is None
        IPv4Address(inner)
    except (AddressValueError, ValueError):
        return False
    return True


def split_mailbox(address: str) -> tuple[str, str]:
    """Split a mailbox at its last ``@``: local part and domain, ``""`` where it has none."""
    local, at, domain = address.rpartition("@")
    return (local, domain) if at else (address, "")
