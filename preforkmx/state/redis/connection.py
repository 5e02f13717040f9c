"""One connection to a Redis server: commands out in one write, replies matched in order."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from hiredis import Reader

from preforkmx.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

#: The most commands that wait for their replies, those included that nobody waits for any more.
MAX_IN_FLIGHT: Final = 16_384
#: The most octets that wait for the end of a turn of the loop, and the most that the transport
#: keeps for a server which does not read.
MAX_UNSENT: Final = 1 << 20
#: The longest reply, in octets. The longest that is asked for is a cluster's table of slots.
MAX_REPLY: Final = 8 << 20
#: A connection whose oldest reply is this late, in seconds, is given up for a new one.
SILENCE: Final = 5.0

#: A connection on which nothing was said for this many seconds is looked after by the kernel, so
#: that a firewall does not forget it and a machine that is gone is noticed.
KEEPALIVE_IDLE: Final = 60
KEEPALIVE_INTERVAL: Final = 10
KEEPALIVE_PROBES: Final = 3

#: What the reader answers when no reply is whole; None is a reply.
_NOT_WHOLE: Final = object()


class _Question(NamedTuple):
    #: Its result is the reply, an error reply as hiredis' ReplyError, or a StoreUnavailable.
    future: asyncio.Future[Any] | None
    #: Who is told in its place, of replies only.
    tell: Callable[[Any], None] | None
    deadline: float


class Connection(asyncio.Protocol):
    """One connection, which many askers share.

    What they all ask in one turn of the event loop leaves in one write at the turn's end, and
    one timer watches over all the deadlines. As long as the reply to a question whose deadline
    is over has not come, the connection is *overdue*: Redis answers in order, so whoever asked
    now would wait as well. That reply ends it. One that is :data:`SILENCE` late ends the
    connection.

    :param deadline: how long a reply may take, in seconds.
    :param on_change: called when the connection becomes overdue, and when it no longer is.
    """

    def __init__(self, deadline: float, on_change: Callable[[], None] | None = None) -> None:
        self._deadline = deadline
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = Reader(notEnoughData=_NOT_WHOLE)
        self._unsent: list[bytes] = []
        self._unsent_octets = 0
        self._due = 0.0
        self._full = False
        self._unfinished = 0
        #: Whose replies are awaited, oldest first.
        self._waiting: deque[_Question] = deque()
        #: Older still: their deadline is over, their replies will come all the same.
        self._overdue: deque[_Question] = deque()
        self._timer: asyncio.TimerHandle | None = None
        #: Set when the connection is lost; :attr:`why` then says why.
        self.lost = asyncio.Event()
        self.why = ""

    @property
    def answering(self) -> bool:
        """Whether it is there and not overdue."""
        return self._transport is not None and not self._overdue

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=MAX_UNSENT)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)

    def connection_lost(self, exc: Exception | None) -> None:
        self.abort(str(exc) if exc is not None else "the server closed the connection")

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False

    def abort(self, why: str) -> None:
        """Close the connection; whoever waits is told that there is no answer."""
        if not self.lost.is_set():
            self.why = why
            self.lost.set()
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            _fail(self._waiting.popleft(), self.why)
        self._overdue.clear()
        self._unsent.clear()
        self._unsent_octets = 0

    def ask(self, command: bytes) -> asyncio.Future[Any]:
        """Send a command at the end of this turn, and return where its reply will be.

        The future's result is the reply; an error reply is hiredis' ReplyError, and no reply in
        time a :class:`~preforkmx.errors.StoreUnavailable`, neither of them raised.

        :raises StoreUnavailable: the connection is lost or overdue, or too much waits already.
        """
        if self._overdue:
            raise StoreUnavailable("the server does not answer in time")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._send(command, future, None)
        return future

    def tell(self, command: bytes, answer: Callable[[Any], None] | None = None) -> None:
        """Send a command for whose reply nobody waits, to an overdue connection too.

        :param answer: called with the reply, if it comes.
        :raises StoreUnavailable: the connection is lost, or too much waits already.
        """
        self._send(command, None, answer)

    def _send(
        self,
        command: bytes,
        future: asyncio.Future[Any] | None,
        tell: Callable[[Any], None] | None,
    ) -> None:
        if self._transport is None:
            raise StoreUnavailable(self.why or "there is no connection")
        if len(self._waiting) + len(self._overdue) >= MAX_IN_FLIGHT:
            raise StoreUnavailable("too many questions wait for the server")
        if self._full or self._unsent_octets > MAX_UNSENT:
            raise StoreUnavailable("the server does not read")
        if not self._unsent:
            # All of one turn have the deadline of its first.
            self._due = self._loop.time() + self._deadline
            self._loop.call_soon(self._flush)
        deadline = self._due
        self._waiting.append(_Question(future, tell, deadline))
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._look_twice)
        self._unsent.append(command)
        self._unsent_octets += len(command)

    def _flush(self) -> None:
        if self._transport is None or not self._unsent:
            return
        self._transport.write(b"".join(self._unsent))
        self._unsent.clear()
        self._unsent_octets = 0

    def data_received(self, data: bytes) -> None:
        try:
            self._read(data)
        except Exception as exc:
            # A reply that is none, or a bug: in what follows nothing would match any more.
            self.abort(f"not a reply of a Redis server: {printable(exc)}")

    def _read(self, data: bytes) -> None:
        reader, waiting, overdue = self._reader, self._waiting, self._overdue
        reader.feed(data)
        self._unfinished += len(data)
        while (reply := reader.gets()) is not _NOT_WHOLE:
            self._unfinished = 0
            if overdue:
                future, tell, _ = overdue.popleft()
                if not overdue:
                    self._answers_again()
            elif waiting:
                future, tell, _ = waiting.popleft()
            else:
                self.abort("the server said what nobody asked")
                return
            if future is not None:
                if not future.done():
                    future.set_result(reply)
            elif tell is not None:
                tell(reply)
        if self._unfinished > MAX_REPLY:
            self.abort("a reply is too long")

    def _answers_again(self) -> None:
        # The timer stands where the silence would have been too long: after the next deadline.
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            self._timer = self._loop.call_at(self._waiting[0].deadline, self._look_twice)
        if self._on_change is not None:
            self._on_change()

    def _look_twice(self) -> None:
        # When this process stood still, replies may lie in the socket that are in time: the loop
        # reads them before it comes to what is called next.
        self._timer = self._loop.call_later(0.001, self._look_at_deadlines)

    def _look_at_deadlines(self) -> None:
        self._timer = None
        now = self._loop.time()
        waiting, overdue = self._waiting, self._overdue
        was_overdue = bool(overdue)
        while waiting and waiting[0].deadline <= now:
            question = waiting.popleft()
            overdue.append(question)
            _fail(question, "the server did not answer in time")
        if overdue and overdue[0].deadline + SILENCE <= now:
            self.abort("the server has been silent for too long")
            return
        # All have the same span, so the oldest question is the first to be due.
        due = [waiting[0].deadline] if waiting else []
        if overdue:
            due.append(overdue[0].deadline + SILENCE)
        if due:
            self._timer = self._loop.call_at(min(due), self._look_twice)
        if overdue and not was_overdue and self._on_change is not None:
            self._on_change()


def _fail(question: _Question, why: str) -> None:
    # A result, not an exception: nobody may be there any more to retrieve it.
    if question.future is not None and not question.future.done():
        question.future.set_result(StoreUnavailable(why))


def printable(error: object) -> str:
    """Return a server's text as one that may stand in a log: printable and short."""
    return "".join(char if char.isprintable() else "?" for char in str(error)[:200])
