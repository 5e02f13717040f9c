"""What the answers of a list in the DNS mean: addresses in 127.0.0.0/8 (RFC 5782 section 2.1)."""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_FIRST: Final = int(IPv4Address("127.0.0.0"))
_LAST: Final = int(IPv4Address("127.255.255.255"))
_FIRST_ERROR: Final = int(IPv4Address("127.255.255.0"))

#: What counts where nothing else is said. Some lists say 127.0.0.1 to whom they refuse to serve,
#: and RFC 5782 section 2.1 has the codes begin with 127.0.0.2.
DEFAULT_CODES: Final = ("127.0.0.2-127.255.254.255",)


def is_code(address: IPv4Address) -> bool:
    """Say whether `address` is an answer of a list at all.

    What is outside of 127.0.0.0/8 comes from somebody else: from who bought the domain of a list
    that is gone, or from a resolver that leads names that do not exist to advertisements.
    """
    return _FIRST <= int(address) <= _LAST


def is_error(address: IPv4Address) -> bool:
    """Say whether a list tells with `address` that it did not look: 127.255.255.0/24.

    Above all those who ask through a public resolver, or ask too much, get such an answer.
    """
    return _FIRST_ERROR <= int(address) <= _LAST


class Codes:
    """A set of codes: single ones and ranges, ``"127.0.0.2"`` and ``"127.0.0.4-127.0.0.7"``.

    :raises ValueError: one of `texts` is neither, or there is none; the text is for the operator.
    """

    __slots__ = ("_ranges",)

    def __init__(self, texts: Iterable[str] = DEFAULT_CODES) -> None:
        self._ranges = tuple(parse_codes(text) for text in texts)
        if not self._ranges:
            raise ValueError("a list without codes lists nobody")

    def __contains__(self, address: IPv4Address) -> bool:
        number = int(address)
        return any(first <= number <= last for first, last in self._ranges)


def parse_codes(text: str) -> tuple[int, int]:
    """Return the first and the last code of ``"127.0.0.4-127.0.0.7"`` or ``"127.0.0.2"``.

    :raises ValueError: it is neither; the text is for the operator.
    """
    first, dash, last = text.partition("-")
    try:
        codes = IPv4Address(first.strip()), IPv4Address((last if dash else first).strip())
    except AddressValueError:
        raise ValueError(f"{text!r} is no code such as 127.0.0.2 or 127.0.0.4-127.0.0.7") from None
    if not all(map(is_code, codes)):
        raise ValueError(f"{text!r} is not in 127.0.0.0/8, as the answers of lists are")
    if codes[1] < codes[0]:
        raise ValueError(f"{text!r} ends before it begins")
    return int(codes[0]), int(codes[1])
