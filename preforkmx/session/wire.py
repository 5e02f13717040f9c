"""One connection's octets: reads into the protocol core, writes, waits, and the last close.

There is no timer for a session. A wait stores its deadline, and the server looks at the
deadlines of all sessions once a second (:meth:`Wire.expire`), so a wait may last up to one
second longer than its time.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from preforkmx.protocol.core import Core

HIGH_WATER = 65536
"""Octets that may wait in the core before reading pauses. One read more may come on top, of at
most 256 KiB."""
LINGER_SECONDS = 2.0
"""How long the last close waits for the client's, so that the last reply is not lost to a
reset (RFC 9293 section 3.10.7.4: data that arrives for a closed socket resets it)."""


class Outbox:
    """The sessions whose replies leave together, at the end of a turn of the loop.

    Written one by one between the work of other sessions, each reply wakes its client alone
    and finds the kernel's code and data out of the caches again: together they cost a seventh
    less of the whole CPU per message.
    """

    __slots__ = ("_wires",)

    def __init__(self) -> None:
        self._wires: list[Wire] = []

    def add(self, wire: Wire, loop: asyncio.AbstractEventLoop) -> None:
        """Let `wire` flush at the end of this turn."""
        if not self._wires:
            loop.call_soon(self._flush)
        self._wires.append(wire)

    def _flush(self) -> None:
        wires, self._wires = self._wires, []
        for wire in wires:
            wire.flush()


class Wire(asyncio.Protocol):
    """The transport's side of a session."""

    __slots__ = (
        "_lingering",
        "_loop",
        "_outbox",
        "_reading_paused",
        "_waiter",
        "_write_waiter",
        "_writing_paused",
        "core",
        "deadline",
        "expired",
        "lost",
        "task",
        "transport",
    )

    def __init__(self, core: Core, loop: asyncio.AbstractEventLoop, outbox: Outbox) -> None:
        self._loop = loop
        self._outbox = outbox
        self._waiter: asyncio.Future[None] | None = None
        self._write_waiter: asyncio.Future[None] | None = None
        self._reading_paused = False
        self._writing_paused = False
        self._lingering = False
        self.core = core
        self.transport: asyncio.Transport | None = None
        self.task: asyncio.Task[None] | None = None
        self.deadline = inf
        """When what the session does now must be over, on the loop's clock."""
        self.expired = False
        """The deadline passed and was acted upon."""
        self.lost = False
        """The connection is gone: nothing can be written any more."""

    # --- what the transport calls -----------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        core = self.core
        core.receive_data(data)
        if self._waiter is not None and not self.answer_at_once():
            self.wake()
        if core.buffered > HIGH_WATER and not self._reading_paused:
            self._reading_paused = True
            assert self.transport is not None
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self.core.receive_eof()
        self.wake()
        # Keep the transport open for the last replies; a TLS one closes whatever is said here.
        return not self.core.tls

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        self.lost = True
        self.core.receive_eof()
        self.wake()
        waiter = self._write_waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        waiter = self._write_waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def answer_at_once(self) -> bool:
        """Answer what arrived, if nobody must be asked; False: the task has to do it."""
        return False

    # --- what the session calls ---------------------------------------------------------------

    def now(self) -> float:
        """The loop's clock, in seconds."""
        return self._loop.time()

    def wake(self) -> None:
        """End the wait of :meth:`more`, if there is one."""
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            # Else a sweep before the task's turn would take its wait for work that hangs.
            self.deadline = inf
            if not waiter.done():
                waiter.set_result(None)

    def flush(self) -> None:
        """Hand the core's output to the transport."""
        output = self.core.take_output()
        if output and not self.lost:
            assert self.transport is not None
            self.transport.write(output)

    def flush_soon(self) -> None:
        """Hand the core's output to the transport when the other sessions have had their turn."""
        if self.core.output:
            self._outbox.add(self, self._loop)

    async def more(self, until: float) -> None:
        """Send the replies, then wait until the client sends or goes.

        :param until: when the wait is over in any case, on the loop's clock.

        Returns early when :meth:`wake` is called and when the time is over
        (:attr:`expired`). A client that does not read its replies is not read from.
        """
        self.flush_soon()
        self.expired = False
        self.deadline = until
        if self._writing_paused and not self.lost:
            await self._written()
            # Something may have arrived meanwhile: the caller asks the core first.
            return
        self.resume()
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
            self.deadline = inf

    async def breathe(self, seconds: float) -> None:
        """Send the replies so far, and let the other sessions have a turn.

        At most `seconds`, like :meth:`more`.
        """
        self.flush()
        self.expired = False
        if self._writing_paused and not self.lost:
            self.deadline = self._loop.time() + seconds
            await self._written()
        else:
            await asyncio.sleep(0)

    async def _written(self) -> None:
        self._write_waiter = self._loop.create_future()
        try:
            await self._write_waiter
        finally:
            self._write_waiter = None
            self.deadline = inf

    def resume(self) -> None:
        """Read on, if reading was paused."""
        if self._reading_paused:
            self._reading_paused = False
            if not self.lost:
                assert self.transport is not None
                self.transport.resume_reading()

    def pause(self) -> None:
        """Read nothing until :meth:`resume`."""
        if not self._reading_paused and not self.lost:
            self._reading_paused = True
            assert self.transport is not None
            self.transport.pause_reading()

    def expire(self) -> None:
        """The deadline has passed: end what the session is doing."""
        self.deadline = inf
        self.expired = True
        if self._write_waiter is not None:
            # Its replies do not go out either: there is nothing left to say to it.
            self.abort()
        elif self._waiter is not None:
            self.wake()
        elif self.task is not None:
            self.task.cancel()

    def abort(self) -> None:
        """Close at once, without a word."""
        if self.transport is not None and not self.lost:
            self.transport.abort()

    async def hang_up(self, *, linger: bool) -> None:
        """Send what is left and close.

        :param linger: the client may still be sending: close only this side first, and
            discard what comes until it closes too, for at most :data:`LINGER_SECONDS`.
        """
        self.flush()
        transport = self.transport
        if transport is None:
            return
        self._lingering = True
        if self.lost:
            # A transport that was lost to an error is closed by its loop.
            transport.close()
            return
        if linger and not self.core.tls and transport.can_write_eof():
            try:
                transport.write_eof()
                self.resume()
            except (OSError, RuntimeError):
                # The client reset the connection, and the loop has not told yet.
                transport.abort()
                return
            await self._until_gone(or_eof=True)
        transport.close()
        if self.core.tls or transport.get_write_buffer_size():
            # Under TLS the close is a dialogue, and what the client still sends is discarded on
            # the way. A client that does not read: close() alone would keep its replies for ever.
            await self._until_gone(or_eof=False)
            self.abort()

    async def _until_gone(self, *, or_eof: bool) -> None:
        deadline = self._loop.time() + LINGER_SECONDS
        self.expired = False
        while not (self.lost or self.expired or (or_eof and self.core.eof)):
            self.deadline = deadline
            self._waiter = self._loop.create_future()
            await self._waiter
        self.deadline = inf
