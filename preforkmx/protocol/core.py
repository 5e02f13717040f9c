"""The protocol core: octets in, events and replies out, and nothing else.

Its caller

- calls :meth:`Core.greet` once the client may be greeted, or :meth:`Core.shut`;
- feeds what arrives to :meth:`Core.receive_data` (:meth:`Core.receive_eof` at the end), and
  stops feeding while :attr:`Core.buffered` is large;
- calls :meth:`Core.next_event` until it answers :data:`NEED_DATA`, and answers each event as
  :mod:`preforkmx.protocol.events` says;
- then sends what :meth:`Core.take_output` returns: the replies of one flight in one piece
  (RFC 2920), before it waits for more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from preforkmx.errors import LocalProtocolError
from preforkmx.protocol import commands, replies
from preforkmx.protocol.events import (
    Chunk,
    Closing,
    Credentials,
    Data,
    End,
    Event,
    Gone,
    NeedData,
    Pause,
    Quit,
    Rcpt,
    Reset,
    StartTLS,
)
from preforkmx.protocol.extensions import auth_offered
from preforkmx.protocol.framing import LINE_LIMIT, LineFramer, Trouble
from preforkmx.protocol.message import MessageScanner
from preforkmx.protocol.order import TABLE, State, Verb
from preforkmx.protocol.replies import Reply
from preforkmx.protocol.sasl import MECHANISMS, RESPONSE_LIMIT, Exchange, Identity, decode

if TYPE_CHECKING:
    from preforkmx.protocol.settings import Settings

COMMANDS_A_TURN = 100
"""Commands that are answered before others get their turn."""

NEED_DATA = NeedData()
PAUSE = Pause()
GONE = Gone()

_TRANSACTION = frozenset({State.MAIL, State.RCPT, State.MESSAGE, State.DELIVERY})
_GREETINGS = frozenset({Verb.HELO, Verb.EHLO})
_SPECIAL = frozenset({State.CONNECTED, State.MESSAGE, State.DELIVERY, State.TLS, State.CLOSED})
# Events without fields.
_DATA = Data()
_QUIT = Quit()
_RESET = Reset()

Trace = Callable[[str, bytes], None]
"""Called with ``"C"`` or ``"S"`` and a line or reply; credentials are redacted."""


class Core:
    """The server's side of one SMTP session, without its transport.

    :param settings: shared by all sessions of a listener.
    :param tls: the transport is encrypted already (implicit TLS).
    :param trace: is told every line and reply, for debugging.
    """

    __slots__ = (
        "_after",
        "_auth_failures",
        "_closing",
        "_eof",
        "_errors",
        "_exchange",
        "_framer",
        "_message",
        "_output",
        "_recipients",
        "_settings",
        "_verb",
        "authenticated",
        "extended",
        "last_call",
        "receive_data",
        "refusals",
        "state",
        "tls",
        "trace",
    )

    def __init__(
        self, settings: Settings, *, tls: bool = False, trace: Trace | None = None
    ) -> None:
        self._settings = settings
        self._framer = LineFramer()
        self.receive_data = self._framer.feed
        """Takes octets from the client."""
        self._output: list[bytes] = []
        self.trace = trace
        self._message: MessageScanner | None = None
        self._exchange: tuple[str, Exchange] | None = None
        # The command that waits for accept() or refuse(), and the state if it is accepted.
        self._verb: Verb | None = None
        self._after = State.CONNECTED
        self._closing: Reply | None = None
        self._eof = False
        self._errors = 0
        self._auth_failures = 0
        self._recipients = 0
        self.refusals = 0
        """Commands that were refused, by whomever."""
        self.state = State.CONNECTED
        self.extended = False
        """The client greeted with EHLO."""
        self.authenticated = False
        self.last_call: Reply | None = None
        """Where this is set, the next command outside a transaction gets it as the last reply."""
        self.tls = tls

    # --- octets in and out -----------------------------------------------------------------

    @property
    def buffered(self) -> int:
        """Octets that arrived and were not read yet: what the caller has to bound."""
        return self._framer.buffered

    @property
    def closed(self) -> bool:
        """The last reply was written."""
        return self._closing is not None

    @property
    def eof(self) -> bool:
        """The client will send no more."""
        return self._eof

    def receive_eof(self) -> None:
        """The client will send no more."""
        self._eof = True

    @property
    def unsent(self) -> bool:
        """There is output to take."""
        return bool(self._output)

    def take_output(self) -> bytes:
        """Return, and forget, the octets to send."""
        output = self._output
        if not output:
            return b""
        octets = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        return octets

    def _write(self, reply: Reply, *, extended: bool | None = None) -> None:
        if extended is None:
            extended = self.extended
        octets = (reply.extended if extended else reply.plain) or reply.octets(extended=extended)
        self._output.append(octets)
        if self.trace is not None:
            self.trace("S", octets)
        if reply.close:
            self._closing = reply
            self.state = State.CLOSED

    # --- the caller's decisions ---------------------------------------------------------------

    def greet(self) -> None:
        """Write the 220 greeting: the session begins."""
        if self.state is not State.CONNECTED:
            raise LocalProtocolError("greet() after the greeting")
        self.state = State.GREETED
        self._write(self._settings.greeting)

    def shut(self, reply: Reply) -> None:
        """Write `reply` as the last one, whatever is pending; the next event is Closing."""
        verb, self._verb = self._verb, None
        self._write(reply, extended=self._has_enhanced(verb))
        self._closing = reply
        self.state = State.CLOSED

    def accept(self, reply: Reply | None = None) -> None:
        """Accept the command of the last event: write its reply and go on to its next state.

        :param reply: instead of the command's usual one.
        """
        verb = self._verb
        if verb is None:
            raise LocalProtocolError("accept() without a pending command")
        self._verb = None
        self.state = self._after
        if verb is Verb.RCPT:
            self._recipients += 1
            self._write(reply or replies.RECIPIENT_OK)
        elif verb is Verb.MAIL:
            self._recipients = 0
            self._write(reply or replies.SENDER_OK)
        elif verb is Verb.DATA:
            self._message = MessageScanner(self._settings.message_size)
            self._write(replies.START_MESSAGE)
        elif verb is Verb.QUIT:
            self._write(reply or replies.BYE)
        elif verb is Verb.HELO:
            self.extended = False
            self._write(reply or self._settings.helo)
        elif verb is Verb.EHLO:
            self.extended = True
            self._write(reply or self._settings.ehlo[self.tls], extended=False)
        elif verb is Verb.AUTH:
            self.authenticated = True
            self._write(reply or replies.AUTHENTICATED)
        elif verb is Verb.STARTTLS:
            if self._framer.buffered:
                # RFC 3207 section 4.2 and CVE-2011-0411: what was sent before the handshake
                # is somebody else's.
                self._framer.take()
                self._write(replies.TLS_INJECTION)
            else:
                self._write(reply or replies.READY_FOR_TLS)
        else:
            self._write(reply or replies.OK)

    def refuse(self, reply: Reply) -> None:
        """Refuse the command of the last event: write `reply`, stay in the state before it."""
        verb = self._verb
        if verb is None:
            raise LocalProtocolError("refuse() without a pending command")
        self._verb = None
        if verb is Verb.AUTH and reply.code >= 500:
            reply = self._auth_failed(reply)
        self._refuse(reply, verb)

    def finish(self, reply: Reply) -> None:
        """Answer the message: the transaction is over, whatever the answer."""
        if self.state is not State.DELIVERY:
            raise LocalProtocolError("finish() without a complete message")
        self.state = State.READY
        if reply.code == 250:
            self._errors = 0
        self._write(reply)

    def tls_started(self) -> None:
        """Forget what was learnt in plain text (RFC 3207 section 4.2).

        Call it before the handshake: some transports hand over the first decrypted octets
        before they tell that the handshake is complete.
        """
        if self.state is not State.TLS:
            raise LocalProtocolError("tls_started() without STARTTLS")
        # What arrived since STARTTLS was accepted came in plain text too.
        self._framer.take()
        self.state = State.GREETED
        self.tls = True
        self.extended = False
        self.authenticated = False

    # --- events -----------------------------------------------------------------------------

    @property
    def in_transaction(self) -> bool:
        """A MAIL was accepted and its transaction is not over."""
        return self.state in _TRANSACTION

    def next_event(self) -> Event:
        """Return what the octets so far mean next.

        What needs nobody's decision is answered here, on the way; after
        :data:`COMMANDS_A_TURN` such commands the answer is :data:`PAUSE`, so that a flood of
        them in one flight holds up nobody else.
        """
        if self._verb is not None:
            raise LocalProtocolError("next_event() before the last event was answered")
        for _ in range(COMMANDS_A_TURN):
            if self.state in _SPECIAL:
                return self._special()
            line = self._framer.next_line(LINE_LIMIT if self._exchange is None else RESPONSE_LIMIT)
            if line is None:
                return GONE if self._eof else NEED_DATA
            if type(line) is not bytes:
                self._trouble(line)  # type: ignore[arg-type]
                continue
            event = self._response(line) if self._exchange is not None else self._command(line)
            if event is not None:
                return event
        return PAUSE

    def _special(self) -> Event:
        """The next event where octets are no commands."""
        if self.state is State.MESSAGE:
            return self.next_of_message()
        if self._closing is not None:
            return Closing(self._closing)
        if self.state is State.DELIVERY:
            raise LocalProtocolError("next_event() before the message was answered")
        return GONE if self._eof else NEED_DATA

    def next_of_message(self) -> NeedData | Gone | Chunk | End:
        """:meth:`next_event` for those who know that a message arrives."""
        message = self._message
        if message is None:
            raise LocalProtocolError("next_of_message() without a message")
        while not message.ended:
            octets = self._framer.take()
            if not octets:
                return GONE if self._eof else NEED_DATA
            chunk, rest = message.feed(octets)
            if rest:
                self._framer.feed(rest)
            if chunk:
                return Chunk(chunk)
        self.state = State.DELIVERY
        self._message = None
        return End(message.size, message.fault)

    def _trouble(self, trouble: Trouble) -> None:
        if self.trace is not None:
            self.trace("C", f"<{trouble.value}>".encode())
        if trouble is Trouble.TOO_LONG:
            if self._exchange is not None:
                self._exchange = None
                self.state = State.READY
                self._refuse(replies.AUTH_TOO_LONG)
            else:
                self._refuse(replies.LINE_TOO_LONG)
        elif trouble is Trouble.ENDLESS:
            self._refuse(replies.LINE_ENDLESS)
        else:
            self._refuse(replies.BARE_NEWLINE_IN_COMMAND)

    def _refuse(self, reply: Reply, verb: Verb | None = None) -> None:
        """Write an error, and count it: 4xx is no fault of the client's, 5xx is.

        :param verb: the command that it answers.
        """
        self.refusals += 1
        if reply.code >= 500:
            self._errors += 1
            if self._errors > self._settings.errors and not reply.close:
                reply = replies.TOO_MANY_ERRORS
        self._write(reply, extended=self._has_enhanced(verb))

    def _has_enhanced(self, verb: Verb | None) -> bool:
        """Say whether the reply to `verb` has an enhanced code (RFC 2034 section 4)."""
        return self.extended and verb not in _GREETINGS

    # --- commands -----------------------------------------------------------------------------

    def _command(self, line: bytes) -> Event | None:
        word, _, argument = line.partition(b" ")
        if (
            self.last_call is not None
            and self.state not in _TRANSACTION
            and word.upper() != b"QUIT"
        ):
            self._write(self.last_call)
            return None
        known = self._COMMANDS.get(word) or self._COMMANDS.get(word.upper())
        if self.trace is not None:
            self.trace("C", commands.redact(line, known=known is not None))
        if known is None:
            self._refuse(replies.UNKNOWN_COMMAND)
            return None
        verb, parse = known
        after = TABLE[self.state][verb]
        if type(after) is not State:
            self._refuse(after)  # type: ignore[arg-type]
            return None
        self._after = after
        # RFC 5321 section 4.1.1 asks to tolerate white space before the CRLF.
        event = parse(self, argument.rstrip(b" \t"))
        if type(event) is Reply:
            self._refuse(event, verb)
            return None
        if event is not None:
            self._verb = verb
        return event  # type: ignore[return-value]

    def _helo(self, argument: bytes) -> Event | Reply | None:
        return commands.hello(argument, extended=False)

    def _ehlo(self, argument: bytes) -> Event | Reply | None:
        return commands.hello(argument, extended=True)

    def _mail(self, argument: bytes) -> Event | Reply | None:
        return commands.mail(argument, self._settings)

    def _rcpt(self, argument: bytes) -> Event | Reply | None:
        event = commands.rcpt(argument, self._settings)
        if self._recipients >= self._settings.recipients and type(event) is Rcpt:
            return replies.TOO_MANY_RECIPIENTS
        return event

    def _data(self, argument: bytes) -> Event | Reply | None:
        return replies.NO_ARGUMENT if argument else _DATA

    def _rset(self, argument: bytes) -> Event | Reply | None:
        return replies.NO_ARGUMENT if argument else _RESET

    def _noop(self, _argument: bytes) -> Event | Reply | None:
        self._write(replies.OK)
        return None

    def _quit(self, argument: bytes) -> Event | Reply | None:
        return replies.NO_ARGUMENT if argument else _QUIT

    def _vrfy(self, argument: bytes) -> Event | Reply | None:
        return commands.vrfy(argument)

    def _expn(self, _argument: bytes) -> Event | Reply | None:
        return replies.NOT_IMPLEMENTED

    def _help(self, _argument: bytes) -> Event | Reply | None:
        self._write(replies.HELP)
        return None

    def _starttls(self, argument: bytes) -> Event | Reply | None:
        if self.tls:
            return replies.ALREADY_TLS
        if not self._settings.starttls:
            return replies.NOT_IMPLEMENTED
        return replies.NO_ARGUMENT if argument else StartTLS()

    # --- AUTH -----------------------------------------------------------------------------------

    def _auth(self, argument: bytes) -> Event | Reply | None:
        if not self._settings.auth:
            return replies.NOT_IMPLEMENTED
        if not self.extended:
            return replies.SEND_EHLO_FIRST
        if self.authenticated:
            return replies.ALREADY_AUTHENTICATED
        if not auth_offered(self._settings, tls=self.tls):
            return replies.AUTH_NEEDS_TLS
        name, space, initial = argument.partition(b" ")
        if not name or (space and (not initial or b" " in initial)):
            return replies.AUTH_SYNTAX
        mechanism = MECHANISMS.get(name.upper())
        if mechanism is None:
            return replies.AUTH_UNKNOWN_MECHANISM
        exchange = mechanism()
        self._exchange = (name.upper().decode("ascii"), exchange)
        if space:
            return self._step(initial)
        self.state = State.AUTH
        self._write(exchange.prompt)
        return None

    def _response(self, line: bytes) -> Event | None:
        """Take a line of a running exchange."""
        if self.trace is not None:
            self.trace("C", b"<credentials>")
        event = self._step(line)
        if type(event) is Reply:
            self._refuse(event)
            return None
        if event is not None:
            self._verb = Verb.AUTH
        return event  # type: ignore[return-value]

    def _step(self, line: bytes) -> Event | Reply | None:
        assert self._exchange is not None
        mechanism, exchange = self._exchange
        # RFC 4954 section 4: "*" cancels.
        response = None if line == b"*" else decode(line)
        result: Identity | Reply | None
        if response is None:
            result = replies.AUTH_CANCELLED if line == b"*" else replies.AUTH_BAD_BASE64
        else:
            result = exchange.respond(response)
        if result is None:
            self.state = State.AUTH
            self._write(exchange.prompt)
            return None
        self._exchange = None
        self.state = State.READY
        if type(result) is Reply:
            return self._auth_failed(result) if result is replies.AUTH_FAILED else result
        assert type(result) is Identity
        return Credentials(result.username, result.password, mechanism)

    def _auth_failed(self, reply: Reply) -> Reply:
        self._auth_failures += 1
        if self._auth_failures >= self._settings.auth_failures:
            return replies.TOO_MANY_AUTH_FAILURES
        return reply

    _COMMANDS: ClassVar[dict[bytes, tuple[Verb, Callable[[Core, bytes], Event | Reply | None]]]] = {
        b"HELO": (Verb.HELO, _helo),
        b"EHLO": (Verb.EHLO, _ehlo),
        b"MAIL": (Verb.MAIL, _mail),
        b"RCPT": (Verb.RCPT, _rcpt),
        b"DATA": (Verb.DATA, _data),
        b"RSET": (Verb.RSET, _rset),
        b"NOOP": (Verb.NOOP, _noop),
        b"QUIT": (Verb.QUIT, _quit),
        b"VRFY": (Verb.VRFY, _vrfy),
        b"EXPN": (Verb.EXPN, _expn),
        b"HELP": (Verb.HELP, _help),
        b"STARTTLS": (Verb.STARTTLS, _starttls),
        b"AUTH": (Verb.AUTH, _auth),
    }
