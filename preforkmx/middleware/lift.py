"""Adapters that lift a plain check of one phase to a Middleware, as the seed has them.

A check returns None to let the client pass and raises
:class:`~preforkmx.errors.SMTPError` to refuse it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from preforkmx.middleware.base import Middleware

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from preforkmx.context import Context
    from preforkmx.model import Envelope, Peer

    PeerCheck = Callable[[Context, Peer], Awaitable[Any]]
    AddressCheck = Callable[[Context, Peer, str], Awaitable[Any]]
    DataCheck = Callable[[Context, Peer, Envelope], Awaitable[Any]]


def _name(check: object) -> str:
    return str(getattr(check, "__name__", None) or type(check).__name__)


def check_connection(check: PeerCheck) -> Middleware:
    """Run ``check(ctx, peer)`` when a client connects, before the greeting."""

    async def hook(ctx: Context, peer: Peer) -> None:
        await check(ctx, peer)

    return Middleware(check_connection=hook, name=_name(check))


def check_helo(check: PeerCheck) -> Middleware:
    """Run ``check(ctx, peer)`` at HELO and EHLO; ``peer.helo_name`` is the name of this one."""

    async def hook(ctx: Context, peer: Peer, _name: str) -> None:
        await check(ctx, peer)

    return Middleware(check_helo=hook, name=_name(check))


def check_sender(check: AddressCheck) -> Middleware:
    """Run ``check(ctx, peer, reverse_path)`` at MAIL."""

    async def hook(ctx: Context, peer: Peer, address: str) -> None:
        await check(ctx, peer, address)

    return Middleware(check_sender=hook, name=_name(check))


def check_recipient(check: AddressCheck) -> Middleware:
    """Run ``check(ctx, peer, forward_path)`` at each RCPT; ``ctx.sender`` is the reverse path."""

    async def hook(ctx: Context, peer: Peer, address: str) -> None:
        await check(ctx, peer, address)

    return Middleware(check_recipient=hook, name=_name(check))


def check_data(check: DataCheck) -> Middleware:
    """Run ``check(ctx, peer, envelope)`` when a message begins, before the delivery handler.

    A check that reads ``envelope.data`` must put a stream back for the handlers after it.
    """

    async def hook(ctx: Context, peer: Peer, envelope: Envelope) -> None:
        await check(ctx, peer, envelope)

    return Middleware(handler=hook, name=_name(check))
