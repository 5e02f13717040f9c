"""One session: it asks the hooks what the protocol core wants to know, and moves octets."""

from __future__ import annotations

import asyncio
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from preforkmx.errors import ConnectionLost
from preforkmx.model import Envelope, Peer, TLSInfo
from preforkmx.protocol import replies
from preforkmx.protocol.core import COMMANDS_A_TURN
from preforkmx.protocol.events import (
    Closing,
    Credentials,
    Data,
    Gone,
    Hello,
    Mail,
    NeedData,
    Pause,
    Quit,
    Rcpt,
    Reset,
    StartTLS,
    Verify,
)
from preforkmx.session.handling import handle_message
from preforkmx.session.hooks import HookedWire
from preforkmx.session.incoming import NoMessage
from preforkmx.session.record import Record, verdict

if TYPE_CHECKING:
    import ssl

    from preforkmx.protocol.core import Core
    from preforkmx.protocol.events import Event
    from preforkmx.protocol.replies import Reply
    from preforkmx.session.service import Service

_NO_MESSAGE = NoMessage()

TLS_HANDSHAKE_SECONDS = 15.0
TLS_SHUTDOWN_SECONDS = 3.0


class Session(HookedWire):
    """One session on one transport; its task runs :meth:`run` once the transport is there."""

    __slots__ = (
        "_between_commands",
        "_connect_context",
        "_held",
        "_mail_started",
        "_record",
        "_started",
        "_transactions",
        "envelope",
        "messages",
    )

    def __init__(
        self, service: Service, core: Core, peer: Peer, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(service, core, peer, loop)
        self._connect_context = self.context
        log = service.access_log
        self._record = Record(log, self.id, peer) if log is not None else None
        # The task waits for a command, and not for a hook or a message.
        self._between_commands = False
        # An event that answer_at_once() leaves to the task.
        self._held: Event | None = None
        self._started = loop.time()
        self._mail_started = 0.0
        self._transactions = 0
        self.envelope: Envelope | None = None
        self.messages = 0
        """Messages that were answered with 250."""

    # --- the life of a session --------------------------------------------------------------

    async def run(self) -> None:
        """Serve the client to its end. Never raises: what goes wrong ends this session only."""
        connected = False
        linger = True
        try:
            if self.core.tls:
                self.peer = self.peer._replace(tls=self._tls_info())
            if self.service.conn_context is not None:
                self.context = self.service.conn_context(self.context, self.peer)
            connected = True
            if await self._connect():
                await self._serve()
                # After QUIT nothing is on its way that could reset the connection.
                linger = self.ended != "quit" or self.core.buffered > 0
        except asyncio.CancelledError:
            # Server.abort(): the transport is gone already.
            self.ended = "shutdown"
            self.abort()
        except Exception as error:
            self.error = error
            self.ended = "error"
            self.service.logger.exception("session failed", extra={"session": self.id})
            self.core.shut(replies.INTERNAL_ERROR)
        await self._finish(connected=connected, linger=linger)

    async def _finish(self, *, connected: bool, linger: bool) -> None:
        self.end_transaction("aborted")
        try:
            if connected:
                self.flush()
                await self._run_disconnect()
            await self.hang_up(linger=linger)
        except asyncio.CancelledError:
            self.abort()
        finally:
            self.service.counters.commands_refused += self.core.refusals
            self.service.sessions.discard(self)
            self._closed.set()
            if self._record is not None:
                self._record.ended(
                    self.peer,
                    self.ended,
                    messages=self.messages,
                    errors=self.core.refusals,
                )

    async def _run_disconnect(self) -> None:
        error = self.error
        for link in self.service.chain.disconnect:
            await self.ask((link,), error, silent=True)

    async def _connect(self) -> bool:
        """Ask the connection hooks; greet, or refuse."""
        service = self.service
        refusal = await self.ask(service.chain.check_connection)
        self._connect_context = self.context
        if refusal is None:
            self.core.greet()
            return True
        service.counters.connections_refused += 1
        self.ended = "refused"
        if self._record is not None:
            self._record.refused(self.peer, refusal, self.by)
        self.core.shut(refusal)
        return False

    def answer_at_once(self) -> bool:
        """Answer commands that no hook wants to see, where the octets arrive.

        Waking the task costs more than the command; so it is woken only for what may wait.
        """
        service = self.service
        if not self._between_commands or service.ending:
            return False
        core = self.core
        chain = service.chain
        for _ in range(COMMANDS_A_TURN):
            event = core.next_event()
            kind = type(event)
            if kind is NeedData:
                self.flush_soon()
                self.deadline = self._loop.time() + service.command_timeout
                return not self._writing_paused
            if kind is Mail and not chain.check_sender:
                self._begin_transaction(event)  # type: ignore[arg-type]
                self._take_sender()
            elif kind is Rcpt and not chain.check_recipient:
                self._take_recipient(event)  # type: ignore[arg-type]
            else:
                self._held = event
                return False
        return False

    async def _serve(self) -> None:
        core = self.core
        service = self.service
        turn = 0
        while True:
            event = self._held or core.next_event()
            self._held = None
            kind = type(event)
            turn += 1
            if kind is NeedData:
                if service.ending:
                    last = self._ending()
                    if last is not None:
                        core.shut(last)
                        continue
                turn = 0
                self._between_commands = True
                await self.more(service.command_timeout)
                self._between_commands = False
                if self.expired:
                    self._client_too_slow()
                continue
            if kind is Pause or turn >= COMMANDS_A_TURN:
                turn = 0
                if kind is not Pause:
                    self._held = event
                await self.breathe(service.command_timeout)
                if self.expired:
                    self._client_too_slow()
                continue
            if kind is Mail:
                await self._mail(event)  # type: ignore[arg-type]
            elif kind is Rcpt:
                await self._rcpt(event)  # type: ignore[arg-type]
            elif kind is Data:
                await self._data()
            elif kind is Hello:
                await self._hello(event)  # type: ignore[arg-type]
            elif kind is Quit:
                self.ended = "quit"
                core.accept()
            elif kind is Reset:
                await self._rset()
            elif kind is StartTLS:
                if not await self._starttls():
                    return
            elif kind is Credentials:
                await self._authenticate(event)  # type: ignore[arg-type]
            elif kind is Verify:
                await self._verify(event)  # type: ignore[arg-type]
            elif kind is Closing:
                if event.reply is replies.SHUTTING_DOWN:  # type: ignore[union-attr]
                    self.ended = "shutdown"
                return
            elif kind is Gone:
                self.ended = "lost"
                self.error = ConnectionLost("the client closed without QUIT")
                return

    def _client_too_slow(self) -> None:
        """Its time for a command, or to read its replies, is over."""
        self.service.counters.timeouts += 1
        self.ended = "timeout"
        self.error = TimeoutError("the client sent, or read, nothing for too long")
        self._held = None
        self.core.shut(replies.TIMED_OUT)

    def _ending(self) -> Reply | None:
        """Return the 421 that this session gets now, before it would wait for its client."""
        service = self.service
        if (service.draining or service.retiring) and (
            service.aborting or not self.core.in_transaction
        ):
            self.ended = "shutdown"
            return replies.SHUTTING_DOWN
        if (
            service.session_time is not None
            and self._loop.time() - self._started > service.session_time
            and not self.core.in_transaction
        ):
            service.counters.timeouts += 1
            self.ended = "timeout"
            return replies.SESSION_TOO_LONG
        return None

    # --- commands ---------------------------------------------------------------------------------

    async def _hello(self, event: Hello) -> None:
        peer = self.peer
        self.peer = peer._replace(
            helo_name=event.name,
            protocol=_protocol(event.extended, peer.tls is not None, peer.username is not None),
        )
        refusal = await self.ask(self.service.chain.check_helo, event.name)
        if refusal is not None:
            self.peer = peer
            self.core.refuse(refusal)
            return
        # The transaction is forgotten whatever a reset hook says of it.
        self.core.accept(await self._reset_transaction("reset") if peer.helo_name else None)

    async def _mail(self, event: Mail) -> None:
        self._begin_transaction(event)
        refusal = await self.ask(self.service.chain.check_sender, event.path)
        if refusal is None:
            self._take_sender()
        else:
            self.end_transaction(verdict(refusal), reply=refusal, by=self.by)
            self.core.refuse(refusal)

    def _begin_transaction(self, event: Mail) -> None:
        self._transactions += 1
        self._mail_started = monotonic()
        parameters = event.parameters
        self.envelope = Envelope(
            sender=event.path,
            data=_NO_MESSAGE,
            id=f"{self.id}.{self._transactions}",
            size=parameters.size,
            body=parameters.body,
        )
        self.context = self.context.with_sender(event.path)

    def _take_sender(self) -> None:
        self.service.counters.transactions += 1
        self.core.accept()

    async def _rcpt(self, event: Rcpt) -> None:
        refusal = await self.ask(self.service.chain.check_recipient, event.path)
        if refusal is None:
            self._take_recipient(event)
        else:
            if self._record is not None:
                self._record.recipient_refused(refusal, self.by)
            self.core.refuse(refusal)

    def _take_recipient(self, event: Rcpt) -> None:
        assert self.envelope is not None
        self.envelope.recipients.append(event.path)
        self.service.counters.recipients += 1
        self.core.accept()

    async def _rset(self) -> None:
        self.core.accept(await self._reset_transaction("reset"))

    async def _verify(self, event: Verify) -> None:
        for link in self.service.chain.verify:
            answer: list[Any] = []

            async def hook(
                ctx: Any, peer: Any, text: str, link: Any = link, answer: Any = answer
            ) -> None:
                answer.append(await link.hook(ctx, peer, text))

            refusal = await self.ask((link._replace(hook=hook),), event.text)
            if refusal is not None:
                self.core.refuse(refusal)
                return
            if answer[0] is not None:
                self.core.accept(replies.verified(answer[0].mailbox))
                return
        self.core.accept(replies.CANNOT_VERIFY)

    async def _authenticate(self, event: Credentials) -> None:
        service = self.service
        refusal = await self.ask(service.chain.authenticate, event.username, event.password)
        if refusal is not None:
            service.counters.auth_failures += 1
            self.core.refuse(refusal)
            return
        service.counters.auth_successes += 1
        peer = self.peer
        self.peer = peer._replace(
            username=event.username, protocol=_protocol(True, peer.tls is not None, True)
        )
        self.core.accept()

    async def _data(self) -> None:
        service = self.service
        assert self.envelope is not None
        self.core.accept()
        self.flush_soon()
        service.in_data += 1
        try:
            await handle_message(self, self.envelope)
        finally:
            service.in_data -= 1

    # --- STARTTLS -----------------------------------------------------------------------------------

    async def _starttls(self) -> bool:
        """Answer STARTTLS and shake hands; False ends the session."""
        service = self.service
        assert service.tls is not None
        assert self.transport is not None
        # From here on what arrives is a TLS handshake, and not this protocol's.
        self.pause()
        self.core.accept()
        if self.core.closed:
            self.ended = "error"
            return False
        self.flush()
        # Before the handshake: decrypted octets may arrive before start_tls returns.
        self.core.tls_started()
        transport = await self._shake_hands(self.transport, service.tls)
        if transport is None:
            service.counters.tls_failures += 1
            self.error = self.error or ConnectionLost("the client closed during its handshake")
            self.ended = "tls"
            self.abort()
            # connection_lost may have come, may come later, or never.
            self.lost = True
            return False
        self.transport = transport
        self._reading_paused = False
        service.counters.tls_handshakes += 1
        # RFC 3207 section 4.2: nothing that was learnt in plain text is kept.
        self.context = self._connect_context
        self.peer = self.peer._replace(
            helo_name="", protocol="", username=None, tls=self._tls_info()
        )
        return True

    async def _shake_hands(
        self, transport: asyncio.Transport, context: ssl.SSLContext
    ) -> asyncio.Transport | None:
        """Return the encrypted transport, or None: `error` may say why."""
        if transport.is_closing():
            # The client left behind its STARTTLS, and start_tls would wait for it for ever.
            return None
        self.expired = False
        # The handshake's own timeout comes first; this one needs nothing of the transport.
        self.deadline = self.now() + TLS_HANDSHAKE_SECONDS + TLS_SHUTDOWN_SECONDS
        try:
            return await self._loop.start_tls(
                transport,
                self,
                context,
                server_side=True,
                ssl_handshake_timeout=TLS_HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=TLS_SHUTDOWN_SECONDS,
            )
        except OSError as error:
            self.error = error
        except asyncio.CancelledError as error:
            if not self.timed_out(error):
                raise
            self.error = TimeoutError("the handshake did not end")
        finally:
            self.deadline = inf
        return None

    def _tls_info(self) -> TLSInfo | None:
        assert self.transport is not None
        cipher = self.transport.get_extra_info("cipher")
        if cipher is None:
            return None
        # The version that stands beside the cipher is the one that defined it.
        version = self.transport.get_extra_info("ssl_object").version()
        return TLSInfo(version=version, cipher=cipher[0], bits=cipher[2])

    # --- the transaction --------------------------------------------------------------------------------

    async def _reset_transaction(self, outcome: str) -> Reply | None:
        """Forget the transaction and run the reset hooks."""
        self.end_transaction(outcome)
        return await self.ask(self.service.chain.reset)

    def end_transaction(self, outcome: str, **details: Any) -> None:
        envelope = self.envelope
        if envelope is None:
            return
        self.envelope = None
        if self._record is not None:
            self._record.transaction(
                self.peer, envelope, outcome=outcome, started=self._mail_started, **details
            )
        if self.context.sender is not None:
            self.context = self.context.with_sender(None)


def _protocol(extended: bool, tls: bool, authenticated: bool) -> str:  # noqa: FBT001
    """Name how mail arrives (RFC 3848)."""
    if not extended:
        return "SMTP"
    return f"ESMTP{'S' if tls else ''}{'A' if authenticated else ''}"
