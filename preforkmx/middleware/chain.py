"""The chain: the hooks of all middleware, sorted by phase once for all sessions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from preforkmx.middleware.base import (
        AuthenticateHook,
        BlockedHook,
        DisconnectHook,
        Handler,
        Lifespan,
        Middleware,
        NameHook,
        PeerHook,
        VerifyHook,
    )

_Hook = TypeVar("_Hook")


class Link(NamedTuple, Generic[_Hook]):
    """One hook and the name that the log gives it."""

    name: str
    hook: _Hook


Watch = Callable[[str, Link[Any]], Link[Any]]
"""``(phase, link)``: returns what takes the link's place."""


@dataclass(slots=True)
class Chain:
    """For each phase its hooks in the order of use; an empty tuple costs a session nothing."""

    blocked: tuple[Link[BlockedHook], ...] = ()
    check_connection: tuple[Link[PeerHook], ...] = ()
    check_helo: tuple[Link[NameHook], ...] = ()
    check_sender: tuple[Link[NameHook], ...] = ()
    check_recipient: tuple[Link[NameHook], ...] = ()
    check_auth: tuple[Link[PeerHook], ...] = ()
    authenticate: tuple[Link[AuthenticateHook], ...] = ()
    verify: tuple[Link[VerifyHook], ...] = ()
    handler: tuple[Link[Handler], ...] = ()
    reset: tuple[Link[PeerHook], ...] = ()
    disconnect: tuple[Link[DisconnectHook], ...] = ()
    lifespan: tuple[Link[Lifespan], ...] = ()


def compile_chain(middleware: Iterable[Middleware]) -> Chain:
    """Sort the hooks of `middleware` by phase, keeping their order."""
    used = list(middleware)
    phases: dict[str, Any] = {
        field.name: tuple(
            Link(_name(item, hook), hook)
            for item in used
            if (hook := getattr(item, field.name)) is not None
        )
        for field in fields(Chain)
    }
    return Chain(**phases)


def watched(chain: Chain, watch: Watch) -> Chain:
    """Return `chain` with what `watch` makes of each of its links."""
    return Chain(
        **{
            field.name: tuple(watch(field.name, link) for link in getattr(chain, field.name))
            for field in fields(Chain)
        }
    )


def _name(middleware: Middleware, hook: object) -> str:
    if middleware.name:
        return middleware.name
    return str(getattr(hook, "__qualname__", None) or type(hook).__qualname__)
