"""A link: one connection to a server, and the waits for it."""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING, cast

from preforkmx.delivery.nexthop.errors import LinkLost, NextHopError, Nonsense, NoReply

if TYPE_CHECKING:
    from collections.abc import Callable

    from preforkmx.delivery.nexthop.client import Client
    from preforkmx.delivery.nexthop.replies import Reply
    from preforkmx.delivery.nexthop.servers import Server

HIGH_WATER = 65536
"""Octets that may wait for the server to take them."""
CLOSE_SECONDS = 5.0
"""How long a server has to close after QUIT."""


class Link(asyncio.Protocol):
    """Moves the octets of a :class:`~preforkmx.delivery.nexthop.client.Client`.

    One task uses it at a time. After an error of any method it is closed.

    :ivar transactions: how many it has carried.
    :ivar about: whom the server was told of with XCLIENT or PROXY; None: nobody.
    :ivar idle_since: when its last transaction ended, on the loop's clock.
    """

    def __init__(self, client: Client, server: Server) -> None:
        self.client = client
        self.server = server
        self.transport: asyncio.Transport | None = None
        self.lost = False
        self.verified = False
        self.transactions = 0
        self.about: object = None
        self.idle_since = 0.0
        self.when_lost: Callable[[Link], None] | None = None
        self._loop = asyncio.get_running_loop()
        self._error: NextHopError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._writing_paused = False
        # One timer for all waits: it is set anew only where the next one would end earlier.
        self._deadline = inf
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = inf
        self._expired = False
        self._leaving = False
        self._flushes = False

    # --- what the transport calls ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        try:
            self.client.receive_data(data)
        except Nonsense as error:
            self._error = error
            self.abort()
        self._wake()

    def eof_received(self) -> bool:
        self.client.receive_eof()
        self._wake()
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        self.lost = True
        self.client.receive_eof()
        self._wake()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.when_lost is not None:
            self.when_lost(self)

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._wake()

    # --- what a transaction calls ---------------------------------------------------------------

    def flush(self) -> None:
        """Hand what the client says to the transport."""
        output = self.client.take_output()
        if output and not self.lost:
            assert self.transport is not None
            self.transport.write(output)

    def flush_soon(self) -> None:
        """Hand it over when the others have had their turn, together with what is said until then.

        A write costs more than anything else here: a small message leaves with its end in one.
        """
        if not self._flushes:
            self._flushes = True
            self._loop.call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flushes = False
        self.flush()

    async def reply(self, seconds: float) -> Reply:
        """Send what is to be said, and wait for the next reply.

        :raises NextHopError: there is none.
        """
        self.flush_soon()
        reply = self._next_reply()
        if reply is None:
            until = self._loop.time() + seconds
            while reply is None:
                await self._wait(until, "no reply in time")
                reply = self._next_reply()
        return reply

    async def drain(self, seconds: float) -> None:
        """Send what is to be said, and wait until the server has taken enough of it.

        :raises NextHopError: it did not, or is gone.
        """
        if self.client.unsent < HIGH_WATER and not (self.lost or self._writing_paused):
            self.flush_soon()
            return
        self.flush()
        until = 0.0
        while self._writing_paused and not self.lost:
            until = until or self._loop.time() + seconds
            await self._wait(until, "the server takes no octets")
        if self.lost:
            raise self._error or LinkLost("the server closed the connection")

    def _next_reply(self) -> Reply | None:
        if self._error is not None:
            raise self._error
        try:
            return self.client.next_reply()
        except NextHopError as error:
            self._error = error
            self.abort()
            raise

    def close(self, *, linger: bool) -> None:
        """Say QUIT where that is possible, and close.

        :param linger: leave the close to the server, for a while: what is sent to a closed
            socket resets the connection, and servers write that into their logs.
        """
        transport = self.transport
        if self.lost or transport is None:
            return
        if self.client.reusable and not self._writing_paused:
            self.client.quit()
            self.flush()
            if linger:
                self._leaving = True
                self._ring_at(self._loop.time() + CLOSE_SECONDS)
                return
        transport.abort()

    def abort(self) -> None:
        """Close at once: what is under way has no end."""
        if self.transport is not None and not self.lost:
            self.transport.abort()

    # --- waits ------------------------------------------------------------------------------------

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _wait(self, until: float, otherwise: str) -> None:
        self._waiter = self._loop.create_future()
        self._deadline = until
        if until < self._rings_at:
            self._ring_at(until)
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._deadline = inf
        if self._expired:
            self._expired = False
            self._error = NoReply(otherwise)
            self.abort()
            raise self._error

    def _ring_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = when
        self._timer = self._loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._rings_at = inf
        if self._leaving:
            self.abort()
        elif self._waiter is None:
            return
        elif self._loop.time() >= self._deadline:
            self._expired = not self._waiter.done()
            self._wake()
        else:
            self._ring_at(self._deadline)
