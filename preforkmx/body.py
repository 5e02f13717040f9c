"""The message as a stream: what ``envelope.data`` is, and how a handler changes it.

A handler that only adds lines never needs to hold the message::

    envelope.data = prepend(envelope.data, b"X-Seen: yes\\r\\n")

Every stream keeps the octets that the client sent, CRLF line ends included, with the
transparency dots of RFC 5321 section 4.5.2 removed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from preforkmx.errors import SMTPError

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator


class MessageStream(ABC):
    """Chunks of a message, read once, from front to end.

    Iteration ends normally only after the end of the message and after every check on its
    octets; otherwise it raises :class:`~preforkmx.errors.MessageAborted`. So a loop that
    falls out at its bottom has seen a whole message.

    Subclasses write :meth:`next_chunk`.
    """

    _rest: bytes = b""
    _ended: bool = False

    @abstractmethod
    async def next_chunk(self) -> bytes:
        """Return the next octets, never empty, or ``b""`` at the end of the message."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._rest:
            chunk, self._rest = self._rest, b""
            return chunk
        if self._ended:
            raise StopAsyncIteration
        chunk = await self.next_chunk()
        if not chunk:
            self._ended = True
            raise StopAsyncIteration
        return chunk

    async def read(self, n: int = -1) -> bytes:
        """Return at most `n` octets, ``b""`` only at the end; all that is left when `n` < 0.

        With a negative `n` the whole message is held in memory: :meth:`read_all` bounds it.
        """
        if n == 0:
            return b""
        if n < 0:
            return b"".join([chunk async for chunk in self])
        try:
            chunk = await self.__anext__()
        except StopAsyncIteration:
            return b""
        if len(chunk) > n:
            chunk, self._rest = chunk[:n], chunk[n:]
        return chunk

    async def read_all(self, limit: int) -> bytes:
        """Return the whole message if it has at most `limit` octets.

        :raises SMTPError: 552 5.3.4 when it has more; nothing beyond `limit` is kept.
        """
        pieces: list[bytes] = []
        size = 0
        async for chunk in self:
            size += len(chunk)
            if size > limit:
                raise SMTPError(552, "Message too large for its handler", enhanced=(5, 3, 4))
            pieces.append(chunk)
        return b"".join(pieces)


class _Chained(MessageStream):
    def __init__(self, first: bytes, rest: MessageStream) -> None:
        self._rest = first
        self._source = rest

    async def next_chunk(self) -> bytes:
        return await self._source.read(1 << 30)


class _Wrapped(MessageStream):
    def __init__(self, source: AsyncIterable[bytes]) -> None:
        self._source = aiter(source)

    async def next_chunk(self) -> bytes:
        async for chunk in self._source:
            if chunk:
                return chunk
        return b""


def prepend(stream: MessageStream, octets: bytes) -> MessageStream:
    """Return a stream of `octets` (whole header lines, each with its CRLF), then `stream`."""
    return _Chained(octets, stream)


def wrap(source: AsyncIterable[bytes]) -> MessageStream:
    """Return a stream over any asynchronous iterable of octets, an async generator say.

    Let what the original stream raises pass: it is how an aborted message stays undelivered.
    """
    return _Wrapped(source)


def whole(octets: bytes) -> MessageStream:
    """Return a stream of a message that is already in memory."""

    async def once() -> AsyncIterator[bytes]:
        yield octets

    return _Wrapped(once())
