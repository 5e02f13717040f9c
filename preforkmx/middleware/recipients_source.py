"""Who knows the recipients: what is asked, and what is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from preforkmx.middleware.addresses import Recipient


class Found(NamedTuple):
    """A recipient is there."""

    targets: tuple[str, ...] = ()
    """Who has its mail in its place; nobody: it has it itself."""
    extended: bool = False
    """It is there without its extension, and not with it."""


class Source(Protocol):
    """Somebody who knows recipients: a map, a set in Redis, a server behind this one.

    Where it has a ``lifespan`` (:data:`~preforkmx.middleware.base.Lifespan`), that is entered in
    each worker.
    """

    async def look_up(self, recipient: Recipient) -> Found | None:
        """Return what is known of `recipient`; None: it is not there.

        :raises SMTPError: 4xx when nobody can say now; the other sources are asked all the
            same. 5xx for a recipient that is there and takes no mail: that is the answer.
        """
        ...
