"""A delivery that keeps nothing: for benchmarks and trials."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.middleware.base import PROMISES, Middleware

if TYPE_CHECKING:
    from preforkmx.context import Context
    from preforkmx.model import Envelope, Peer


def discard() -> Middleware:
    """Read each message to its end, forget it, and answer 250 for it.

    It keeps every promise for the message's way after this server: there is none.
    """
    return Middleware(handler=_discard, name="discard", extensions=PROMISES)


async def _discard(_ctx: Context, _peer: Peer, envelope: Envelope) -> None:
    async for _ in envelope.data:
        pass
