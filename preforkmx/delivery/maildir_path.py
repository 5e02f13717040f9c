"""From an address to its mailbox's directory, for any address.

The rules, also for operators in docs/reference/maildir.md:

- An address is split at its last ``@``; one without a domain (``postmaster``) belongs to the
  server's own host name.
- A quoted local part loses its quotes and backslashes: ``"joe"@example.com`` and
  ``joe@example.com`` are the same mailbox (RFC 5321 section 4.1.2).
- A label of the domain that is not ASCII (a U-label, in any case) becomes the A-label that the
  DNS has for it: both name the same domain (RFC 5890 section 2.3.2.1).
- ASCII capitals become small letters in both parts. Nothing else is folded: no Unicode
  normalisation can lead one address into another's mailbox.
- ``a``-``z``, ``0``-``9``, ``-``, ``_``, ``+``, ``=`` and a dot that is not the first
  character stand for themselves; every other octet of the UTF-8 is ``%`` and two capital
  hexadecimal digits.
- The empty part is ``%-``.
- A name of more than 255 octets is cut, and ends with ``%-`` and the SHA-256 of the whole.

Two addresses share a directory only if they are the same after unquoting, Punycode and folding: the
encoding can be undone, and a ``%`` that is followed by ``-`` is never part of it.
"""

from __future__ import annotations

import re
from hashlib import sha256

from preforkmx.protocol.domains import to_ascii

NAME_MAX = 255
"""The octets of a directory's name."""

_PLAIN = b"abcdefghijklmnopqrstuvwxyz0123456789-_+=."
_ENCODED = tuple(chr(octet) if octet in _PLAIN else f"%{octet:02X}" for octet in range(256))
_IS_PLAIN = re.compile(r"[a-z0-9_+=-][a-z0-9_+=.-]{0,254}", re.ASCII).fullmatch
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_MARK = "%-"
_KEPT = NAME_MAX - len(_MARK) - sha256().digest_size * 2


def mailbox_path(address: str, hostname: str) -> str:
    """Return the mailbox of `address` as ``domain/local``, relative to the Maildirs' path.

    Both are single, non-empty names that neither begin with a dot nor hold a slash or NUL.

    :param hostname: the domain of an address that has none.
    """
    local, at, domain = address.rpartition("@")
    if not at:
        local, domain = address, hostname
    return f"{directory_name(ascii_domain(domain))}/{directory_name(unquoted(local))}"


def ascii_domain(domain: str) -> str:
    """Return a domain with each U-label as its A-label: two spellings are one mailbox.

    What is no domain (no client can say it, a handler may) becomes a name that nobody
    registers, and so shares its mailbox with nobody.
    """
    if domain.isascii():
        return domain
    try:
        return to_ascii(domain)
    except ValueError:
        pass
    return ".".join(
        label if label.isascii() else "xn--" + label.encode("punycode").decode("ascii")
        for label in domain.split(".")
    )


def unquoted(local: str) -> str:
    """Return what a local part means: a quoted string without its quotes and backslashes."""
    if len(local) >= 2 and local[0] == local[-1] == '"':
        return _ESCAPED.sub(r"\1", local[1:-1])
    return local


def directory_name(text: str) -> str:
    """Return the name of a directory that stands for `text`, as the rules above say."""
    if _IS_PLAIN(text):
        return text
    octets = text.encode("utf-8", "surrogatepass").lower()
    name = "".join([_ENCODED[octet] for octet in octets])
    if name.startswith("."):
        name = "%2E" + name[1:]
    if not name:
        return _MARK
    if len(name) > NAME_MAX:
        kept = name[:_KEPT]
        # Not in the middle of %XX.
        start = kept.rfind("%", _KEPT - 2)
        if start >= 0:
            kept = kept[:start]
        return f"{kept}{_MARK}{sha256(octets).hexdigest()}"
    return name
