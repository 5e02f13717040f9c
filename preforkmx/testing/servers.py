"""A server for the length of a test: in the test's own loop, or in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from preforkmx.session.listener import Listener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType

    from preforkmx.server import Server
    from preforkmx.session.listener import TLSMode

START_SECONDS = 10.0
"""How long the lifespans of a server in a thread have to be entered."""
STOP_SECONDS = 10.0
"""How long a server in a thread has to stop, its hooks and its lifespans included."""


class Address(NamedTuple):
    """Where a server listens: ``smtplib.SMTP(*address)``."""

    host: str
    port: int


@contextlib.asynccontextmanager
async def running(
    server: Server, *, host: str = "127.0.0.1", tls: TLSMode = "starttls", grace: float = 1.0
) -> AsyncIterator[Address]:
    """Serve in this loop, on a free port of `host`, while the block runs.

    ::

        async with running(server) as address, await Client.connect(address) as client:
            ...

    The server's own listeners stay closed, so a server that is configured for port 25 can be
    tested as it is, and it can be started again afterwards.

    :param tls: as :meth:`Server.listen <preforkmx.server.Server.listen>` has it.
    :param grace: seconds that sessions have to end when the block is left; what is left then
        is aborted. A session that said QUIT needs none of it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, backlog=128) as sock:
        address = Address(*sock.getsockname()[:2])
        shown = f"[{host}]" if family is socket.AF_INET6 else host
        listener = Listener(f"{shown}:{address.port}", tls=tls)
        async with server.started():
            acceptor = server.acceptor(sock, listener)
            acceptor.start()
            try:
                yield address
            finally:
                acceptor.stop()
                sock.close()
                server.drain()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(grace):
                        await server.wait_closed()


class ThreadedServer:
    """A server in a loop and a thread of its own, for clients that block, smtplib say.

    ::

        with ThreadedServer(server) as running, smtplib.SMTP(*running.address) as client:
            client.sendmail(...)

    Hooks run in that thread: what they share with the test has to bear it, as
    :class:`~preforkmx.testing.recorder.Recorder` does.

    :param loop_factory: makes the loop, ``uvloop.new_event_loop`` say; asyncio's when left out.
    :param host: as for :func:`running`, like `tls` and `grace`.
    """

    def __init__(
        self,
        server: Server,
        *,
        host: str = "127.0.0.1",
        tls: TLSMode = "starttls",
        grace: float = 1.0,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    ) -> None:
        self.server = server
        self._host = host
        self._tls: TLSMode = tls
        self._grace = grace
        self._loop_factory = loop_factory
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told_to_stop: asyncio.Event | None = None
        self._address: Address | None = None
        self._error: BaseException | None = None

    @property
    def address(self) -> Address:
        """Host and port, once the server was started."""
        if self._address is None:
            raise RuntimeError("the server was not started")
        return self._address

    @property
    def host(self) -> str:
        """The address that it listens on."""
        return self.address.host

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self.address.port

    def start(self) -> None:
        """Start the thread, and return once the server accepts.

        :raises Exception: what a lifespan raised.
        :raises TimeoutError: after :data:`START_SECONDS`.
        """
        if self._thread is not None:
            raise RuntimeError("a ThreadedServer is started once")
        self._thread = threading.Thread(target=self._run, name="smtp server", daemon=True)
        self._thread.start()
        if not self._ready.wait(START_SECONDS):
            raise TimeoutError(f"the server did not start within {START_SECONDS:g} s")
        self._raise_error()

    def stop(self) -> None:
        """Stop the server and its thread. A second call does nothing.

        :raises Exception: what a lifespan raised while it closed.
        :raises TimeoutError: after :data:`STOP_SECONDS`.
        """
        thread = self._thread
        if thread is None or self._loop is None or self._told_to_stop is None:
            return
        # A loop that is closed already was left by an error, which is raised below.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._told_to_stop.set)
        thread.join(STOP_SECONDS)
        if thread.is_alive():
            raise TimeoutError(f"the server did not stop within {STOP_SECONDS:g} s")
        self._raise_error()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=self._loop_factory) as runner:
                runner.run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._told_to_stop = asyncio.Event()
        async with running(
            self.server, host=self._host, tls=self._tls, grace=self._grace
        ) as self._address:
            self._ready.set()
            await self._told_to_stop.wait()


class StartServer(Protocol):
    """What the fixture ``smtp_server`` is: called with a server, it starts it for this test."""

    def __call__(
        self,
        server: Server,
        *,
        host: str = "127.0.0.1",
        tls: TLSMode = "starttls",
        grace: float = 1.0,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    ) -> ThreadedServer:
        """Start `server`; the parameters are those of :class:`ThreadedServer`."""
