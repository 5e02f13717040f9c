"""The message while it arrives: what a handler reads is what the client is sending."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from preforkmx.body import MessageStream
from preforkmx.errors import ConnectionLost, MessageAborted
from preforkmx.protocol.core import COMMANDS_A_TURN
from preforkmx.protocol.events import Chunk, End, Gone, NeedData, Pause
from preforkmx.protocol.order import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from preforkmx.session.session import Session

_CHUNKS = State.CHUNKS

RATE_WINDOW_SECONDS = 60.0
"""Over how long a message's data rate is looked at."""


class NoMessage(MessageStream):
    """``envelope.data`` before DATA: empty."""

    async def next_chunk(self) -> bytes:
        return b""


class TooSlow(MessageAborted):
    """The client sends, but so slowly that it only holds its place."""


class IncomingMessage(MessageStream):
    """Reads the message from the session's client, at the pace of the handler.

    Nothing is read ahead but what the transport's buffer and
    :data:`~preforkmx.session.wire.HIGH_WATER` hold. Between the chunks of BDAT the commands
    are answered from here; one that ends the transfer is left to the session, in
    :attr:`~preforkmx.session.session.Session.held`.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        # Seconds that the handlers have left; inf: they are through.
        self._left = session.service.delivery_timeout
        self._aborted: MessageAborted | None = None
        # Of the present window: seconds that the client was waited for, octets that came.
        self._waited = 0.0
        self._came = 0
        # Octets that the last wait brought, until they are a piece of the message.
        self._unheard = 0
        # When the command that is awaited between two chunks has to be complete.
        self._until = inf
        # Pieces since the others had their turn.
        self._pieces = 0
        self.end: End | None = None
        """The end of the message, once it was reached."""
        self.tap: Callable[[bytes], object] | None = None
        """That of the envelope."""

    @property
    def aborted(self) -> MessageAborted | None:
        """Why the message will never be complete."""
        return self._aborted

    async def next_chunk(self) -> bytes:
        if self._aborted is not None:
            raise self._aborted
        if self.end is not None:
            return b""
        session = self._session
        core = session.core
        while True:
            if session.service.aborting:
                raise self._abort(MessageAborted("the server is shutting down"))
            event = core.next_of_message()
            kind = type(event)
            if kind is NeedData:
                self._pieces = 0
                await self._more()
            elif kind is Chunk:
                # Also those that came while the handler was busy: it is no fault of the client's
                # that nobody waited for them.
                self._came += len(event.octets)  # type: ignore[union-attr]
                self._unheard = 0
                self._pieces += 1
                if self._pieces > COMMANDS_A_TURN:
                    await self._breathe()
                if self.tap is not None:
                    self.tap(event.octets)  # type: ignore[union-attr]
                return event.octets  # type: ignore[union-attr]
            elif kind is End:
                self.end = event  # type: ignore[assignment]
                if event.fault is not None:  # type: ignore[union-attr]
                    raise self._abort(MessageAborted(event.fault.text))  # type: ignore[union-attr]
                if self.tap is not None:
                    self.tap(b"")
                return b""
            elif kind is Pause:
                await self._breathe()
            elif kind is Gone:
                raise self._abort(ConnectionLost("the client closed during its message"))
            else:
                session.held = event
                raise self._abort(MessageAborted("the client gave its message up"))

    async def drain(self) -> None:
        """Read and forget what the handlers left, up to the end or to what prevents it."""
        self._left = inf
        try:
            while self.end is None:
                await self.next_chunk()
        except MessageAborted:
            return

    def close(self) -> None:
        """Nobody reads on: what the client sends from here on belongs to the session."""
        if self._aborted is None:
            self._aborted = MessageAborted("the message was answered")

    async def _more(self) -> None:
        """Wait for the client.

        :raises MessageAborted: it sent nothing for too long, or too little.
        """
        session = self._session
        core = session.core
        timeout = session.service.command_timeout
        rate = session.service.minimum_rate
        # Nobody heard them: they belong to a refused chunk, or to a message that is too large.
        self._came += self._unheard
        self._unheard = 0
        began = session.now()
        until = began + timeout
        before = 0
        if core.state is not _CHUNKS:
            self._until = inf
        else:
            before = core.buffered
            if core.output or self._until == inf:
                # Not at each octet: a command has its time as a whole.
                self._until = until
        while True:
            look = began + RATE_WINDOW_SECONDS - self._waited if rate else inf
            # The handlers' clock stands meanwhile.
            if session.deadline != inf:
                self._left = session.deadline - began
            try:
                await session.more(min(until, self._until, look))
            finally:
                now = session.now()
                # Also where the handler gives up its read: its own time goes on.
                if self._left != inf:
                    session.deadline = now + self._left
            came = core.buffered - before
            before += came
            if rate:
                self._look_at_the_rate(now - began, came, rate)
            if not session.expired:
                return
            if came:
                until = now + timeout
            elif now >= until or now >= self._until:
                raise self._abort(MessageAborted("the client sent nothing for too long"))
            began = now

    def _look_at_the_rate(self, elapsed: float, came: int, least: int) -> None:
        """Count what came, and at the window's end compare it with the least that must.

        Only time in which the client was waited for counts: a handler may be as slow as it is.
        """
        self._waited += elapsed
        self._unheard += came
        if self._waited < RATE_WINDOW_SECONDS:
            return
        if self._came + self._unheard < least * self._waited:
            raise self._abort(TooSlow("the client sends too slowly"))
        self._waited, self._came, self._unheard = 0.0, 0, 0

    async def _breathe(self) -> None:
        """Let the other sessions have a turn: this client's many small chunks are all here."""
        self._pieces = 0
        self._until = inf
        session = self._session
        if session.deadline != inf:
            self._left = session.deadline - session.now()
        try:
            await session.breathe(session.service.command_timeout)
        finally:
            if self._left != inf:
                session.deadline = session.now() + self._left

    def _abort(self, reason: MessageAborted) -> MessageAborted:
        self._aborted = reason
        return reason
