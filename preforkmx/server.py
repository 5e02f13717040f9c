"""Server: the library's entry. One process, the caller's loop; workers run the same object."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from preforkmx.context import Context, Signal
from preforkmx.middleware.base import Middleware
from preforkmx.middleware.chain import compile_chain, watched
from preforkmx.middleware.redirect import redirected
from preforkmx.protocol.settings import Settings
from preforkmx.session.acceptor import Acceptor
from preforkmx.session.listener import Listener, split_address
from preforkmx.session.queues import (
    LONGEST_SECONDS,
    LOOK_SECONDS,
    Emptying,
    drop_syns,
    somebody_waits,
)
from preforkmx.session.reception import Reception
from preforkmx.session.service import HOOK_FAILURE, Service
from preforkmx.state.networks import NetworkSet

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence
    from types import TracebackType

    from preforkmx.errors import SMTPError
    from preforkmx.middleware.base import Handler
    from preforkmx.middleware.chain import Watch
    from preforkmx.model import Peer
    from preforkmx.observe.counters import Counters
    from preforkmx.observe.log import AccessLog
    from preforkmx.state.networks import IPNetwork


class Server:
    """An SMTP server.

    ::

        server = Server(hostname="mx.example.com", handler=deliver)
        server.use(require_tls())
        server.listen("127.0.0.1:2525")
        async with server:
            await server.draining

    The defaults are the seed's; ``preforkmx serve`` has its own (docs/reference).

    :param hostname: this host's name in the greeting; the machine's name when left out.
    :param tls: offers STARTTLS, and serves implicit-TLS listeners.
    :param handler: takes messages; without one they are accepted and thrown away. A delivery
        target is a Middleware whose handler runs last.
    :param hook_failure: the reply when a hook raises something else than an SMTPError.
    :param base_context: the Context from which each session's is made.
    :param conn_context: called with a new session's Context and Peer, returns its Context.
    :param message_size: octets of a message, as they come over the wire.
    :param recipients: recipients of a transaction, at least 100 (RFC 5321 section 4.5.3.1.8).
    :param command_timeout: seconds for each wait for the client, and for the hooks of a phase.
    :param session_time: seconds of a session, looked at between transactions; None: no limit.
    :param errors: refused commands since the last delivered message, then 421.
    :param auth_failures: failed authentications of a session, then 421.
    :param delivery_timeout: seconds that the handlers have for a message, not counting the
        waits for the client.
    :param max_sessions: sessions at once; more get 421, but for a balancer's own checks.
    :param allow_insecure_auth: offer AUTH in plain text too.
    :param smtputf8: offer SMTPUTF8 (RFC 6531): addresses and headers may hold UTF-8.
    :param dsn: offer DSN (RFC 3461); the handler finds it in ``envelope.dsn``, and has to
        write the notifications, or to hand the wish on.
    :param chunking: offer CHUNKING and BINARYMIME (RFC 3030).
    :param requiretls: offer REQUIRETLS under TLS (RFC 8689); the handler has to keep it.
    :param bare_newline: what becomes of a CR or LF that stands alone: ``"reject"`` refuses the
        message or command and closes, ``"normalize"`` takes a LF for CRLF and a CR for a space.
    :param normalize_from: networks whose clients' bare newlines are normalised in any case.
    :param hops: Received headers of a message; more are a loop (RFC 5321 section 6.3).
    :param commands: commands since the last delivered message, accepted MAIL, RCPT, DATA and
        BDAT not counted, then 421; 0: no limit.
    :param transactions: accepted MAIL commands of a session, then 421; 0: no limit.
    :param strict_flights: refuse, with 554 and a close, clients that send more where RFC 2920
        makes them wait for an answer.
    :param greeting_delay: seconds in which a client has to be silent before it is greeted; who
        speaks gets 554. 0: no wait.
    :param minimum_rate: octets a second of a message, over a minute of waiting for the client;
        who is slower gets 421. 0: no minimum.
    :param logger: for what goes wrong, and the parent of each session's ``ctx.logger``. At
        debug level it also gets the dialogue, without credentials.
    :param access_log: gets a line for a refused connection, a transaction, a session's end.
    """

    def __init__(
        self,
        *,
        hostname: str | None = None,
        tls: ssl.SSLContext | None = None,
        handler: Handler | Middleware | None = None,
        hook_failure: SMTPError = HOOK_FAILURE,
        base_context: Context | None = None,
        conn_context: Callable[[Context, Peer], Context] | None = None,
        message_size: int = 10_240_000,
        recipients: int = 100,
        command_timeout: float = 60.0,
        session_time: float | None = None,
        errors: int = 20,
        auth_failures: int = 3,
        delivery_timeout: float = 240.0,
        max_sessions: int = 100,
        allow_insecure_auth: bool = False,
        smtputf8: bool = False,
        dsn: bool = False,
        chunking: bool = True,
        requiretls: bool = False,
        bare_newline: Literal["reject", "normalize"] = "reject",
        normalize_from: Iterable[IPNetwork] = (),
        hops: int = 100,
        commands: int = 0,
        transactions: int = 0,
        strict_flights: bool = False,
        greeting_delay: float = 0.0,
        minimum_rate: int = 0,
        logger: logging.Logger | None = None,
        access_log: AccessLog | None = None,
    ) -> None:
        if recipients < 100:
            raise ValueError("recipients is at least 100 (RFC 5321 section 4.5.3.1.8)")
        self._middleware: list[Middleware] = []
        self._delivery = (
            handler
            if isinstance(handler, Middleware) or handler is None
            else Middleware(handler=handler)
        )
        self._watch: Watch | None = None
        self._listeners: list[Listener] = []
        self._sockets: list[socket.socket] = []
        self._acceptors: list[Acceptor] = []
        self._stack: contextlib.AsyncExitStack | None = None
        self._limits: dict[str, Any] = {
            "message_size": message_size,
            "recipients": recipients,
            "errors": errors,
            "auth_failures": auth_failures,
            "chunking": chunking,
            "hops": hops,
            "commands": commands,
            "transactions": transactions,
            "strict_flights": strict_flights,
        }
        self._bare_newline = bare_newline
        # What promises something for the message's way from here on.
        self._wishes = {
            "BINARYMIME": chunking,
            "DSN": dsn,
            "REQUIRETLS": requiretls,
            "SMTPUTF8": smtputf8,
        }
        self._allow_insecure_auth = allow_insecure_auth
        self._settings: dict[tuple[Listener, bool, frozenset[str] | None], Settings] = {}
        self._service = Service(
            settings=self._settings_for,
            logger=logger or logging.getLogger("preforkmx.session"),
            tls=tls,
            access_log=access_log,
            hook_failure=hook_failure,
            base_context=base_context or Context(),
            conn_context=conn_context,
            hostname=hostname or socket.getfqdn(),
            command_timeout=command_timeout,
            delivery_timeout=delivery_timeout,
            greeting_delay=greeting_delay,
            minimum_rate=minimum_rate,
            normalize_from=NetworkSet(normalize_from),
            session_time=session_time,
            max_sessions=max_sessions,
        )
        self._reception = Reception(self._service)

    # --- what it is made of -------------------------------------------------------------------

    def use(self, *middleware: Middleware) -> None:
        """Add middleware; hooks run in the order of their use.

        :raises TypeError: for what is not a Middleware.
        :raises RuntimeError: after the start: the chain is compiled once.
        """
        if self._stack is not None:
            raise RuntimeError("use() comes before the start")
        for item in middleware:
            if not isinstance(item, Middleware):
                raise TypeError(f"use() takes Middleware, not {item!r}")
            self._middleware.append(item)

    def listen(self, address: str | Listener, **options: Any) -> None:
        """Add a listener that ``async with server`` binds.

        :param address: ``"HOST:PORT"``, port 0 being any free port (see :attr:`addresses`),
            or ``"unix:/PATH"``; or a :class:`~preforkmx.session.listener.Listener`.
        :param options: the other parameters of Listener: ``tls``, ``backlog``, ``protocol``,
            ``proxy_protocol``, ``proxy_from``, ``xclient_from``.
        :raises RuntimeError: after the start.
        """
        if self._stack is not None:
            raise RuntimeError("listen() comes before the start")
        if not isinstance(address, Listener):
            address = Listener(address, **options)
        elif options:
            raise TypeError("a Listener has its options already")
        self._listeners.append(address)

    def host(
        self,
        *,
        first: Sequence[Middleware] = (),
        tls: ssl.SSLContext | None = None,
        hook_failure: SMTPError | None = None,
        max_sessions: int | None = None,
        access_log: AccessLog | None = None,
        delivery: Middleware | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Take, before the start, what is for the process to say that runs this server.

        :param first: runs before this server's own middleware.
        :param tls: replaces this server's context.
        :param hook_failure: replaces the library's default, not a choice of this server's.
        :param max_sessions: replaces this server's.
        :param access_log: replaces this server's.
        :param delivery: replaces this server's.
        :param watch: is given each hook and the name of its phase, and returns what takes its
            place.
        """
        if self._stack is not None:
            raise RuntimeError("host() comes before the start")
        service = self._service
        self._middleware[:0] = first
        if tls is not None:
            service.tls = tls
        if hook_failure is not None and service.hook_failure is HOOK_FAILURE:
            service.hook_failure = hook_failure
        if max_sessions is not None:
            service.max_sessions = max_sessions
        if access_log is not None:
            service.access_log = access_log
        if delivery is not None:
            self._delivery = delivery
        if watch is not None:
            self._watch = watch

    @property
    def tls(self) -> ssl.SSLContext | None:
        """The TLS context; None: neither STARTTLS nor implicit TLS."""
        return self._service.tls

    @property
    def middleware(self) -> tuple[Middleware, ...]:
        """What was added with :meth:`use`, in its order."""
        return tuple(self._middleware)

    @property
    def delivery(self) -> Middleware | None:
        """What `handler` was, as a Middleware."""
        return self._delivery

    @property
    def hostname(self) -> str:
        """This host's name."""
        return self._service.hostname

    @property
    def counters(self) -> Counters:
        """What this server has counted since it was made."""
        return self._service.counters

    @property
    def sessions(self) -> int:
        """Open sessions."""
        return len(self._service.sessions)

    @property
    def in_data(self) -> int:
        """Sessions between 354 and the reply after their message."""
        return self._service.in_data

    @property
    def draining(self) -> Signal:
        """Set, and awaitable: :meth:`drain` or :meth:`shutdown` was called."""
        return self._service.draining

    # --- start and stop -------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator[None]:
        """Enter every lifespan, serve what its :meth:`acceptor` s take, leave the lifespans.

        Leaving aborts the sessions that are left.
        """
        if self._stack is not None:
            raise RuntimeError("this server runs already")
        service = self._service
        service.chain = compile_chain(
            [*self._middleware, *([redirected(self._delivery)] if self._delivery else [])]
        )
        if self._watch is not None:
            service.chain = watched(service.chain, self._watch)
        service.id_prefix = f"{int(time.time()):x}{os.getpid():x}-"
        service.draining, service.retiring, service.aborting = Signal(), False, False
        service.ending = service.lame_duck = False
        self._settings.clear()
        loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as stack:
            self._stack = stack
            try:
                for link in service.chain.lifespan:
                    await stack.enter_async_context(link.hook())
                sweeper = loop.create_task(self._reception.sweep())
                try:
                    yield
                finally:
                    # The sweep is what ends a disconnect hook that does not.
                    try:
                        self.abort()
                        await self.wait_closed()
                    finally:
                        sweeper.cancel()
                        await asyncio.wait((sweeper,))
            finally:
                self._stack = None

    async def __aenter__(self) -> Self:
        self._running = self.started()
        await self._running.__aenter__()
        try:
            for listener in self._listeners:
                sock = _bind(listener)
                self._sockets.append(sock)
                acceptor = self.acceptor(sock, listener)
                self._acceptors.append(acceptor)
            for acceptor in self._acceptors:
                acceptor.start()
        except BaseException as error:
            self._close_listeners()
            await self._running.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close_listeners()
        await self._running.__aexit__(kind, error, traceback)

    async def serve(self, address: str | Listener, **options: Any) -> None:
        """Listen on `address` too, as :meth:`listen` does, and serve until :meth:`shutdown`."""
        self.listen(address, **options)
        async with self:
            await self._service.draining
            await self.wait_closed()

    async def shutdown(self, deadline: float = 30.0) -> None:
        """Stop: take no more connections, let transactions finish, say 421 to the rest.

        It takes a second at least: new connections are held off at once, but a client whose
        handshake is under way would be reset by a port that closes at once, so it is waited for
        and greeted first.

        :param deadline: seconds for that and for the transactions; what is not over then gets
            421 and no 250, and after 5 seconds more its connection is aborted.
        """
        loop = asyncio.get_running_loop()
        ends = loop.time() + deadline
        try:
            await self._empty_the_queues(deadline)
        finally:
            for acceptor in self._acceptors:
                acceptor.accept_now()
            self._close_listeners()
        self.drain()
        left = max(0.0, ends - loop.time())
        for seconds, then in ((left, self.abort_transactions), (5.0, self.abort)):
            try:
                async with asyncio.timeout(seconds):
                    await self.wait_closed()
                return
            except TimeoutError:
                then()
        await self.wait_closed()

    async def _empty_the_queues(self, seconds: float) -> None:
        """Let no new connection begin, and serve those that have begun, for a while."""
        for sock in self._sockets:
            self._hold_off(sock)
        longest = min(seconds, LONGEST_SECONDS)
        emptying = Emptying(self._waiting, asyncio.get_running_loop().time, longest)
        # Somebody else may close them meanwhile: a second call, or the end of the block.
        while self._sockets:
            await asyncio.sleep(min(LOOK_SECONDS, longest))
            if emptying.look():
                return

    def _hold_off(self, sock: socket.socket) -> None:
        if sock.family == socket.AF_UNIX:
            Path(sock.getsockname()).unlink(missing_ok=True)
            return
        try:
            drop_syns(sock)
        except OSError as error:
            self._service.logger.warning("new connections cannot be held off: %s", error)

    def _waiting(self) -> int:
        return sum(map(somebody_waits, self._sockets))

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each listener, in the order of :meth:`listen`, once it is bound.

        Those of a unix socket are its path and 0.
        """
        return [
            (sock.getsockname(), 0) if sock.family == socket.AF_UNIX else sock.getsockname()[:2]
            for sock in self._sockets
        ]

    def _close_listeners(self) -> None:
        for acceptor in self._acceptors:
            acceptor.stop()
        for sock in self._sockets:
            if sock.family == socket.AF_UNIX and sock.fileno() >= 0:
                Path(sock.getsockname()).unlink(missing_ok=True)
            sock.close()
        self._acceptors.clear()
        self._sockets.clear()

    # --- connections -----------------------------------------------------------------------------

    def acceptor(self, sock: socket.socket, listener: Listener) -> Acceptor:
        """Return the accept loop for a listening socket; the caller starts and stops it.

        :raises ValueError: the listener's TLS is implicit, and the server has no context for it.
        """
        if listener.tls == "implicit" and self._service.tls is None:
            raise ValueError(f"{listener.address} is an implicit TLS listener: Server(tls=…)")
        return Acceptor(
            asyncio.get_running_loop(), sock, listener, self._reception.take, self._service.logger
        )

    def take(self, sock: socket.socket, address: object, listener: Listener) -> None:
        """Serve a connection that somebody else accepted, or made, while the server runs.

        :param sock: a non-blocking stream socket; its session closes it.
        :param address: the client's, as :meth:`socket.socket.accept` gives it.
        :param listener: what the session is held to.
        """
        self._reception.take(sock, address, listener)

    def _settings_for(self, listener: Listener, normalize: bool) -> Settings:  # noqa: FBT001
        kept = self._delivery.extensions if self._delivery is not None else None
        if callable(kept):
            kept = kept()
        settings = self._settings.get((listener, normalize, kept))
        if settings is None:
            service = self._service
            settings = Settings(
                hostname=service.hostname,
                starttls=listener.tls == "starttls" and service.tls is not None,
                auth=bool(service.chain.authenticate),
                allow_insecure_auth=self._allow_insecure_auth,
                lmtp=listener.protocol == "lmtp",
                bare_newline="normalize" if normalize else self._bare_newline,
                binarymime=self._promises("BINARYMIME", kept),
                dsn=self._promises("DSN", kept),
                requiretls=self._promises("REQUIRETLS", kept),
                smtputf8=self._promises("SMTPUTF8", kept),
                **self._limits,
            )
            self._settings[listener, normalize, kept] = settings
        return settings

    def _promises(self, extension: str, kept: frozenset[str] | None) -> bool:
        """Say whether `extension` is wished, and the delivery can keep it."""
        return self._wishes[extension] and (kept is None or extension in kept)

    # --- drain --------------------------------------------------------------------------------------

    def lame_duck(self) -> None:
        """Answer health checks with 421 from now on, and serve clients as before.

        A load balancer that sees it sends no more clients; then :meth:`drain`.
        """
        self._service.lame_duck = True

    def drain(self) -> None:
        """Say 421 to idle sessions now, and to the others after their transaction."""
        self._reception.drain()

    def retire(self) -> None:
        """Say 421 to each session at its next command outside a transaction."""
        self._reception.retire()

    def abort_transactions(self) -> None:
        """The drain's deadline: 421 to all; a message that still arrives gets no 250."""
        self._reception.abort_transactions()

    def abort(self) -> None:
        """End every session at once, without a word."""
        self._reception.abort()

    async def wait_closed(self) -> None:
        """Wait until there is no session."""
        await self._reception.wait_closed()


def _bind(listener: Listener) -> socket.socket:
    path = listener.unix_path
    if path is not None:
        return _bind_unix(path, listener.backlog)
    host, port = split_address(listener.address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(listener.backlog)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_unix(path: Path, backlog: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            # A dead one is replaced; a live one belongs to somebody.
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(1.0)
                if probe.connect_ex(str(path)) == 0:
                    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), str(path))
            path.unlink()
        sock.bind(str(path))
        sock.listen(backlog)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
