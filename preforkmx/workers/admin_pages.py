"""What the admin process serves, and how little a client can use up there.

Every address is read with GET or HEAD, takes no body and no parameter, and names no file. A
connection carries one request and is over after :data:`CONNECTION_SECONDS`, whatever it does;
there are at most :data:`CONNECTIONS`.

Imported by the admin process only: Starlette and uvicorn are nothing that a worker needs.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from preforkmx.observe.metrics import exposition
from preforkmx.workers.reports import MasterSilent

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from preforkmx.workers.reports import Reports

CONNECTIONS = 64
"""A connection beyond them is closed at once."""
CONNECTION_SECONDS = 15.0
"""From its beginning to its end; an answer takes milliseconds."""
HEADER_OCTETS = 8192
"""Request line and headers together."""
BACKLOG = 128
"""The queue of the socket; the master listens with the same."""
STOP_SECONDS = 1
"""What an answer that is under way gets at the end."""

READY_STATES = frozenset({"ready", "reloading"})
"""States of the server in which it takes mail from everybody."""
UNSERVED = "unserved"
"""Said instead of them where no slot has a worker that is ready and whose loop turns: who
connects waits for a greeting."""


def pages(reports: Reports) -> Starlette:
    """Return the application."""

    async def healthz(_: Request) -> Response:
        """Answer 200 while the master is there and answers this process."""
        await reports.latest()
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        """Answer 200 while the server takes mail from everybody, else 503 and why not."""
        document = await reports.latest()
        state = document["state"]
        if state in READY_STATES and not document["served"]:
            return PlainTextResponse(f"{UNSERVED}\n", 503)
        return PlainTextResponse(f"{state}\n", 200 if state in READY_STATES else 503)

    async def status(_: Request) -> Response:
        """Answer with the document of ``preforkmx status --json``."""
        return JSONResponse(await reports.latest())

    async def metrics(request: Request) -> Response:
        """Answer with every metric."""
        text, media_type = exposition(await reports.latest(), request.headers.get("accept", ""))
        return Response(text, headers={"Content-Type": media_type})

    async def silent(_: Request, error: Exception) -> Response:
        return PlainTextResponse(f"{error}\n", 503)

    application = Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/status.json", status),
            Route("/metrics", metrics),
        ],
        exception_handlers={MasterSilent: silent},
    )
    application.router.redirect_slashes = False
    return application


class OneRequest:
    """Refuses bodies and long headers, and ends the connection after the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Be an ASGI application."""

        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], (b"connection", b"close")]
                headers.append((b"cache-control", b"no-store"))
                message = {**message, "headers": headers}
            await send(message)

        app = self._app
        names = {name for name, value in scope["headers"] if value != b"0"}
        octets = len(scope["raw_path"]) + len(scope["query_string"])
        octets += sum(len(name) + len(value) for name, value in scope["headers"])
        if octets > HEADER_OCTETS:
            # h11 holds back only what is not there whole, and much may come in one read.
            app = PlainTextResponse("too long\n", 431)
        elif names & {b"content-length", b"transfer-encoding"}:
            app = PlainTextResponse("no body is taken here\n", 413)
        await app(scope, receive, send_last)


class BriefConnection(H11Protocol):
    """A connection whose time is short."""

    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, where there are not too many."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
        else:
            self._end = self.loop.call_later(CONNECTION_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(exc)


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: the master says when to stop."""

    def __init__(self, config: uvicorn.Config, serves: Callable[[], None]) -> None:
        super().__init__(config)
        self._serves = serves

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell when it accepts."""
        await super().startup(sockets)
        self._serves()


async def serve_pages(
    sock: socket.socket, reports: Reports, serves: Callable[[], None], stop: asyncio.Event
) -> None:
    """Serve on a listening socket until `stop`.

    :param serves: called when it accepts.
    """
    server = _Server(
        uvicorn.Config(
            OneRequest(pages(reports)),
            http=BriefConnection,
            ws="none",
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            limit_concurrency=CONNECTIONS,
            h11_max_incomplete_event_size=HEADER_OCTETS,
            timeout_graceful_shutdown=STOP_SECONDS,
        ),
        serves,
    )

    async def end() -> None:
        await stop.wait()
        server.should_exit = True

    ending = asyncio.create_task(end())
    try:
        await server.serve([sock])
    finally:
        ending.cancel()
