"""A primary that sentinels know."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from preforkmx.errors import StoreUnavailable
from preforkmx.state.redis.connection import printable
from preforkmx.state.redis.link import Link, Refused, Unreachable, ask_once
from preforkmx.state.redis.nodes import Askers
from preforkmx.state.redis.resolve import Resolvers
from preforkmx.state.redis.url import Address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from preforkmx.state.redis.link import Access

#: How often the sentinels are asked whether the primary is still the one that we know, in
#: seconds: while it answers, and while it does not.
WATCH_SECONDS: Final = 5.0
WATCH_AWAY_SECONDS: Final = 1.0


class SentinelNodes(Askers):
    """The primary of a service; everybody is asked on the same connection.

    The sentinels are asked before each attempt to connect, and in the background meanwhile:
    a primary that is cut off from them goes on answering, and one that stands still does not
    close its connections. Any of them may be dead; the one that answered last is asked first.

    :param sentinels: some or all of them.
    :param access: to the primary; `sentinel_access` to the sentinels.
    """

    def __init__(
        self,
        sentinels: Sequence[Address],
        service: str,
        access: Access,
        sentinel_access: Access,
        *,
        deadline: float,
    ) -> None:
        super().__init__(deadline)
        self._sentinels = list(sentinels)
        self._service = service
        self._sentinel_access = replace(sentinel_access, scripts=False, primary=False)
        self._resolvers = Resolvers()
        self._link = Link(
            self._locate, replace(access, primary=True), deadline, on_change=self._changed
        )
        self._watcher: asyncio.Task[None] | None = None
        self._look = asyncio.Event()

    @property
    def available(self) -> bool:
        """Whether the primary would be asked now."""
        return self._link.ready

    async def start(self) -> None:
        """Connect. Returns after the first attempt, at the latest after one deadline."""
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch())
            self._link.start()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._deadline):
                await self._link.attempted()

    async def close(self) -> None:
        """Close the connection."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
        await self._end_repeats()
        await self._link.close()
        self._resolvers.close()

    def names(self) -> tuple[str, ...]:
        """Return the primary's address, if it is known."""
        return (str(self._link),) if self._link.address is not None else ()

    def _link_of(self, _key: bytes) -> Link:
        return self._link

    def _link_named(self, node: str) -> Link:
        if node not in self.names():
            raise StoreUnavailable(f"{node} is not the primary")
        return self._link

    async def _locate(self) -> Address:
        reasons = []
        refused = False
        for sentinel in tuple(self._sentinels):
            try:
                address = await self._ask(sentinel)
            except Unreachable as exc:
                reasons.append(f"{sentinel}: {exc}")
                refused = refused or isinstance(exc, Refused)
                # Behind all the others, for the next time.
                self._sentinels.remove(sentinel)
                self._sentinels.append(sentinel)
            else:
                return address
        why = f"no sentinel knows {self._service} ({'; '.join(reasons)})"[:500]
        raise (Refused if refused else Unreachable)(why)

    async def _ask(self, sentinel: Address) -> Address:
        reply = await ask_once(
            sentinel,
            self._sentinel_access,
            self._deadline,
            *("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service),
            resolver=self._resolvers.of(sentinel.host),
        )
        if reply is None:
            raise Refused("it does not know the service")
        try:
            host, port = (part.decode("ascii") for part in reply)
            address = Address(host, int(port))
        except (TypeError, ValueError, AttributeError):
            raise Unreachable(f"it answered {printable(reply)}") from None
        if not host or not 0 < address.port < 1 << 16:
            raise Unreachable(f"it answered {printable(reply)}")
        return address

    async def _watch(self) -> None:
        while True:
            with suppress(TimeoutError):
                pause = WATCH_SECONDS if self._link.ready else WATCH_AWAY_SECONDS
                async with asyncio.timeout(pause):
                    await self._look.wait()
            self._look.clear()
            # Without a connection the link asks by itself.
            if self._link.connected:
                try:
                    address = await self._locate()
                except Unreachable:
                    continue
                except Exception as exc:
                    self._report(exc)
                    continue
                if address != self._link.address:
                    self._link.reconnect("the sentinels name another primary")

    def _changed(self, link: Link) -> None:
        if link.connected and not link.ready:
            self._look.set()
