"""One session: it asks the hooks what the protocol core wants to know, and moves octets."""

from __future__ import annotations

import asyncio
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from preforkmx.errors import ConnectionLost
from preforkmx.middleware.authentication_results import results_of
from preforkmx.model import DSN, Envelope, TLSInfo, Verification
from preforkmx.protocol import replies
from preforkmx.protocol.core import COMMANDS_A_TURN
from preforkmx.protocol.events import (
    Bdat,
    Closing,
    Credentials,
    Data,
    Foreign,
    Forwarded,
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
from preforkmx.protocol.parameters import NO_PARAMETERS
from preforkmx.protocol.paths import PathError, parse_path
from preforkmx.session.forwarded import forwarded_peer
from preforkmx.session.handling import handle_message
from preforkmx.session.hooks import HookedWire
from preforkmx.session.incoming import NoMessage
from preforkmx.session.record import Record, verdict

if TYPE_CHECKING:
    import ssl

    from preforkmx.model import Peer
    from preforkmx.protocol.core import Core
    from preforkmx.protocol.events import Event
    from preforkmx.protocol.parameters import MailParameters
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
        "_ends",
        "_login",
        "_mail_started",
        "_record",
        "_transactions",
        "_until",
        "envelope",
        "held",
        "lmtp",
        "reset_is_due",
        "via",
    )

    def __init__(
        self, service: Service, core: Core, peer: Peer, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(service, core, peer, loop)
        self._connect_context = self.context
        self._record: Record | None = None
        # The task waits for a command, and not for a hook or a message.
        self._between_commands = False
        # When the command that is awaited has to be complete.
        self._until = inf
        self.held: Event | None = None
        """An event that somebody else met, and leaves to :meth:`run`."""
        self.reset_is_due = False
        """A message was given up for a command that came between its chunks, and the reset hooks
        have not heard of it."""
        self.lmtp = False
        """The listener speaks LMTP."""
        self.via: str | None = None
        """The address of the proxy that the client came through."""
        self._ends = inf
        if service.session_time is not None:
            self._ends = loop.time() + service.session_time
        self._mail_started = 0.0
        self._transactions = 0
        # The user that XCLIENT named.
        self._login: str | None = None
        self.envelope: Envelope | None = None

    # --- the life of a session --------------------------------------------------------------

    async def run(self) -> None:
        """Serve the client to its end. Never raises: what goes wrong ends this session only."""
        connected = False
        linger = True
        # A PROXY header has brought another one.
        self.info.core = self.core
        log = self.service.access_log
        if log is not None:
            self._record = Record(log, self.id, self.peer, self.via)
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
            self.service.counters.commands_refused += self.core.patience.refusals
            self.service.counters.auth_failures += self.core.authentication.failures
            self.service.sessions.discard(self)
            self._closed.set()
            if self._record is not None:
                self._record.ended(
                    self.peer,
                    self.ended,
                    messages=self.info.messages,
                    errors=self.core.patience.refusals,
                )

    async def _run_disconnect(self) -> None:
        error = self.error
        for link in self.service.chain.disconnect:
            await self.ask((link,), error, silent=True)

    async def _connect(self) -> bool:
        """Ask the connection hooks; greet, or refuse."""
        service = self.service
        if service.lame_duck and self.peer.is_health_check:
            self.ended = "shutdown"
            self.core.shut(replies.SHUTTING_DOWN)
            return False
        refusal = await self.ask(service.chain.check_connection)
        self._connect_context = self.context
        if refusal is None and service.greeting_delay and not self.peer.is_health_check:
            refusal = await self._listen_first(service.greeting_delay)
        if refusal is None:
            self.core.greet()
            return True
        service.counters.connections_refused += 1
        self.ended = "refused"
        if refusal is replies.SENT_TOO_EARLY:
            service.counters.early_talkers += 1
        if self._record is not None:
            self._record.refused(self.peer, refusal, self.by)
        self.core.shut(refusal)
        return False

    async def _listen_first(self, seconds: float) -> Reply | None:
        """Let the client be silent for a while; None, or what it gets because it was not."""
        until = self.now() + seconds
        while not self.core.buffered:
            if self.now() >= until or self.core.eof or self.service.draining:
                return None
            await self.more(until)
        self.by = "greeting_delay"
        return replies.SENT_TOO_EARLY

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
            if kind is Mail and not chain.check_sender:
                self._begin_transaction(event)  # type: ignore[arg-type]
                self._take_sender()
            elif kind is Rcpt and not chain.check_recipient:
                self._take_recipient(event)  # type: ignore[arg-type]
            elif kind is not NeedData:
                self.held = event
                return False
            # Most clients send one command and wait: there is nothing to ask the core again.
            if kind is NeedData or not core.buffered:
                if core.output:
                    now = self._loop.time()
                    if now > self._ends:
                        return False
                    # A command is complete, and the next one has its own time.
                    self.deadline = self._until = now + service.command_timeout
                    self._outbox.add(self, self._loop)
                return not self._writing_paused
        return False

    async def _serve(self) -> None:
        core = self.core
        service = self.service
        turn = 0
        self._until = inf
        while True:
            event = self.held or core.next_event()
            self.held = None
            kind = type(event)
            turn += 1
            if kind is NeedData:
                now = self._loop.time()
                if service.ending or now > self._ends:
                    last = self._ending(now)
                    if last is not None:
                        core.shut(last)
                        continue
                if turn > 1 or core.output or self._until == inf:
                    # Not at each octet: a command has its time as a whole.
                    self._until = now + service.command_timeout
                turn = 0
                self._between_commands = True
                await self.more(self._until)
                self._between_commands = False
                if self.expired:
                    self._client_too_slow()
                continue
            if kind is Pause or turn >= COMMANDS_A_TURN:
                turn = 0
                if kind is not Pause:
                    self.held = event
                self._until = inf
                await self.breathe(service.command_timeout)
                if self.expired:
                    self._client_too_slow()
                continue
            if kind is Mail:
                await self._mail(event)  # type: ignore[arg-type]
            elif kind is Rcpt:
                await self._rcpt(event)  # type: ignore[arg-type]
            elif kind is Data or kind is Bdat:
                assert self.envelope is not None
                core.accept()
                # BDAT is answered after its chunk.
                self.flush_soon()
                await handle_message(self, self.envelope)
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
            elif kind is Forwarded:
                await self._forwarded(event)  # type: ignore[arg-type]
            elif kind is Closing:
                self._closing(event.reply)  # type: ignore[union-attr]
                return
            elif kind is Foreign:
                service.counters.wrong_protocol += 1
                self.ended = "wrong protocol"
                self.error = ConnectionLost("the client speaks another protocol")
                return
            elif kind is Gone:
                self.ended = "lost"
                self.error = ConnectionLost("the client closed without QUIT")
                return

    def _closing(self, reply: Reply) -> None:
        if reply is replies.SHUTTING_DOWN:
            self.ended = "shutdown"
        elif reply is replies.SENT_TOO_EARLY and self.ended != "refused":
            self.service.counters.early_talkers += 1
            self.ended = "early talker"

    @property
    def waits_since(self) -> float:
        """Since when a command is awaited, on the loop's clock; inf: none is."""
        # Without a deadline it came already, and the task has its turn soon.
        waits = self._between_commands and self.deadline != inf
        return self._until - self.service.command_timeout if waits else inf

    def _client_too_slow(self) -> None:
        """Its time for a command, or to read its replies, is over."""
        self.service.counters.timeouts += 1
        self.ended = "timeout"
        self.error = TimeoutError("the client sent, or read, nothing for too long")
        self.held = None
        self.core.shut(replies.TIMED_OUT)

    def _ending(self, now: float) -> Reply | None:
        """Return the 421 that this session gets now, before it would wait for its client."""
        service = self.service
        if (service.draining or service.retiring) and (
            service.aborting or not self.core.in_transaction
        ):
            self.ended = "shutdown"
            return replies.SHUTTING_DOWN
        if now > self._ends and not self.core.in_transaction:
            service.counters.timeouts += 1
            self.ended = "timeout"
            return replies.SESSION_TOO_LONG
        return None

    # --- commands ---------------------------------------------------------------------------------

    async def _hello(self, event: Hello) -> None:
        peer = self.peer
        self.peer = peer._replace(
            helo_name=event.name,
            protocol=self._protocol(peer, extended=event.extended),
        )
        refusal = await self.ask(self.service.chain.check_helo, event.name)
        if refusal is not None:
            self.peer = peer
            if self.reset_is_due:
                # Between two chunks it has given the message up all the same.
                by = self.by
                failure = await self._reset_transaction("reset")
                if failure is not None and failure.close:
                    refusal = failure
                else:
                    self.by = by
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
        if parameters is not NO_PARAMETERS:
            self._take_parameters(self.envelope, parameters)
        self.info.envelope = self.envelope
        self.context = self.context.with_sender(event.path)

    def _take_parameters(self, envelope: Envelope, parameters: MailParameters) -> None:
        envelope.smtputf8 = parameters.smtputf8
        envelope.require_tls = parameters.require_tls
        if parameters.auth is not None:
            # RFC 4954 section 5: nobody vouches for others who did not say who it is.
            envelope.auth = parameters.auth if self.peer.username is not None else ""
        if parameters.ret is not None or parameters.envid is not None:
            envelope.dsn = DSN(parameters.ret, parameters.envid)

    def _take_sender(self) -> None:
        self.service.counters.transactions += 1
        self.core.accept()

    async def _rcpt(self, event: Rcpt) -> None:
        self.info.recipient_dsn = event.dsn
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
        if event.dsn is not None:
            if self.envelope.dsn is None:
                self.envelope.dsn = DSN()
            self.envelope.dsn.recipients[event.path] = event.dsn
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
                verification = await link.hook(ctx, peer, text)
                if verification is not None and not isinstance(verification, Verification):
                    raise TypeError(
                        f"a verify hook returns a Verification or None, not {verification!r}"
                    )
                answer.append(verification)

            refusal = await self.ask((link._replace(hook=hook),), event.text)
            if refusal is not None:
                self.core.refuse(refusal)
                return
            if answer[0] is not None:
                self.core.accept(self._verified(link.name, answer[0].mailbox, event))
                return
        self.core.accept(replies.CANNOT_VERIFY)

    def _verified(self, by: str, mailbox: str, event: Verify) -> Reply:
        """Return the answer to VRFY: only a whole mailbox is one (RFC 5321 section 3.5.1)."""
        try:
            parsed, _ = parse_path(f"<{mailbox}>", smtputf8=True)
        except PathError:
            parsed = ""
        # Else it is a part of the text, lacks its domain, or brought a source route.
        if parsed != mailbox or "@" not in mailbox:
            self.service.logger.error("hook named no mailbox", extra={"session": self.id, "by": by})
            return replies.CANNOT_VERIFY
        return replies.verified(mailbox, smtputf8=event.smtputf8)

    async def _authenticate(self, event: Credentials) -> None:
        service = self.service
        refusal = await self.ask(service.chain.check_auth)
        if refusal is None:
            refusal = await self.ask(service.chain.authenticate, event.username, event.password)
        if refusal is not None:
            if self._record is not None:
                self._record.auth_refused(self.peer, refusal, self.by, event.mechanism)
            self.core.refuse(refusal)
            return
        service.counters.auth_successes += 1
        peer = self.peer._replace(username=event.username)
        self.peer = peer._replace(protocol=self._protocol(peer, extended=True))
        self.core.accept()

    async def _forwarded(self, event: Forwarded) -> None:
        """XCLIENT: the session begins again, with the client that the proxy names."""
        self.core.accept()
        # Who authenticated with AUTH was the proxy, or the client before this one.
        self.peer = peer = forwarded_peer(self.peer._replace(username=self._login), event.client)
        self._login = peer.username
        self.core.authenticated = peer.username is not None
        # What check_connection made: a lease among it, whose place the next one takes.
        self.context = self._connect_context
        if self._record is not None:
            self._record.identify(peer)
        await self._connect()

    def _protocol(self, peer: Peer, *, extended: bool) -> str:
        """Name how mail arrives (RFC 3848)."""
        if not extended:
            return "SMTP"
        name = "LMTP" if self.lmtp else "ESMTP"
        return f"{name}{'S' if peer.tls else ''}{'A' if peer.username is not None else ''}"

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
        self._login = None
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
        self.reset_is_due = False
        self.end_transaction(outcome)
        return await self.ask(self.service.chain.reset)

    def end_transaction(self, outcome: str, **details: Any) -> None:
        envelope = self.envelope
        if envelope is None:
            return
        self.envelope = self.info.envelope = None
        if self._record is not None:
            self._record.transaction(
                self.peer,
                envelope,
                outcome=outcome,
                started=self._mail_started,
                results=results_of(self.context),
                **details,
            )
        if self.context.sender is not None:
            self.context = self.context.with_sender(None)
