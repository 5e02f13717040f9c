"""The store process: one thread that owns the state and answers every worker of the machine."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from struct import error as StructError  # noqa: N812 - its own name says nothing
from typing import TYPE_CHECKING, Final, cast

from preforkmx.state.decisions import LONGEST_SPAN, MICROSECONDS, NOTHING
from preforkmx.state.embedded import frames
from preforkmx.state.embedded.database import GreylistDatabase
from preforkmx.state.embedded.frames import (
    ALLOW,
    CLOSE,
    CLOSE_ACCOUNT,
    FORGET,
    FORGET_GREYLIST,
    FORGET_MARKS,
    GREYLIST,
    HOLD,
    HOLD_ACCOUNT,
    KNOWN,
    LOOK,
    LOOK_GREYLIST,
    OPEN,
    OPEN_ACCOUNT,
    REMEMBER,
    SETTLE,
    TAKE,
)
from preforkmx.state.limits import ADMITTED, lease_key
from preforkmx.state.local import LocalStore

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from preforkmx.state.budgets import Account

_log = logging.getLogger("preforkmx.state.store")

#: The most workers that are connected at once; more are closed unheard.
MAX_CLIENTS: Final = 1024
#: The most leases of one worker. One that wants more is broken, and is closed.
MAX_LEASES: Final = 1 << 17
#: How often greylisting and marks are saved, in seconds: what a crash loses at most, plus one write.
SAVE_SECONDS: Final = 1.0

# Looked up once: a frame is unpacked some hundred thousand times a second.
_pack_reply: Final = frames.REPLY.pack
_unpack_open: Final = frames.OPEN_BODY.unpack_from
_unpack_greylist: Final = frames.GREYLIST_BODY.unpack_from
_unpack_lease: Final = frames.LEASE_BODY.unpack_from
_unpack_take: Final = frames.TAKE_BODY.unpack_from
_unpack_open_account: Final = frames.OPEN_ACCOUNT_BODY.unpack_from
_unpack_settle: Final = frames.SETTLE_BODY.unpack_from
_unpack_close_account: Final = frames.CLOSE_ACCOUNT_BODY.unpack_from
_unpack_hold_account: Final = frames.HOLD_ACCOUNT_BODY.unpack_from
_OPEN_SIZE: Final = frames.OPEN_BODY.size
_GREYLIST_SIZE: Final = frames.GREYLIST_BODY.size
_LEASE_SIZE: Final = frames.LEASE_BODY.size
_TAKE_SIZE: Final = frames.TAKE_BODY.size
_OPEN_ACCOUNT_SIZE: Final = frames.OPEN_ACCOUNT_BODY.size
_HOLD_ACCOUNT_SIZE: Final = frames.HOLD_ACCOUNT_BODY.size

_OF_MARKS: Final = frozenset({REMEMBER, KNOWN, FORGET_MARKS})
_LONGEST: Final = LONGEST_SPAN * MICROSECONDS
_ACCEPTS_A_WAKEUP: Final = 16
_ACCEPT_PAUSE: Final = 1.0


async def serve_store(
    sock: socket.socket,
    database: Path,
    ready: Callable[[], None],
    stop: asyncio.Event,
    *,
    clock: Callable[[], float] = time.time,
) -> None:
    """Answer workers on `sock` until `stop` is set; then save everything and return.

    :param sock: a listening unix stream socket. It stays open: whoever made it closes it.
    :param database: the SQLite file of greylisting and marks, made when it is missing. It belongs to
        this process alone, and is locked.
    :param ready: called once, when the first worker can be answered.
    :param clock: seconds since 1970.
    :raises BootError: the database cannot be opened, or another process has it. One that is
        damaged is set aside instead.
    """
    store = LocalStore(clock, journal=True)
    async with _saved(store, database) as save:
        clients = _Clients(store)
        acceptor = _Acceptor(sock, clients)
        acceptor.start()
        try:
            ready()
            while not await _set_within(stop, SAVE_SECONDS):
                await save()
        finally:
            acceptor.stop()
            clients.close()


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


@asynccontextmanager
async def _saved(store: LocalStore, database: Path) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Load from `database` what `store` has saved; yield what saves it; save it at the end."""
    loop = asyncio.get_running_loop()
    saved = store.saved
    file = GreylistDatabase(database, saved)
    # The one thread that touches SQLite: the loop never waits for a disk.
    with ThreadPoolExecutor(1, "preforkmx-state") as thread:

        async def save() -> None:
            changes = saved.take_changes()
            if not await loop.run_in_executor(thread, file.save, changes, store.now()):
                saved.give_back(changes)

        await loop.run_in_executor(thread, file.load, store.now())
        try:
            yield save
        finally:
            await save()
            await loop.run_in_executor(thread, file.close)


class _Acceptor:
    """Takes connections from the listening socket, which other processes may hold too."""

    def __init__(self, sock: socket.socket, clients: _Clients) -> None:
        self._sock = sock
        self._clients = clients
        self._loop = asyncio.get_running_loop()
        self._connecting: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._sock.setblocking(False)
        self._pause = None
        self._loop.add_reader(self._sock, self._accept)

    def stop(self) -> None:
        self._loop.remove_reader(self._sock)
        if self._pause is not None:
            self._pause.cancel()
        for task in self._connecting:
            task.cancel()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_A_WAKEUP):
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                # Out of descriptors or memory: look again later, never in a loop.
                if exc.errno != errno.ECONNABORTED:
                    _log.warning("the store process cannot accept a worker: %s", exc.strerror)
                    self._loop.remove_reader(self._sock)
                    self._pause = self._loop.call_later(_ACCEPT_PAUSE, self.start)
                return
            if len(self._clients) + len(self._connecting) >= MAX_CLIENTS:
                sock.close()
                continue
            task = self._loop.create_task(self._connect(sock))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: _Client(self._clients), sock)
        except BaseException as exc:
            sock.close()
            if not isinstance(exc, OSError):
                raise


class _Clients:
    """The connected workers, and the store that they share."""

    def __init__(self, store: LocalStore) -> None:
        self.store = store
        self._all: set[_Client] = set()
        self._by_token: dict[bytes, _Client] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, client: _Client) -> None:
        self._all.add(client)

    def name(self, client: _Client, token: bytes) -> None:
        """`client` is the worker `token`: an older connection of it has no say any more."""
        older = self._by_token.get(token)
        if older is not None:
            older.end()
        self._by_token[token] = client

    def remove(self, client: _Client) -> None:
        self._all.discard(client)
        if self._by_token.get(client.token) is client:
            del self._by_token[client.token]

    def close(self) -> None:
        for client in list(self._all):
            client.end()


class _Client(asyncio.Protocol):
    """One connected worker: answers its frames as they come, and holds its leases.

    Memory is bounded: at most one unfinished frame is kept; one read makes at most as many
    octets of replies as came, and while the worker does not read its replies
    nothing more is read from it.
    """

    def __init__(self, clients: _Clients) -> None:
        self._clients = clients
        self._store = clients.store
        self._rest = b""
        #: Under which key each lease is counted; empty where connections are not.
        self._leases: dict[int, bytes] = {}
        #: The accounts of those leases that have budgets.
        self._accounts: dict[int, Account] = {}
        self._transport: asyncio.Transport | None = None
        self.token = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._clients.add(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        self.end()

    def pause_writing(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def end(self) -> None:
        """Close the connection; its leases are free at once, and what was reserved for them."""
        self._clients.remove(self)
        now = self._store.now()
        for lease in list(self._leases):
            self._give_back(lease, NOTHING, now)
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return
        if self._rest:
            data = self._rest + data
        try:
            replies = self._answer(data)
        except (StructError, ValueError) as exc:
            _log.warning("the store process closed the connection of a worker: %s", exc)
            self.end()
            return
        if replies:
            self._transport.write(b"".join(replies))

    def _answer(self, data: bytes) -> list[bytes]:
        """Carry out every whole frame of `data`, keep the rest, and return the replies.

        :raises ValueError: a frame breaks the rules.
        :raises struct.error: a frame is shorter than its fields.
        """
        replies: list[bytes] = []
        reply = replies.append
        limits, decide = self._store.limits, self._store.greylisting.decide
        now = self._store.now()
        start, end = 0, len(data)
        while start < end:
            stop = start + 1 + data[start]
            if stop > end:
                break
            if stop == start + 1:
                raise ValueError("it sent an empty frame")
            frame = data[start:stop]
            start = stop
            command = frame[1]
            if not self.token:
                reply(self._greet(frame))
            elif command == OPEN:
                numbers = _unpack_open(frame)
                at = _OPEN_SIZE + numbers[6]
                host, name = frame[_OPEN_SIZE:at], frame[at:]
                outcome, wait = limits.open(name, host, numbers[1:6], now)
                if outcome == ADMITTED and numbers[5]:
                    self._keep(numbers[0], lease_key(name, host))
                reply(_pack_reply(outcome, wait, 0))
            elif command == GREYLIST:
                numbers = _unpack_greylist(frame)
                if numbers[1] > _LONGEST or numbers[2] > _LONGEST:
                    raise ValueError("it asked for a longer memory than there is")
                network = frame[_GREYLIST_SIZE:]
                reply(_pack_reply(*decide(network, numbers[5], numbers[:5], now)))
            elif command == CLOSE:
                (lease,) = _unpack_lease(frame)
                self._give_back(lease, NOTHING, now)
            elif command == TAKE:
                cost, tolerance = _unpack_take(frame)
                wait = limits.take(b"t" + frame[_TAKE_SIZE:], cost, tolerance, now)
                reply(_pack_reply(1 if wait else 0, wait, 0))
            elif command == HOLD:
                (lease,) = _unpack_lease(frame)
                key = frame[_LEASE_SIZE:]
                if not key:
                    raise ValueError(f"it holds nothing with lease {lease}")
                limits.hold(key)
                self._keep(lease, key)
            elif command == OPEN_ACCOUNT:
                reply(self._open_account(frame, now))
            elif command == SETTLE:
                reply(self._settle(frame, now))
            elif command == CLOSE_ACCOUNT:
                lease, *spent = _unpack_close_account(frame)
                self._give_back(lease, spent, now)
            elif command == HOLD_ACCOUNT:
                self._hold_account(frame)
            elif command in _OF_MARKS:
                reply(self._answer_of_marks(command, frame, now))
            else:
                reply(self._operate(command, frame, now))
        self._rest = data[start:]
        return replies

    def _answer_of_marks(self, command: int, frame: bytes, now: int) -> bytes:
        table = self._store.marks
        if command == REMEMBER:
            (life,) = frames.REMEMBER_BODY.unpack_from(frame)
            if life > _LONGEST:
                raise ValueError("it asked for a longer memory than there is")
            table.remember(frames.marks_in(frame, frames.REMEMBER_BODY.size), life, now)
            return _pack_reply(0, 0, 0)
        marks = frames.marks_in(frame, 2)
        if command == FORGET_MARKS:
            table.forget(marks, now)
            return _pack_reply(0, 0, 0)
        return _pack_reply(0, sum(1 << index for index in table.known(marks, now)), 0)

    def _operate(self, command: int, frame: bytes, now: int) -> bytes:
        """Carry out what an operator asks."""
        limits, greylisting = self._store.limits, self._store.greylisting
        if command == LOOK:
            key = frame[2:]
            if key[:1] == frames.LEASES:
                return _pack_reply(0, limits.held(key), now)
            return _pack_reply(0, limits.arrival(_key_of_rate(key)), now)
        if command == FORGET:
            return _pack_reply(limits.forget(_key_of_rate(frame[2:]), now), 0, now)
        if command == ALLOW:
            passes, life = frames.ALLOW_BODY.unpack_from(frame)
            if not passes or life > _LONGEST:
                raise ValueError("it allows a network in a way that nobody can")
            greylisting.allow(frame[frames.ALLOW_BODY.size :], passes, life, now)
            return _pack_reply(0, 0, now)
        if command not in {LOOK_GREYLIST, FORGET_GREYLIST}:
            raise ValueError(f"there is no command {command}")
        (triplet,) = frames.TRIPLET_BODY.unpack_from(frame)
        network = frame[frames.TRIPLET_BODY.size :]
        if command == LOOK_GREYLIST:
            return frames.reply_with_grants(0, now, greylisting.look(network, triplet, now))
        known = greylisting.forget_network(network, now)
        if triplet != frames.NO_TRIPLET:
            known = greylisting.forget_triplet(triplet, now) or known
        return _pack_reply(known, 0, now)

    def _greet(self, frame: bytes) -> bytes:
        version, token = frames.HELLO_BODY.unpack(frame)
        if frame[1] != frames.HELLO or version != frames.VERSION:
            raise ValueError("it does not begin with the greeting of this version")
        self._clients.name(self, token)
        self.token = token
        return frames.REPLY.pack(frames.GREETED, frames.VERSION, 0)

    def _open_account(self, frame: bytes, now: int) -> bytes:
        lease, *numbers, host_size = _unpack_open_account(frame)
        at = _OPEN_ACCOUNT_SIZE + host_size
        host, name = frame[_OPEN_ACCOUNT_SIZE:at], frame[at:]
        account = self._account(name, host, numbers[5:])
        outcome, wait = self._store.limits.open(name, host, numbers[:5], now, account)
        if outcome != ADMITTED:
            return _pack_reply(outcome, wait, 0)
        self._keep(lease, lease_key(name, host) if numbers[4] else b"", account, now)
        return frames.reply_with_grants(ADMITTED, 0, account.grants(now))

    def _settle(self, frame: bytes, now: int) -> bytes:
        lease, *numbers = _unpack_settle(frame)
        account = self._accounts.get(lease)
        if account is None:
            raise ValueError(f"it has no account with lease {lease}")
        code, wait = account.settle(numbers[:5], numbers[5:], now)
        return frames.reply_with_grants(code, wait, account.grants(now))

    def _hold_account(self, frame: bytes) -> None:
        lease, counted, *numbers, host_size = _unpack_hold_account(frame)
        at = _HOLD_ACCOUNT_SIZE + host_size
        host, name = frame[_HOLD_ACCOUNT_SIZE:at], frame[at:]
        account = self._account(name, host, numbers)
        key = lease_key(name, host) if counted else b""
        if key:
            self._store.limits.hold(key)
        self._keep(lease, key, account)

    def _account(self, name: bytes, host: bytes, numbers: list[int]) -> Account:
        if max(numbers) > _LONGEST:
            raise ValueError("a budget of it takes longer to earn than there is time")
        return self._store.limits.account(name, host, tuple(numbers))

    def _keep(self, lease: int, key: bytes, account: Account | None = None, now: int = 0) -> None:
        """Note that `key` is held for this worker under the number `lease`, and its account."""
        if lease in self._leases or len(self._leases) >= MAX_LEASES:
            if key:
                self._store.limits.release(key)
            if account is not None:
                account.close(NOTHING, now)
            raise ValueError(f"it cannot hold lease {lease}")
        self._leases[lease] = key
        if account is not None:
            self._accounts[lease] = account

    def _give_back(self, lease: int, spent: Sequence[int], now: int) -> None:
        key = self._leases.pop(lease, None)
        if key:
            self._store.limits.release(key)
        if self._accounts:
            account = self._accounts.pop(lease, None)
            if account is not None:
                account.close(spent, now)


def _key_of_rate(key: bytes) -> bytes:
    """:raises ValueError: `key` is no rate's."""
    if key[:1] not in frames.RATES:
        raise ValueError("it asks for what is no rate")
    return key
