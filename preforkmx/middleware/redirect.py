"""Redirection: the delivery has others than those whom the client named.

Whoever checks the recipients calls :meth:`Envelope.redirect
<preforkmx.model.Envelope.redirect>`. Everybody else sees the forward paths as the client gave
them; the delivery alone has an envelope with the targets in their place.
"""

from __future__ import annotations

import re
from copy import copy
from dataclasses import fields, replace
from typing import TYPE_CHECKING, TypeVar

from preforkmx.errors import SMTPError
from preforkmx.middleware.addresses import comparable
from preforkmx.middleware.base import Middleware
from preforkmx.model import DSN

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from preforkmx.context import Context
    from preforkmx.middleware.base import Handler, NameHook
    from preforkmx.model import Envelope, Peer

_Hook = TypeVar("_Hook")


def redirected(delivery: Middleware) -> Middleware:
    """Return `delivery` as one that has the targets of recipients that were redirected.

    At RCPT it is asked for each target, and one that it refuses refuses the recipient. Its
    handler gets an envelope in which every target stands once, however many recipients lead to
    it. What it rejects for a target is rejected for each recipient that leads there: with 4xx
    where any of them is. Where a refusal names the target it names the recipient instead.
    """
    handler, check = delivery.handler, delivery.check_recipient
    hooks = {field.name: getattr(delivery, field.name) for field in fields(Middleware)}
    hooks["handler"] = None if handler is None else _handler(handler)
    hooks["check_recipient"] = None if check is None else _check(check)
    # A plain one: a subclass may be made in another way.
    return Middleware(**hooks)


def _check(check: NameHook) -> NameHook:
    def hook(ctx: Context, peer: Peer, address: str) -> Awaitable[Context | None]:
        envelope = ctx.envelope
        targets = None if envelope is None else envelope.targets.get(address)
        if not targets:
            return check(ctx, peer, address)
        return _check_all(check, ctx, peer, address, targets)

    return _named_as(check, hook)


async def _check_all(
    check: NameHook, ctx: Context, peer: Peer, address: str, targets: tuple[str, ...]
) -> Context | None:
    last = None
    for target in targets:
        try:
            last = await check(last or ctx, peer, target) or last
        except SMTPError as error:
            raise _about(address, target, error) from error
    return last


def _handler(handler: Handler) -> Handler:
    def hook(ctx: Context, peer: Peer, envelope: Envelope) -> Awaitable[Context | None]:
        if not envelope.targets:
            return handler(ctx, peer, envelope)
        return _deliver(handler, ctx, peer, envelope)

    return _named_as(handler, hook)


async def _deliver(
    handler: Handler, ctx: Context, peer: Peer, envelope: Envelope
) -> Context | None:
    # By their comparable address: each target, and the recipients that lead to it.
    names: dict[str, str] = {}
    leading: dict[str, list[int]] = {}
    for index, recipient in enumerate(envelope.recipients):
        for target in envelope.targets.get(recipient) or (recipient,):
            key = comparable(target)
            names.setdefault(key, target)
            leading.setdefault(key, []).append(index)
    targets, places = list(names.values()), list(leading.values())
    inner = replace(
        envelope,
        recipients=list(targets),
        dsn=_dsn(envelope, targets, places),
        rejections={},
        targets={},
    )
    try:
        return await handler(ctx, peer, inner)
    except SMTPError as error:
        about = error
        for target, place in zip(targets, places, strict=True):
            about = _about(envelope.recipients[place[0]], target, about)
        if about is error:
            raise
        raise about from error
    finally:
        for number, rejection in inner.rejections.items():
            for index in places[number] if number < len(places) else ():
                before = envelope.rejections.get(index)
                # A 4xx among them brings the message again: nobody loses his copy.
                if before is None or (before.code >= 500 and rejection.code < 500):
                    renamed = _about(envelope.recipients[index], targets[number], rejection)
                    envelope.reject_recipient(index, renamed)


def _about(recipient: str, target: str, error: SMTPError) -> SMTPError:
    """Return `error` with the name that the client knows: who is behind it is not for everybody."""
    if target.lower() not in error.message.lower():
        return error
    renamed = copy(error)
    renamed.message = re.sub(
        re.escape(target), lambda _: recipient, error.message, flags=re.IGNORECASE
    )
    return renamed


def _dsn(envelope: Envelope, names: list[str], leading: list[list[int]]) -> DSN | None:
    """Return what was asked about notifications, by target: that of the first who asked."""
    dsn = envelope.dsn
    if dsn is None or not dsn.recipients:
        return dsn
    asked = {}
    for name, indices in zip(names, leading, strict=True):
        for index in indices:
            wish = dsn.recipients.get(envelope.recipients[index])
            if wish is not None:
                asked[name] = wish
                break
    return DSN(dsn.ret, dsn.envid, asked)


def _named_as(inner: object, hook: _Hook) -> _Hook:
    """Return `hook` with the name that the log gives to `inner`."""
    name = getattr(inner, "__qualname__", None) or type(inner).__qualname__
    hook.__qualname__ = name  # type: ignore[attr-defined]
    return hook
