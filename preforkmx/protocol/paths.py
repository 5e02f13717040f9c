"""Reverse paths and forward paths: RFC 5321 sections 4.1.2 and 4.1.3, RFC 6531 section 3.3.

The grammar is a handful of regular expressions, each linear in the length of the line (the
framer bounds that). The stdlib ``email`` package has no part in it: its address parser is
quadratic, recursive, and made for headers.

Deviations, all wider than the grammar, each for senders that exist:

- local parts may have up to 255 octets instead of 64 (VERP and SRS addresses need it; section
  4.5.3.1 asks for as few limits as possible);
- labels of a domain may hold underscores;
- spaces between the colon and the path are skipped;
- a domain that is not ASCII may be any spelling that UTS #46 maps to a valid one (upper case
  above all), not its U-labels only.

One is narrower: of what is not ASCII, some characters are in no address (:data:`NON_ASCII`).
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from preforkmx.protocol.domains import LABEL, MAX_DOMAIN, to_ascii

MAX_LOCAL_PART = 255
"""Octets of a local part that are accepted, in UTF-8."""

NON_ASCII = "\\xa0-\\u2027\\u202f-\\u2065\\u206a-\\ud7ff\\ue000-\\U0010ffff"
"""The inside of a character class: what is not ASCII and may stand in an address.

RFC 6532 section 3.1 allows all of UTF-8. Left out are the C1 controls, the line and paragraph
separators U+2028 and U+2029 (each ends a line to somebody), and the characters that turn the
direction of the text around them (U+202A to U+202E, U+2066 to U+2069): addresses stand in logs
and in headers, and there the rest of the line is not theirs.
"""

_PRINTABLE = re.compile(f"[ -~{NON_ASCII}]*\\Z")


def _compile_path(more: str) -> re.Pattern[str]:
    """Compile the grammar of a path; `more` joins its atoms, its quoted text and its labels."""
    atext = rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~{more}-]"
    # Behind a backslash stands ASCII only (RFC 6531 section 3.3 leaves quoted-pairSMTP alone).
    local = rf'{atext}+(?:\.{atext}+)*|"(?:[ !#-\[\]-~{more}]|\\[ -~])*"'
    label = LABEL.replace("A-Z", f"{more}A-Z")
    domain = rf"{label}(?:\.{label})*"
    literal = r"\[[!-?A-Z^-~]{1,64}\]"
    # A-d-l: the source route of RFC 5321 appendix C, accepted and dropped.
    route = rf"@{domain}(?:,@{domain})*:"
    return re.compile(rf"<(?:({route})?(?:{local})@(?:{domain}|{literal}))?>")


_PATH = _compile_path("")
_UTF8_PATH = _compile_path(NON_ASCII)
_POSTMASTER = re.compile(r"<postmaster>", re.IGNORECASE | re.ASCII)


class PathError(ValueError):
    """The text is not a path."""


class PathTooLong(PathError):
    """The path's local part or domain is longer than its limit."""


def is_printable(text: str) -> bool:
    """Say whether all of `text` is printable ASCII, spaces too, or :data:`NON_ASCII`."""
    return _PRINTABLE.match(text) is not None


def parse_path(text: str, *, smtputf8: bool = False) -> tuple[str, int]:
    """Parse the path that `text` begins with.

    :param smtputf8: the path may hold UTF-8 (RFC 6531 section 3.3).
    :returns: the address without angle brackets and source route (``""`` for ``<>``,
        ``"postmaster"`` as the client wrote it for ``<Postmaster>``), as the client wrote it
        to the last code point; and the index behind the closing bracket.
    :raises PathError: when `text` does not begin with a path.
    """
    match = (_UTF8_PATH if smtputf8 else _PATH).match(text)
    if match is None:
        match = _POSTMASTER.match(text)
        if match is None:
            raise PathError(text)
        return text[1 : match.end() - 1], match.end()
    end = match.end()
    address = text[1 : end - 1]
    if match.lastindex is not None:
        address = address[match.end(1) - 1 :]
    if smtputf8 and not address.isascii():
        _check_utf8(address)
    elif len(address) > MAX_DOMAIN or address[-1:] == "]":
        local, domain = split_mailbox(address)
        if len(local) > MAX_LOCAL_PART or len(domain) > MAX_DOMAIN:
            raise PathTooLong(text)
        if domain[0] == "[" and not is_address_literal(domain):
            raise PathError(text)
    return address, end


def _check_utf8(address: str) -> None:
    local, domain = split_mailbox(address)
    if len(local.encode()) > MAX_LOCAL_PART or len(domain.encode()) > MAX_DOMAIN:
        raise PathTooLong(address)
    if domain[0] == "[":
        if not is_address_literal(domain):
            raise PathError(address)
        return
    try:
        to_ascii(domain)
    except ValueError as error:
        raise PathError(address) from error


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
