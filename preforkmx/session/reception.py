"""Reception: takes connections in, keeps their sessions, and sees them out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from math import inf
from typing import TYPE_CHECKING

from preforkmx.errors import ProxyError
from preforkmx.model import IPAddress, Peer
from preforkmx.protocol import replies
from preforkmx.protocol.core import Core
from preforkmx.protocol.replies import Reply
from preforkmx.session.farewells import Farewells
from preforkmx.session.forwarded import proxied_peer
from preforkmx.session.proxy import read_proxy_header
from preforkmx.session.record import log_refused_already
from preforkmx.session.session import (
    TLS_HANDSHAKE_SECONDS,
    TLS_SHUTDOWN_SECONDS,
    Session,
)
from preforkmx.state.networks import NetworkSet

if TYPE_CHECKING:
    import socket

    from preforkmx.protocol.endpoint import Trace
    from preforkmx.session.listener import IPNetwork, Listener
    from preforkmx.session.service import Service

SWEEP_SECONDS = 1.0
"""How often the deadlines of all sessions are looked at."""
PROXY_HEADER_SECONDS = 5.0
"""How long a proxy has for its header: it sends it before anything of the client's."""
SPARE_SESSIONS = 32
"""Beyond `max_sessions`, for connections whose PROXY header has to be read before it is known
whether they are a balancer's own checks: those are served by a full worker too."""
_EARLY_OCTETS = 4096
CROWDED = 0.9
"""From this part of its sessions on a worker is nearly full."""
CROWDED_SECONDS = 10.0
"""How long a client has for a command then."""


class Reception:
    """All sessions of one server, in one loop."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._idle: list[asyncio.Future[None]] = []
        self._farewells = Farewells(self._look_idle)

    # --- in ---------------------------------------------------------------------------------

    def take(self, sock: socket.socket, address: object, listener: Listener) -> None:
        """Serve a connection that was accepted.

        :param sock: non-blocking; its session closes it.
        :param address: as :meth:`socket.socket.accept` gave it.
        :raises MemoryError: there is none for a session; the connection is still the caller's.
        """
        service = self._service
        service.counters.connections += 1
        full = len(service.sessions) >= service.max_sessions
        spare = SPARE_SESSIONS if listener.proxy_protocol else 0
        if len(service.sessions) >= service.max_sessions + spare:
            self._turn_away(sock, listener)
            return
        loop = asyncio.get_running_loop()
        host, port = _client(address)
        peer = Peer(host, port, service.hostname, listener.address)
        # Behind a proxy it is known only from its header who the client is.
        if service.chain.blocked and not listener.proxy_protocol:
            last_word = self._refused_already(peer, listener)
            if last_word is not None:
                _dismiss(sock, last_word)
                return
        session = Session(service, self._core(listener, peer), peer, loop)
        session.lmtp = listener.protocol == "lmtp"
        self._prepare(session)
        running = self._run(session, sock, loop, listener, spare=full)
        try:
            service.sessions.add(session)
            session.task = loop.create_task(running)
        except MemoryError:
            # The caller has the connection still; nobody would ever end this session.
            running.close()
            service.sessions.discard(session)
            raise

    def _refused_already(
        self, peer: Peer, listener: Listener, via: str | None = None
    ) -> bytes | None:
        """Return the last word to a client that a middleware refuses anyway; None: to no other."""
        service = self._service
        if peer.address is None or peer.is_health_check:
            return None
        for name, blocked in service.chain.blocked:
            try:
                error = blocked(peer.address)
            except Exception:
                service.counters.hook_failures += 1
                service.logger.exception("hook failed", extra={"by": name})
                continue
            if error is None:
                continue
            service.counters.connections_refused += 1
            reply = Reply.from_error(error)
            if service.access_log is not None:
                log_refused_already(
                    service.access_log, peer, reply, by=name, limit=error.limit, via=via
                )
            # Before a TLS handshake there is nothing to say.
            return b"" if listener.tls == "implicit" else reply.octets(extended=False)
        return None

    def _turn_away(self, sock: socket.socket, listener: Listener) -> None:
        """Say 421 and close; before a TLS handshake there is nothing to say."""
        self._service.counters.connections_refused += 1
        if listener.tls == "implicit":
            sock.close()
        else:
            self._farewells.say(sock, replies.TOO_MANY_SESSIONS.octets(extended=False))

    def _core(self, listener: Listener, peer: Peer) -> Core:
        service = self._service
        address = peer.address
        return Core(
            service.settings(listener, address is not None and address in service.normalize_from),
            tls=listener.tls == "implicit",
            may_forward=bool(listener.xclient_from)
            and address is not None
            and address in _network_set(listener.xclient_from),
        )

    def _prepare(self, session: Session) -> None:
        session.core.trace = self._trace(session)
        if self._service.draining or self._service.retiring:
            session.core.last_call = replies.SHUTTING_DOWN

    async def _hear_the_proxy(
        self,
        session: Session,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        listener: Listener,
    ) -> None:
        """Read the PROXY header, and learn from it who the client is.

        It comes first, before a TLS handshake too.

        :raises ProxyError: there is none that can be believed.
        """
        proxy = session.peer
        if proxy.address is not None and proxy.address not in _network_set(listener.proxy_from):
            raise ProxyError("PROXY headers of this address are not believed")
        session.deadline = loop.time() + PROXY_HEADER_SECONDS
        info = await read_proxy_header(loop, sock)
        session.deadline = inf
        session.peer = proxied_peer(proxy, info)
        session.via = proxy.host
        session.core = self._core(listener, session.peer)
        self._prepare(session)

    async def _run(
        self,
        session: Session,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        listener: Listener,
        *,
        spare: bool,
    ) -> None:
        """Serve a connection to its end.

        :param spare: the server was full when it came.
        """
        service = self._service
        waits_for_proxy = listener.proxy_protocol
        implicit = False
        try:
            if waits_for_proxy:
                await self._hear_the_proxy(session, sock, loop, listener)
                waits_for_proxy = False
                if spare and not self._has_room(session):
                    service.sessions.discard(session)
                    self._turn_away(sock, listener)
                    self._look_idle()
                    return
                last_word = self._refused_already(session.peer, listener, session.via)
                if last_word is not None:
                    service.sessions.discard(session)
                    if last_word:
                        self._farewells.say(sock, last_word)
                    else:
                        sock.close()
                    self._look_idle()
                    return
            implicit = listener.tls == "implicit"
            if implicit:
                # The handshake's own timeout comes first; this one needs nothing of the transport.
                session.deadline = loop.time() + TLS_HANDSHAKE_SECONDS + TLS_SHUTDOWN_SECONDS
                await loop.connect_accepted_socket(
                    lambda: session,
                    sock,
                    ssl=service.tls,
                    ssl_handshake_timeout=TLS_HANDSHAKE_SECONDS,
                    ssl_shutdown_timeout=TLS_SHUTDOWN_SECONDS,
                )
                session.deadline = inf
                service.counters.tls_handshakes += 1
            else:
                await loop.connect_accepted_socket(lambda: session, sock)
        except BaseException as error:
            # Neither connection_made nor connection_lost was called: nobody else closes it.
            sock.close()
            service.sessions.discard(session)
            self._look_idle()
            if implicit:
                service.counters.tls_failures += 1
            elif waits_for_proxy:
                self._no_proxy_header(session, listener, error)
            if not isinstance(error, (OSError, ProxyError, asyncio.CancelledError)):
                service.logger.exception("connection failed", extra={"session": session.id})
            return
        try:
            await session.run()
        finally:
            self._look_idle()

    def _has_room(self, session: Session) -> bool:
        """Say whether a session that came when the server was full can be served.

        A balancer whose check is refused takes the whole server for one that is down, and the
        clients of its other workers are sent away too.
        """
        service = self._service
        return session.peer.is_health_check or len(service.sessions) <= service.max_sessions

    def _no_proxy_header(self, session: Session, listener: Listener, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError) and not session.expired:
            # Server.abort(): the header may have been on its way.
            return
        self._service.counters.proxy_failures += 1
        if isinstance(error, ProxyError) and error.closed:
            # A balancer that only looks whether the port is open.
            return
        reason = str(error) if isinstance(error, ProxyError) else "no PROXY header in time"
        self._service.logger.warning(
            "no PROXY header",
            extra={
                "session": session.id,
                "peer": session.peer.host,
                "listener": listener.address,
                "error": reason,
            },
        )

    def _trace(self, session: Session) -> Trace | None:
        logger = self._service.logger
        if not logger.isEnabledFor(logging.DEBUG):
            return None

        def trace(side: str, octets: bytes) -> None:
            text = octets.decode("utf-8", "backslashreplace").rstrip("\r\n")
            for line in text.split("\r\n"):
                logger.debug("%s: %s", side, line, extra={"session": session.id})

        return trace

    # --- out --------------------------------------------------------------------------------

    def drain(self) -> None:
        """Say 421 to idle sessions now, and to the others after their transaction."""
        self._service.ending = True
        self._service.draining.set()
        for session in list(self._service.sessions):
            session.core.last_call = replies.SHUTTING_DOWN
            if not session.core.in_transaction:
                session.wake()

    def retire(self) -> None:
        """Say 421 to each session at its next command outside a transaction."""
        self._service.retiring = True
        self._service.ending = True
        for session in self._service.sessions:
            session.core.last_call = replies.SHUTTING_DOWN

    def abort_transactions(self) -> None:
        """The drain's deadline: 421 to all; a message that still arrives gets no 250."""
        self._service.aborting = True
        self._service.ending = True
        self._service.draining.set()
        for session in list(self._service.sessions):
            session.wake()

    def abort(self) -> None:
        """End every session at once, without a word."""
        self._farewells.close()
        loop = asyncio.get_running_loop()
        for session in list(self._service.sessions):
            session.abort()
            if session.task is not None:
                # In the next turn: a task that is cancelled before its first step never runs,
                # and nobody else would close the socket it was given.
                loop.call_soon(session.task.cancel)

    async def wait_closed(self) -> None:
        """Wait until there is no session, and nobody who is told why there is none."""
        while self._service.sessions or self._farewells:
            waiter = asyncio.get_running_loop().create_future()
            self._idle.append(waiter)
            await waiter

    def _look_idle(self) -> None:
        if self._idle and not self._service.sessions and not self._farewells:
            waiters, self._idle = self._idle, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def sweep(self) -> None:
        """Look at the deadlines of all sessions, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.expire_late(loop.time())

    def expire_late(self, now: float) -> None:
        """Expire the sessions whose deadline is over.

        :param now: on the loop's clock.
        """
        service = self._service
        self._farewells.expire_late(now)
        # Who keeps a nearly full worker waiting keeps others out.
        crowded = len(service.sessions) >= service.max_sessions * CROWDED
        patience = min(CROWDED_SECONDS, service.command_timeout)
        for session in list(service.sessions):
            if session.deadline < now or (crowded and session.waits_since + patience < now):
                session.expire()


def _dismiss(sock: socket.socket, last_word: bytes) -> None:
    """Send the last word and close: without a farewell, of whose places an attacker would take
    all.

    What came before the greeting is read, since it would make the close a reset; what comes
    after it finds the reply read, or does not matter.
    """
    with sock, contextlib.suppress(OSError):
        if last_word:
            sock.send(last_word)
            sock.recv(_EARLY_OCTETS)


@lru_cache(maxsize=256)
def _network_set(networks: tuple[IPNetwork, ...]) -> NetworkSet:
    return NetworkSet(networks)


def _client(address: object) -> tuple[IPAddress | None, int]:
    """Return the client's address and port; an IPv4-mapped address is IPv4."""
    if not isinstance(address, tuple):
        return None, 0
    return _parsed(address[0]), address[1]


@lru_cache(maxsize=4096)
def _parsed(host: str) -> IPAddress:
    # Clients come back: 4,096 of them need no second parse.
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
