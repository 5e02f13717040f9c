"""EmbeddedStore: a worker's end of the connection to the store process."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from preforkmx.errors import StoreUnavailable
from preforkmx.state.decisions import (
    BUDGETS,
    MICROSECONDS,
    NOTHING,
    PREPAID,
    Admission,
    Decision,
    GreylistVerdict,
    Lease,
    Settlement,
    Spent,
)
from preforkmx.state.embedded import frames
from preforkmx.state.limits import ADMITTED, lease_key
from preforkmx.state.local import (
    STATES,
    check_spent,
    check_wanted,
    cost_of,
    granted,
    no_such_lease,
    refusal,
    settlement,
)
from preforkmx.state.mark_table import life_of, marks_of
from preforkmx.state.networks import host_octets
from preforkmx.state.triplets import short_key, triplet_key

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from preforkmx.model import IPAddress
    from preforkmx.state.decisions import ConnectionLimits, GreylistSettings, Rate

#: The most commands that wait for their replies, those included that nobody waits for any more.
MAX_IN_FLIGHT: Final = 16_384
#: The most octets that wait to be written, in a connection that the store does not read.
MAX_UNSENT: Final = 1 << 20
#: A connection whose oldest reply is this late, in seconds, is given up for a new one.
SILENCE: Final = 5.0
#: The pauses between attempts to connect, in seconds: the first, then twice as long each time.
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0

#: How many numbers the records of grants before one reply have.
_NUMBERS_OF_GRANTS: Final = 6

#: A reply's code and two numbers, and the grants of five budgets where it has them.
_Reply = tuple[int, ...]


class EmbeddedStore:
    """The decisions of this machine's store process.

    One connection for the whole worker: what all its sessions ask in one turn of the event
    loop goes out in one write, and one timer watches over all the deadlines. A lost connection
    is made again in the background, with growing pauses; meanwhile every operation fails at
    once, and the leases that the worker still holds are counted again when it is back.

    Belongs to one process and one event loop: :meth:`start` it after the fork.

    :param path: the store process' unix socket.
    :param deadline: how long an operation may take, in seconds.
    """

    def __init__(self, path: Path, *, deadline: float = 0.3) -> None:
        self._path = path
        self._deadline = deadline
        self._connection: _Connection | None = None
        self._connector: asyncio.Task[None] | None = None
        self._token = b""
        self._leases: dict[int, Lease] = {}
        self._last_lease = 0

    @property
    def connected(self) -> bool:
        """Whether there is a connection; it may still be one that nobody answers."""
        return self._connection is not None

    async def start(self) -> None:
        """Connect. Returns after the first attempt, at the latest after one deadline."""
        if self._connector is None:
            self._token = os.urandom(frames.TOKEN_SIZE)
            attempted = asyncio.Event()
            self._connector = asyncio.create_task(self._stay_connected(attempted))
            await attempted.wait()

    async def close(self) -> None:
        """Close the connection, and with it every lease."""
        connector, self._connector = self._connector, None
        if connector is not None:
            connector.cancel()
            with suppress(asyncio.CancelledError):
                await connector
        self._leases.clear()

    async def open_connection(self, address: IPAddress, limits: ConnectionLimits) -> Admission:
        """Count a new connection against every limit, and lease one place."""
        host = host_octets(address)
        number = 0
        if limits.leases:
            self._last_lease = number = self._last_lease + 1
        reply = await self._ask(frames.open_connection(number, host, limits), number)
        if reply[0] != ADMITTED:
            return refusal(reply[0], reply[1])
        if not number:
            return Admission(admitted=True)
        keys = () if limits.concurrent is None else (lease_key(limits.key, host),)
        lease = Lease(number, keys, self, address, limits)
        self._leases[number] = lease
        if not limits.budget_numbers:
            return Admission(admitted=True, lease=lease)
        return Admission(admitted=True, lease=lease, grants=granted(lease, reply[3:]))

    async def settle(self, lease: Lease, spent: Spent, want: Spent = NOTHING) -> Settlement:
        """Book what a session spent, and ask whether it may go on.

        What was reserved by a settlement that nobody heard of stands in the session's account
        all the same: the next one counts on it, and the end gives it back.

        :raises StoreUnavailable: there was no answer, or the lease has ended.
        """
        check_spent(spent)
        check_wanted(want)
        if lease.store is not self or self._leases.get(lease.id) is not lease:
            raise no_such_lease()
        if lease.limits is None or not lease.limits.budget_numbers:
            return Settlement(allowed=True)
        code, wait, _, *grants = await self._ask(frames.settle(lease.id, spent, want))
        return settlement(code, wait, granted(lease, grants))

    async def close_connection(self, lease: Lease, spent: Spent = NOTHING) -> None:
        """Book what the session spent, and give `lease` back.

        Never fails: without a connection it has ended already, and nothing is booked.
        """
        if spent is not NOTHING:
            check_spent(spent)
        if lease.store is self and self._leases.pop(lease.id, None) is not None:
            if lease.limits is None or not lease.limits.budget_numbers:
                self._tell(frames.close(lease.id))
            else:
                lease.reserved = (0,) * PREPAID
                self._tell(frames.close_account(lease.id, spent))

    async def take(self, limit: Rate, key: str, cost: int = 1) -> Decision:
        """Take `cost` events of the rate `limit` for `key`, or nothing."""
        frame = frames.take(cost_of(limit, cost), limit.tolerance, short_key(key))
        reply = await self._ask(frame)
        return Decision(not reply[0], reply[1] / MICROSECONDS)

    async def greylist(
        self, network: str, sender: str, recipient: str, settings: GreylistSettings
    ) -> GreylistVerdict:
        """Look at one triplet, and remember it."""
        triplet = triplet_key(network, sender, recipient)
        frame = frames.greylist(settings.numbers, triplet, short_key(network))
        code, left, waited, *_ = await self._ask(frame)
        return GreylistVerdict(STATES[code], left / MICROSECONDS, waited / MICROSECONDS)

    async def remember(self, keys: Collection[bytes], seconds: float) -> None:
        """Know `keys` for so long from now on, also those that are known already."""
        life = life_of(seconds)
        await self._ask_of_marks(marks_of(keys), lambda marks: frames.remember(life, marks))

    async def known(self, keys: Collection[bytes]) -> frozenset[bytes]:
        """Return those of `keys` that are known."""
        marks = marks_of(keys)
        replies = await self._ask_of_marks(marks, frames.known)
        return frozenset(
            mark
            for index, mark in enumerate(marks)
            if replies[index // frames.MARKS][1] >> index % frames.MARKS & 1
        )

    async def forget(self, keys: Collection[bytes]) -> None:
        """Know `keys` no more."""
        await self._ask_of_marks(marks_of(keys), frames.forget_marks)

    async def _ask_of_marks(
        self, marks: list[bytes], frame: Callable[[list[bytes]], bytes]
    ) -> list[_Reply]:
        """Ask about all marks in one write, and return the reply of each frame."""
        connection = self._connection
        if connection is None:
            raise StoreUnavailable("no connection to the store process")
        futures = [
            connection.ask(frame(marks[at : at + frames.MARKS]), 0)
            for at in range(0, len(marks), frames.MARKS)
        ]
        replies = []
        for reply in await asyncio.gather(*futures):
            if reply is None:
                raise StoreUnavailable("the store process did not answer in time")
            replies.append(reply)
        return replies

    async def _ask(self, frame: bytes, lease: int = 0) -> _Reply:
        connection = self._connection
        if connection is None:
            raise StoreUnavailable("no connection to the store process")
        future = connection.ask(frame, lease)
        try:
            reply = await future
        except asyncio.CancelledError:
            # The reply may have come in the same turn as the cancellation.
            if lease and not future.cancelled() and (reply := future.result()) is not None:
                self.answered_too_late(reply, lease)
            raise
        if reply is None:
            raise StoreUnavailable("the store process did not answer in time")
        return reply

    def answered_too_late(self, reply: _Reply, lease: int) -> None:
        """Nobody waits for this reply any more: what it gave is given back."""
        if lease and reply[0] == ADMITTED:
            self._tell(frames.close(lease))

    def _tell(self, frame: bytes) -> None:
        if self._connection is not None:
            self._connection.tell(frame)

    async def _stay_connected(self, attempted: asyncio.Event) -> None:
        pause = FIRST_PAUSE
        try:
            while True:
                if await self._connect(attempted):
                    pause = FIRST_PAUSE
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        finally:
            attempted.set()

    async def _connect(self, attempted: asyncio.Event) -> bool:
        """Connect, and return when the connection is lost: whether anything was answered."""
        loop = asyncio.get_running_loop()
        connection = _Connection(self, self._deadline)
        try:
            async with asyncio.timeout(self._deadline):
                await loop.create_unix_connection(lambda: connection, str(self._path))
            connection.greet(b"".join(self._greeting()))
            self._connection = connection
            attempted.set()
            await connection.lost.wait()
        except (OSError, TimeoutError):
            attempted.set()
        finally:
            self._connection = None
            connection.abort()
        return connection.answered

    def _greeting(self) -> list[bytes]:
        return [frames.hello(self._token), *map(_hold, self._leases.values())]


def _hold(lease: Lease) -> bytes:
    """Return the frame that counts `lease` again; its reservations ended with the connection."""
    limits = lease.limits
    if limits is None or lease.address is None or not limits.budget_numbers:
        return frames.hold(lease.id, lease.keys[0])
    lease.reserved = (0,) * PREPAID
    return frames.hold_account(lease.id, host_octets(lease.address), limits)


class _Question(NamedTuple):
    future: asyncio.Future[_Reply | None]
    deadline: float
    lease: int


class _Connection(asyncio.Protocol):
    """One connection to the store process: commands out, replies matched to them in order."""

    def __init__(self, store: EmbeddedStore, deadline: float) -> None:
        self._store = store
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []
        self._most = MAX_UNSENT
        self._rest = b""
        #: What came of the grants that belong to the next reply.
        self._grants: list[int] = []
        #: Whose replies are awaited, oldest first.
        self._waiting: deque[_Question] = deque()
        #: Older still: their deadline is over, their replies will come all the same.
        self._overdue: deque[_Question] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self.answered = False
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _exc: Exception | None) -> None:
        self.abort()

    def abort(self) -> None:
        """Close the connection; whoever waits is told that there is no answer."""
        self.lost.set()
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            _fail(self._waiting.popleft())
        self._overdue.clear()
        self._unsent.clear()

    def ask(self, frame: bytes, lease: int) -> asyncio.Future[_Reply | None]:
        """Send a command that has a reply; the future's None is "no answer in time".

        :param lease: the number of the lease that the command may take, 0 for none.
        :raises StoreUnavailable: the connection is lost, or too many commands wait already.
        """
        if self._transport is None:
            raise StoreUnavailable("the connection to the store process is lost")
        if len(self._waiting) + len(self._overdue) >= MAX_IN_FLIGHT:
            raise StoreUnavailable("too many questions wait for the store process")
        future: asyncio.Future[_Reply | None] = self._loop.create_future()
        deadline = self._loop.time() + self._deadline
        self._waiting.append(_Question(future, deadline, lease))
        if self._timer is not None and self._timer.when() > deadline:
            self._timer.cancel()  # it waits for what is overdue
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._look_at_deadlines)
        self.tell(frame)
        return future

    def greet(self, greeting: bytes) -> None:
        """Send what comes first, however many leases it holds again: the bound is for the rest."""
        self._most += len(greeting)
        self.tell(greeting)

    def tell(self, frame: bytes) -> None:
        """Send a command at the end of this turn of the event loop; nothing once it is lost."""
        if self._transport is None:
            return
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(frame)

    def _flush(self) -> None:
        if self._transport is None or not self._unsent:
            return
        self._transport.write(b"".join(self._unsent))
        self._unsent.clear()
        if self._transport.get_write_buffer_size() > self._most:
            self.abort()

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        whole = len(data) - len(data) % frames.REPLY.size
        self._rest = data[whole:]
        waiting, overdue, grants = self._waiting, self._overdue, self._grants
        record: _Reply
        for record in frames.REPLY.iter_unpack(data[:whole]):
            reply = record
            if reply[0] >= frames.GRANTS or not self.answered:
                if not self._is_in_order(reply):
                    self.abort()  # this is no store process
                    return
                continue
            if grants:
                reply += tuple(grants[: len(BUDGETS)])
                grants.clear()
            if overdue:
                self._store.answered_too_late(reply, overdue.popleft().lease)
            elif waiting:
                future, _, lease = waiting.popleft()
                if not future.done():
                    future.set_result(reply)
                else:
                    self._store.answered_too_late(reply, lease)
            else:
                self.abort()
                return

    def _is_in_order(self, record: _Reply) -> bool:
        """Take a record that answers no question: the greeting comes first, and once."""
        if not self.answered:
            self.answered = record == (frames.GREETED, frames.VERSION, 0)
            return self.answered
        self._grants += record[1:]
        return record[0] == frames.GRANTS and len(self._grants) <= _NUMBERS_OF_GRANTS

    def _look_at_deadlines(self) -> None:
        self._timer = None
        # A loop may wake a little before the time; a deadline is none by that much.
        now = self._loop.time() + 0.001
        waiting, overdue = self._waiting, self._overdue
        while waiting and waiting[0].deadline <= now:
            question = waiting.popleft()
            overdue.append(question)
            _fail(question)
        if overdue and overdue[0].deadline + SILENCE <= now:
            self.abort()
        elif waiting:
            # All have the same span, so the oldest question is the first to be due.
            self._timer = self._loop.call_at(waiting[0].deadline, self._look_at_deadlines)
        elif overdue:
            silent = overdue[0].deadline + SILENCE
            self._timer = self._loop.call_at(silent, self._look_at_deadlines)


def _fail(question: _Question) -> None:
    # A result, not an exception: nobody may be there any more to retrieve it.
    if not question.future.done():
        question.future.set_result(None)
