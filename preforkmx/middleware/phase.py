"""Checks of the peer alone that a site may put at one of several phases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from preforkmx.middleware.base import Middleware

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from preforkmx.context import Context
    from preforkmx.model import Peer

At = Literal["mail", "rcpt", "data"]
"""At MAIL, at each RCPT, or in reply to the whole message."""


def at_phase(at: At, check: Callable[[Context, Peer], Awaitable[None]], *, name: str) -> Middleware:
    """Run ``check(ctx, peer)`` at the phase `at`.

    :param name: what the log calls the middleware.
    :raises ValueError: for another `at`.
    """

    async def hook(ctx: Context, peer: Peer, _subject: object) -> None:
        await check(ctx, peer)

    if at == "mail":
        return Middleware(check_sender=hook, name=name)
    if at == "rcpt":
        return Middleware(check_recipient=hook, name=name)
    if at == "data":
        return Middleware(handler=hook, name=name)
    raise ValueError(f'{name} is at "mail", "rcpt" or "data", not {at!r}')
