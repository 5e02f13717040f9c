"""Whom a middleware asks about names: a resolver that it was given, or one of its own."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from preforkmx.dns import Resolver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_R = TypeVar("_R")


class LookUps(Generic[_R]):
    """The resolver of one middleware.

    One of its own belongs to one loop, and is made by the first who asks there. Let
    :meth:`lifespan` be the middleware's where :attr:`own`, and it is closed at the end.

    :param resolver: what is asked; None: a :class:`~preforkmx.dns.Resolver` with the system's
        name servers.
    """

    __slots__ = ("_loop", "_resolver", "own")

    def __init__(self, resolver: _R | None) -> None:
        self._resolver = resolver
        self._loop: asyncio.AbstractEventLoop | None = None
        self.own = resolver is None
        """None was given."""

    async def ready(self) -> _R:
        """Return whom to ask, in the running loop."""
        loop = asyncio.get_running_loop()
        if self.own and self._loop is not loop:
            made = Resolver()
            await made.start()
            # Whoever leaves the resolver out takes what this one can.
            self._resolver, self._loop = cast("_R", made), loop
        assert self._resolver is not None
        return self._resolver

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Have one of its own from now on, and close it at the end."""
        resolver = await self.ready()
        assert isinstance(resolver, Resolver)
        try:
            yield
        finally:
            self._loop = None
            await resolver.close()
