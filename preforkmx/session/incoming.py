"""The message while it arrives: what a handler reads is what the client is sending."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from preforkmx.body import MessageStream
from preforkmx.errors import ConnectionLost, MessageAborted
from preforkmx.protocol.core import NEED_DATA
from preforkmx.protocol.events import Chunk, End

if TYPE_CHECKING:
    from preforkmx.session.session import Session


class NoMessage(MessageStream):
    """``envelope.data`` before DATA: empty."""

    async def next_chunk(self) -> bytes:
        return b""


class IncomingMessage(MessageStream):
    """Reads the message from the session's client, at the pace of the handler.

    Nothing is read ahead but what the transport's buffer and
    :data:`~preforkmx.session.wire.HIGH_WATER` hold.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        # Seconds that the handlers have left; inf: they are through.
        self._left = session.service.delivery_timeout
        self._aborted: MessageAborted | None = None
        self.end: End | None = None
        """The end of the message, once it was reached."""

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
            if event is NEED_DATA:
                await self._more()
                if session.expired:
                    raise self._abort(MessageAborted("the client sent nothing for too long"))
            elif type(event) is Chunk:
                return event.octets
            elif type(event) is End:
                self.end = event
                if event.fault is not None:
                    raise self._abort(MessageAborted(event.fault.text))
                return b""
            else:
                raise self._abort(ConnectionLost("the client closed during its message"))

    async def drain(self) -> None:
        """Read and forget what the handlers left, up to the end or to what prevents it."""
        self._left = inf
        try:
            while self.end is None:
                await self.next_chunk()
        except MessageAborted:
            return

    async def _more(self) -> None:
        """Wait for the client; the handlers' clock stands meanwhile."""
        session = self._session
        if session.deadline != inf:
            self._left = session.deadline - session.now()
        try:
            await session.more(session.service.command_timeout)
        finally:
            # Also where the handler gives up its read: its own time goes on.
            if self._left != inf:
                session.deadline = session.now() + self._left

    def _abort(self, reason: MessageAborted) -> MessageAborted:
        self._aborted = reason
        return reason
