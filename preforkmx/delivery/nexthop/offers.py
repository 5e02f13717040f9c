"""What a server offers: the reply to EHLO or LHLO (RFC 5321 section 4.1.1.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.middleware.base import PROMISES

if TYPE_CHECKING:
    from preforkmx.delivery.nexthop.replies import Reply


class Offers:
    """The keywords of one server, each with its arguments, in upper case."""

    def __init__(self, keywords: dict[str, tuple[str, ...]] | None = None) -> None:
        self._keywords = keywords or {}

    @classmethod
    def of(cls, reply: Reply) -> Offers:
        """Read the reply to EHLO; its first line names the server. Of two alike the first counts.

        ``AUTH=PLAIN LOGIN``, the spelling of a draft, is AUTH.
        """
        keywords: dict[str, tuple[str, ...]] = {}
        for line in reply.lines[1:]:
            name, *arguments = line.upper().split() or [""]
            if name.startswith("AUTH="):
                name, arguments = "AUTH", [name[5:], *arguments]
            if name and name.isascii():
                keywords.setdefault(name, tuple(arguments))
        return cls(keywords)

    def __contains__(self, keyword: str) -> bool:
        return keyword in self._keywords

    def arguments(self, keyword: str) -> tuple[str, ...]:
        """Return what stands behind a keyword; nothing where it is not offered."""
        return self._keywords.get(keyword, ())

    @property
    def promises(self) -> frozenset[str]:
        """Those of :data:`~preforkmx.middleware.base.PROMISES` that the server can keep.

        BINARYMIME counts only with CHUNKING (RFC 3030 section 3).
        """
        kept = PROMISES.intersection(self._keywords)
        return kept if "CHUNKING" in self else kept - {"BINARYMIME"}
