"""One session: it asks the hooks what the protocol core wants to know, and moves octets."""

from __future__ import annotations

import asyncio
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from preforkmx.context import Context, Signal
from preforkmx.errors import ConnectionLost, MessageAborted, SMTPError
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
from preforkmx.protocol.replies import Reply
from preforkmx.session.incoming import IncomingMessage, NoMessage
from preforkmx.session.record import Record, verdict
from preforkmx.session.wire import Wire

if TYPE_CHECKING:
    from preforkmx.middleware.chain import Link
    from preforkmx.protocol.core import Core
    from preforkmx.protocol.events import Event
    from preforkmx.session.service import Service

_NO_MESSAGE = NoMessage()

_LAST = (Quit, Closing, Gone)

TLS_HANDSHAKE_SECONDS = 15.0
TLS_SHUTDOWN_SECONDS = 3.0


class Session(Wire):
    """One session on one transport; its task runs :meth:`run` once the transport is there."""

    __slots__ = (
        "_between_commands",
        "_by",
        "_closed",
        "_connect_context",
        "_delivery_left",
        "_ended",
        "_error",
        "_held",
        "_mail_started",
        "_message_count",
        "_record",
        "_started",
        "_transaction_count",
        "context",
        "envelope",
        "id",
        "peer",
        "service",
    )

    def __init__(
        self, service: Service, core: Core, peer: Peer, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(core, loop)
        self.service = service
        self.peer = peer
        self.id = f"{service.id_prefix}{next(service.ids):x}"
        self.envelope: Envelope | None = None
        self._closed = Signal()
        self.context = service.base_context.bind(
            session_id=self.id,
            logger=service.logger,
            draining=service.draining,
            closed=self._closed,
        )
        self._connect_context = self.context
        log = service.access_log
        self._record = Record(log, self.id, peer) if log is not None else None
        self._between_commands = False
        self._held: Event | None = None
        self._by: str | None = None
        self._error: BaseException | None = None
        self._ended = "closed"
        self._started = loop.time()
        self._mail_started = 0.0
        self._message_count = 0
        self._transaction_count = 0
        self._delivery_left = 0.0

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._closed.set()

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
                linger = self._ended != "quit" or self.core.buffered > 0
        except asyncio.CancelledError:
            # Server.abort(): the transport is gone already.
            self._ended = "shutdown"
            self.abort()
        except Exception as error:
            self._error = error
            self._ended = "error"
            self.service.logger.exception("session failed", extra={"session": self.id})
            self.core.shut(replies.INTERNAL_ERROR)
        await self._finish(connected=connected, linger=linger)

    async def _finish(self, *, connected: bool, linger: bool) -> None:
        self._end_transaction("aborted")
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
                    self._ended,
                    messages=self._message_count,
                    errors=self.core.refusals,
                )

    async def _run_disconnect(self) -> None:
        error = self._error
        for link in self.service.chain.disconnect:
            await self._ask((link,), error, silent=True)

    async def _connect(self) -> bool:
        """Ask the connection hooks; greet, or refuse."""
        service = self.service
        refusal = await self._ask(service.chain.check_connection)
        self._connect_context = self.context
        if refusal is None:
            self.core.greet()
            return True
        service.counters.connections_refused += 1
        self._ended = "refused"
        if self._record is not None:
            self._record.refused(self.peer, refusal, self._by)
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
                self.flush()
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
            if (
                service.ending
                and (service.draining or service.retiring)
                and kind not in _LAST
                and not core.in_transaction
            ):
                # No command begins any more, however many the client sent in one flight.
                self._ended = "shutdown"
                core.shut(replies.SHUTTING_DOWN)
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
                self._ended = "quit"
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
                return
            elif kind is Gone:
                self._ended = "lost"
                self._error = ConnectionLost("the client closed without QUIT")
                return

    def _client_too_slow(self) -> None:
        """Its time for a command, or to read its replies, is over."""
        self.service.counters.timeouts += 1
        self._ended = "timeout"
        self._error = TimeoutError("the client sent, or read, nothing for too long")
        self._held = None
        self.core.shut(replies.TIMED_OUT)

    def _ending(self) -> Reply | None:
        """Return the 421 that this session gets now, before it would wait for its client."""
        service = self.service
        if (service.draining or service.retiring) and (
            service.aborting or not self.core.in_transaction
        ):
            self._ended = "shutdown"
            return replies.SHUTTING_DOWN
        if (
            service.session_time is not None
            and self._loop.time() - self._started > service.session_time
            and not self.core.in_transaction
        ):
            service.counters.timeouts += 1
            self._ended = "timeout"
            return replies.SESSION_TOO_LONG
        return None

    # --- hooks ------------------------------------------------------------------------------------

    async def _ask(
        self, links: tuple[Link[Any], ...], *arguments: Any, silent: bool = False
    ) -> Reply | None:
        """Run the hooks of one phase: None, or the reply of the first that refuses.

        :param silent: nobody will see a refusal (disconnect): it is no use to the client.
        """
        if not links:
            return None
        name = ""
        self.expired = False
        self.deadline = self._loop.time() + self.service.command_timeout
        try:
            for name, hook in links:  # noqa: B007 - named in the log below
                context = await hook(self.context, self.peer, *arguments)
                if context is not None and not silent:
                    self._take(context)
        except SMTPError as error:
            self._by = name
            return Reply.from_error(error)
        except BaseException as error:
            if not self._timed_out(error):
                return self._crashed(name, error)
            self._by = name
            self._ended = "timeout"
            self._error = TimeoutError(f"{name} took too long")
            self.service.logger.error("hook took too long", extra={"session": self.id, "by": name})
            return replies.HOOK_TIMEOUT
        finally:
            self.deadline = inf
        return None

    def _take(self, context: Any) -> None:
        if not isinstance(context, Context):
            raise TypeError(f"a hook returns a Context or None, not {context!r}")
        self.context = context

    def _timed_out(self, error: BaseException) -> bool:
        """Say whether `error` is the cancellation at the deadline, and if so take it back."""
        if not self.expired or self.task is None or not isinstance(error, asyncio.CancelledError):
            return False
        self.expired = False
        self.task.uncancel()
        self.service.counters.timeouts += 1
        return True

    def _crashed(self, name: str, error: BaseException) -> Reply:
        """A hook raised what is not an SMTPError: log its stack, end this session.

        SystemExit is a hook's mistake like any other, and so is a CancelledError of its own
        making. What means this task or this process is raised again.
        """
        cancelled = isinstance(error, asyncio.CancelledError)
        if (cancelled and self.task is not None and self.task.cancelling()) or isinstance(
            error, (KeyboardInterrupt, GeneratorExit)
        ):
            raise error
        service = self.service
        service.counters.hook_failures += 1
        service.logger.error("hook failed", exc_info=error, extra={"session": self.id, "by": name})
        self._by = name
        self._error = error
        self._ended = "error"
        failure = service.hook_failure
        return Reply(failure.code, failure.message, enhanced=failure.enhanced, close=True)

    # --- commands ---------------------------------------------------------------------------------

    async def _hello(self, event: Hello) -> None:
        peer = self.peer
        self.peer = peer._replace(
            helo_name=event.name,
            protocol=_protocol(event.extended, peer.tls is not None, peer.username is not None),
        )
        refusal = await self._ask(self.service.chain.check_helo, event.name)
        if refusal is not None:
            self.peer = peer
            self.core.refuse(refusal)
            return
        # The transaction is forgotten whatever a reset hook says of it.
        self.core.accept(await self._reset_transaction("reset") if peer.helo_name else None)

    async def _mail(self, event: Mail) -> None:
        self._begin_transaction(event)
        refusal = await self._ask(self.service.chain.check_sender, event.path)
        if refusal is None:
            self._take_sender()
        else:
            self._end_transaction(verdict(refusal), reply=refusal, by=self._by)
            self.core.refuse(refusal)

    def _begin_transaction(self, event: Mail) -> None:
        self._transaction_count += 1
        self._mail_started = monotonic()
        parameters = event.parameters
        self.envelope = Envelope(
            sender=event.path,
            data=_NO_MESSAGE,
            id=f"{self.id}.{self._transaction_count}",
            size=parameters.size,
            body=parameters.body,
        )
        self.context = self.context.with_sender(event.path)

    def _take_sender(self) -> None:
        self.service.counters.transactions += 1
        self.core.accept()

    async def _rcpt(self, event: Rcpt) -> None:
        refusal = await self._ask(self.service.chain.check_recipient, event.path)
        if refusal is None:
            self._take_recipient(event)
        else:
            if self._record is not None:
                self._record.recipient_refused(refusal, self._by)
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
                ctx: Context, peer: Peer, text: str, link: Any = link, answer: Any = answer
            ) -> None:
                answer.append(await link.hook(ctx, peer, text))

            refusal = await self._ask((link._replace(hook=hook),), event.text)
            if refusal is not None:
                self.core.refuse(refusal)
                return
            if answer[0] is not None:
                self.core.accept(replies.verified(answer[0].mailbox))
                return
        self.core.accept(replies.CANNOT_VERIFY)

    async def _authenticate(self, event: Credentials) -> None:
        service = self.service
        refusal = await self._ask(service.chain.authenticate, event.username, event.password)
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
            self._ended = "error"
            return False
        self.flush()
        # Before the handshake: decrypted octets may arrive before start_tls returns.
        self.core.tls_started()
        try:
            transport = await self._loop.start_tls(
                self.transport,
                self,
                service.tls,
                server_side=True,
                ssl_handshake_timeout=TLS_HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=TLS_SHUTDOWN_SECONDS,
            )
        except (TimeoutError, OSError) as error:
            transport = None
            self._error = error
        if transport is None:
            service.counters.tls_failures += 1
            self._error = self._error or ConnectionLost("the client closed during its handshake")
            self._ended = "tls"
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

    def _tls_info(self) -> TLSInfo | None:
        assert self.transport is not None
        cipher = self.transport.get_extra_info("cipher")
        if cipher is None:
            return None
        # The version that stands beside the cipher is the one that defined it.
        version = self.transport.get_extra_info("ssl_object").version()
        return TLSInfo(version=version, cipher=cipher[0], bits=cipher[2])

    # --- the message ----------------------------------------------------------------------------------

    async def _data(self) -> None:
        service = self.service
        self.core.accept()
        # Now: a handler may have much to do before it reads.
        self.flush()
        service.in_data += 1
        try:
            await self._deliver()
        finally:
            service.in_data -= 1

    async def _deliver(self) -> None:
        """Run the handlers on the arriving message, and answer it."""
        service = self.service
        envelope = self.envelope
        assert envelope is not None
        message = IncomingMessage(self)
        envelope.data = message
        self._by = None
        reply = await self._handle(envelope)
        if message.end is None and message.aborted is None:
            # The handler left a rest. What is wrong with it still wins over its verdict.
            self._delivery_left = inf
            await message.drain()
        end = message.end
        if end is None:
            service.counters.messages_aborted += 1
            self._give_up(message.aborted)
            return
        service.counters.octets += end.size
        if end.fault is not None:
            reply, self._by = end.fault.closing() if reply and reply.close else end.fault, None
        if reply is None:
            service.counters.messages += 1
            self._message_count += 1
            reply = replies.queued(envelope.id)
        else:
            service.counters.messages_refused += 1
        self.core.finish(reply)
        self._end_transaction(verdict(reply), reply=reply, by=self._by, size=end.size)
        if service.chain.reset:
            self.flush()
            failure = await self._ask(service.chain.reset)
            if failure is not None and not self.core.closed:
                self.core.shut(replies.INTERNAL_ERROR)

    async def _handle(self, envelope: Envelope) -> Reply | None:
        """Run the handlers: None, or the reply that refuses the message."""
        service = self.service
        self._delivery_left = service.delivery_timeout
        self.expired = False
        self.deadline = self._loop.time() + service.delivery_timeout
        name = ""
        try:
            for name, handler in service.chain.handler:  # noqa: B007 - as above
                context = await handler(self.context, self.peer, envelope)
                if context is not None:
                    self._take(context)
        except SMTPError as error:
            self._by = name
            return Reply.from_error(error)
        except MessageAborted:
            # The message's own fault is found there; a handler that gave up a message that
            # was good gets it offered again.
            self._by = name
            return replies.NOT_DELIVERED
        except BaseException as error:
            if not self._timed_out(error):
                return self._crashed(name, error)
            self._by = name
            service.logger.error("delivery took too long", extra={"session": self.id, "by": name})
            return replies.DELIVERY_TIMEOUT
        finally:
            self.deadline = inf
        return None

    async def more_of_message(self) -> None:
        """Wait for the client while a handler reads; the handler's clock stands meanwhile."""
        if self.deadline != inf:
            self._delivery_left = self.deadline - self._loop.time()
        try:
            await self.more(self.service.command_timeout)
        finally:
            # Also where the handler gives up its read: its own time goes on.
            if self._delivery_left != inf:
                self.deadline = self._loop.time() + self._delivery_left

    def _give_up(self, reason: MessageAborted | None) -> None:
        """The message will never be complete: no 250, and the session ends."""
        if self.service.aborting and not isinstance(reason, ConnectionLost):
            self._ended = "shutdown"
            self.core.shut(replies.SHUTTING_DOWN)
            return
        if self._error is None:
            self._error = reason
        if isinstance(reason, ConnectionLost):
            self._ended = "lost"
            self.core.shut(replies.INTERNAL_ERROR)
        else:
            self.service.counters.timeouts += 1
            self._ended = "timeout"
            self.core.shut(replies.TIMED_OUT)

    # --- the transaction --------------------------------------------------------------------------------

    async def _reset_transaction(self, outcome: str) -> Reply | None:
        """Forget the transaction and run the reset hooks."""
        self._end_transaction(outcome)
        return await self._ask(self.service.chain.reset)

    def _end_transaction(self, outcome: str, **details: Any) -> None:
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
