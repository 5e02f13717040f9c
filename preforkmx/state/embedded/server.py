"""The store process: one thread that owns the state and answers every worker of the machine."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from struct import error as StructError  # noqa: N812 - its own name says nothing
from typing import TYPE_CHECKING, Final, cast

from preforkmx.state.embedded import frames
from preforkmx.state.embedded.database import GreylistDatabase
from preforkmx.state.limits import ADMITTED, lease_key
from preforkmx.state.local import LocalStore
from preforkmx.state.networks import network_octets

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

_log = logging.getLogger("preforkmx.state.store")

#: The most workers that are connected at once; more are closed unheard.
MAX_CLIENTS: Final = 1024
#: The most leases of one worker. One that wants more is broken, and is closed.
MAX_LEASES: Final = 1 << 18
#: How often greylisting is saved, in seconds: what a crash loses at most, plus one write.
SAVE_SECONDS: Final = 1.0

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
    :param database: the SQLite file of greylisting, made when it is missing. It belongs to
        this process alone, and is locked.
    :param ready: called once, when the first worker can be answered.
    :param clock: seconds since 1970.
    :raises BootError: the database cannot be opened, or another process has it. One that is
        damaged is set aside instead.
    """
    store = LocalStore(clock, journal=True)
    # The one thread that touches SQLite: the loop never waits for a disk.
    with ThreadPoolExecutor(1, "preforkmx-state") as thread:
        loop = asyncio.get_running_loop()
        saved = GreylistDatabase(database, store.greylisting)
        await loop.run_in_executor(thread, saved.load, store.now())
        try:
            clients = _Clients(store)
            acceptor = _Acceptor(sock, clients)
            acceptor.start()
            ready()
            try:
                while not stop.is_set():
                    with suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), SAVE_SECONDS)
                    await loop.run_in_executor(thread, saved.save, store.now())
            finally:
                acceptor.stop()
                clients.close()
            # What the workers said between the last save and the end.
            await loop.run_in_executor(thread, saved.save, store.now())
        finally:
            await loop.run_in_executor(thread, saved.close)


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

    Memory is bounded: at most one unfinished frame is kept; one read makes at most a reply of
    17 octets for each 18 octets that came, and while the worker does not read its replies
    nothing more is read from it.
    """

    def __init__(self, clients: _Clients) -> None:
        self._clients = clients
        self._store = clients.store
        self._rest = b""
        self._leases: dict[int, bytes] = {}
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
        """Close the connection; its leases are free at once."""
        self._clients.remove(self)
        release = self._store.limits.release
        leases, self._leases = self._leases, {}
        for key in leases.values():
            release(key)
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
        limits, decide = self._store.limits, self._store.greylisting.decide
        now = self._store.now()
        pack = frames.REPLY.pack
        start, end = 0, len(data)
        while start < end:
            stop = start + 1 + data[start]
            if stop > end or stop == end == start + 1:
                break
            frame = data[start:stop]
            start = stop
            command = frame[1]
            if not self.token:
                replies.append(self._greet(frame))
            elif command == frames.OPEN:
                lease, *numbers, concurrent, size = frames.OPEN_BODY.unpack_from(frame)
                at = frames.OPEN_BODY.size + size
                host, name = frame[frames.OPEN_BODY.size : at], frame[at:]
                outcome, wait = limits.open(
                    name, host, network_octets(host), *numbers, concurrent, now
                )
                if concurrent and outcome == ADMITTED:
                    self._keep(lease, lease_key(name, host))
                replies.append(pack(outcome, wait, 0))
            elif command == frames.GREYLIST:
                delay, window, life, after, spacing, triplet = frames.GREYLIST_BODY.unpack_from(
                    frame
                )
                network = frame[frames.GREYLIST_BODY.size :]
                replies.append(
                    pack(*decide(network, triplet, delay, window, life, after, spacing, now))
                )
            elif command == frames.CLOSE:
                (lease,) = frames.LEASE_BODY.unpack_from(frame)
                key = self._leases.pop(lease, None)
                if key is not None:
                    limits.release(key)
            elif command == frames.TAKE:
                cost, tolerance = frames.TAKE_BODY.unpack_from(frame)
                wait = limits.take(b"t" + frame[frames.TAKE_BODY.size :], cost, tolerance, now)
                replies.append(pack(1 if wait else 0, wait, 0))
            elif command == frames.HOLD:
                (lease,) = frames.LEASE_BODY.unpack_from(frame)
                key = frame[frames.LEASE_BODY.size :]
                limits.hold(key)
                self._keep(lease, key)
            else:
                raise ValueError(f"there is no command {command}")
        self._rest = data[start:]
        return replies

    def _greet(self, frame: bytes) -> bytes:
        version, token = frames.HELLO_BODY.unpack(frame)
        if frame[1] != frames.HELLO or version != frames.VERSION:
            raise ValueError("it does not begin with the greeting of this version")
        self._clients.name(self, token)
        self.token = token
        return frames.REPLY.pack(frames.GREETED, frames.VERSION, 0)

    def _keep(self, lease: int, key: bytes) -> None:
        """Note that `key` is held for this worker under the number `lease`."""
        if lease in self._leases or len(self._leases) >= MAX_LEASES:
            self._store.limits.release(key)
            raise ValueError(f"it cannot hold lease {lease}")
        self._leases[lease] = key
