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

from typing import TYPE_CHECKING

from preforkmx.errors import LocalProtocolError
from preforkmx.protocol import commands, replies, verbs
from preforkmx.protocol.authentication import Authentication
from preforkmx.protocol.chunking import Transfer, parse_chunk
from preforkmx.protocol.endpoint import Endpoint, Trace
from preforkmx.protocol.events import (
    Bdat,
    Chunk,
    Closing,
    End,
    Event,
    Foreign,
    Gone,
    NeedData,
    Pause,
)
from preforkmx.protocol.framing import LINE_LIMIT, Trouble
from preforkmx.protocol.message import Data
from preforkmx.protocol.order import LAST_IN_FLIGHT, WORK, State, Verb
from preforkmx.protocol.patience import Patience
from preforkmx.protocol.replies import Reply
from preforkmx.protocol.sasl import RESPONSE_LIMIT

if TYPE_CHECKING:
    from preforkmx.protocol.settings import Settings

COMMANDS_A_TURN = 100
"""Commands that are answered before others get their turn."""

NEED_DATA = NeedData()
PAUSE = Pause()
GONE = Gone()

_TRANSACTION = frozenset(
    {State.MAIL, State.RCPT, State.MESSAGE, State.CHUNK, State.CHUNKS, State.DELIVERY}
)
_GREETINGS = frozenset({Verb.HELO, Verb.EHLO})
_SPECIAL = frozenset(
    {
        State.CONNECTED,
        State.MESSAGE,
        State.CHUNK,
        State.SKIP,
        State.DELIVERY,
        State.TLS,
        State.CLOSED,
    }
)
# Members that the path of every command looks at: Enum's own look-up is slow (up to 3.11).
_GREETED, _READY, _AUTH = State.GREETED, State.READY, State.AUTH
_MESSAGE, _DELIVERY = State.MESSAGE, State.DELIVERY
_MAIL, _RCPT, _DATA, _BDAT = Verb.MAIL, Verb.RCPT, Verb.DATA, Verb.BDAT
# Events without fields.
_BEGINS = Bdat()
_FOREIGN = Foreign()

_HTTP = frozenset(
    {b"CONNECT", b"DELETE", b"GET", b"HEAD", b"OPTIONS", b"PATCH", b"POST", b"PRI", b"PUT"}
)
# The first octet of a TLS record that begins a handshake (RFC 8446 section 5.1).
_TLS_HANDSHAKE = b"\x16"


class Core(Endpoint):
    """The server's side of one SMTP or LMTP session, without its transport.

    :param settings: shared by all sessions of a listener.
    :param tls: the transport is encrypted already (implicit TLS).
    :param may_forward: the peer may use XCLIENT.
    :param trace: is told every line and reply, for debugging.
    """

    __slots__ = (
        "_after",
        "_closing",
        "_commands",
        "_data",
        "_strict",
        "_transfer",
        "_verb",
        "authenticated",
        "authentication",
        "binarymime",
        "earlier_recipients",
        "extended",
        "last_call",
        "may_forward",
        "patience",
        "recipients",
        "settings",
        "smtputf8",
        "state",
        "tls",
        "transactions",
    )

    def __init__(
        self,
        settings: Settings,
        *,
        tls: bool = False,
        may_forward: bool = False,
        trace: Trace | None = None,
    ) -> None:
        self.settings = settings
        super().__init__(normalize=settings.bare_newline == "normalize", trace=trace)
        self._commands = verbs.LMTP if settings.lmtp else verbs.SMTP
        self._strict = settings.strict_flights
        self._data: Data | None = None
        self._transfer: Transfer | None = None
        self.authentication = Authentication(settings.auth_failures)
        self.patience = Patience(settings)
        # The command that waits for accept() or refuse(), and the state if it is accepted.
        self._verb: Verb | None = None
        self._after = State.CONNECTED
        self._closing: Reply | None = None
        self.recipients = 0
        """Of this transaction, accepted; after it, until the next one begins."""
        self.earlier_recipients = 0
        """Of the transactions before."""
        self.transactions = 0
        """MAIL commands that were accepted."""
        self.smtputf8 = False
        """MAIL asked for it."""
        self.binarymime = False
        """MAIL said so."""
        self.state = State.CONNECTED
        self.extended = False
        """The client greeted with EHLO or LHLO."""
        self.authenticated = False
        self.last_call: Reply | None = None
        """Where this is set, the next command outside a transaction gets it as the last reply."""
        self.tls = tls
        self.may_forward = may_forward

    @property
    def closed(self) -> bool:
        """The last reply was written."""
        return self.state is State.CLOSED

    def write(self, reply: Reply, *, extended: bool | None = None) -> None:
        """Write `reply`; the session is over if it says so."""
        if extended is None:
            extended = self.extended
        octets = (reply.extended if extended else reply.plain) or reply.octets(extended=extended)
        self.output.append(octets)
        if self.trace is not None:
            self.trace("S", octets)
        if reply.close:
            self._closing = reply
            self.state = State.CLOSED

    # --- the caller's decisions ---------------------------------------------------------------

    def greet(self) -> None:
        """Write the 220 greeting: the session begins, or begins again after XCLIENT."""
        if self.state is not State.CONNECTED:
            raise LocalProtocolError("greet() after the greeting")
        self.state = State.GREETED
        self.write(self.settings.greeting)

    def shut(self, reply: Reply) -> None:
        """Write `reply` as the last one, whatever is pending; the next event is Closing."""
        verb, self._verb = self._verb, None
        self.write(reply, extended=self._has_enhanced(verb))
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
        if verb is _RCPT:
            self.recipients += 1
            self.write(reply or replies.RECIPIENT_OK)
        elif verb is _MAIL:
            self.earlier_recipients += self.recipients
            self.recipients = 0
            self.transactions += 1
            self.write(reply or replies.SENDER_OK)
        elif verb is _DATA:
            self._data = Data(self.settings)
            self.write(replies.START_MESSAGE)
        elif verb is not _BDAT:
            self._transfer = None
            self._accept_rest(verb, reply)

    def _accept_rest(self, verb: Verb, reply: Reply | None) -> None:
        """:meth:`accept` for what is no part of a transaction."""
        if verb is Verb.QUIT:
            self.write(reply or replies.BYE)
        elif verb is Verb.HELO:
            self.extended = False
            self.write(reply or self.settings.helo)
        elif verb is Verb.EHLO:
            self.extended = True
            self.write(
                reply or self.settings.ehlo(tls=self.tls, xclient=self.may_forward),
                extended=False,
            )
        elif verb is Verb.AUTH:
            self.authenticated = True
            self.write(reply or replies.AUTHENTICATED)
        elif verb is Verb.STARTTLS:
            if self._framer.buffered:
                # RFC 3207 section 4.2 and CVE-2011-0411: what was sent before the handshake
                # is somebody else's.
                self._framer.take()
                self.write(replies.TLS_INJECTION)
            else:
                self.write(reply or replies.READY_FOR_TLS)
        elif verb is Verb.XCLIENT:
            self.extended = False
            self.authenticated = False
        else:
            self.write(reply or replies.OK)

    def refuse(self, reply: Reply) -> None:
        """Refuse the command of the last event: write `reply`, stay in the state before it."""
        verb = self._verb
        if verb is None or verb is Verb.BDAT:
            raise LocalProtocolError("refuse() without a command that can be refused")
        self._verb = None
        if verb is Verb.AUTH and reply.code >= 500:
            reply = self.authentication.failed(reply)
        self._refuse(reply, verb)

    def finish(self, *answers: Reply) -> None:
        """Answer the message: the transaction is over, whatever the answer.

        :param answers: one; in LMTP one for each accepted recipient (RFC 2033 section 4.2).
        """
        if self.state is not _DELIVERY:
            raise LocalProtocolError("finish() without a complete message")
        self.state = _READY
        refused = False
        for reply in answers:
            if reply.code == 250:
                self.patience.delivered()
            elif reply.code >= 500:
                refused = True
            self.write(reply)
        if refused:
            self.patience.faults += 1

    def fail_chunks(self, reply: Reply) -> None:
        """Refuse the chunks that are still to come with `reply`: nobody takes the message.

        Nothing of a message that came with DATA.
        """
        if self._transfer is not None and self._transfer.failure is None:
            self._transfer.failure = reply

    def give_up_chunks(self) -> None:
        """The command of the last event came between two chunks: there will be no message.

        It is answered as if there had been no transaction.
        """
        self._transfer = None
        if self.state is State.CHUNKS:
            self.state = _READY

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
        return self.state in _TRANSACTION or (
            self.state is State.SKIP and self._after in _TRANSACTION
        )

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
                special = self._special()
                if special is not None:
                    return special
                continue
            state = self.state
            if state is _GREETED and self._framer.starts_with(_TLS_HANDSHAKE):
                self.state = State.CLOSED
                return _FOREIGN
            line = self._framer.next_line(LINE_LIMIT if state is not _AUTH else RESPONSE_LIMIT)
            if line is None:
                return GONE if self._eof else NEED_DATA
            if type(line) is not bytes:
                self._trouble(line)  # type: ignore[arg-type]
                continue
            event = self._command(line) if state is not _AUTH else self._response(line)
            if event is not None:
                return event
        return PAUSE

    def _special(self) -> Event | None:
        """The next event where octets are no commands; None: they are again."""
        state = self.state
        if state is _MESSAGE:
            return self.next_of_message()
        if state is State.CHUNK or state is State.SKIP:
            return self._next_of_chunk()
        if self._closing is not None:
            return Closing(self._closing)
        if state is _DELIVERY:
            raise LocalProtocolError("next_event() before the message was answered")
        if state is State.CLOSED:
            return _FOREIGN
        return GONE if self._eof else NEED_DATA

    def next_of_message(self) -> Event:
        """:meth:`next_event` for those who know that a message arrives."""
        data = self._data
        if data is None:
            return self.next_event()
        event = data.next(self._framer)
        if event is None:
            return GONE if self._eof else NEED_DATA
        if type(event) is End:
            self._data = None
            self.state = _DELIVERY
        return event

    def _next_of_chunk(self) -> Event | None:
        """The octets of the present chunk, or the message's end; None: a command comes next."""
        transfer = self._transfer
        assert transfer is not None
        event = transfer.next(self._framer)
        if event is None:
            return GONE if self._eof else NEED_DATA
        if type(event) is Chunk:
            return event
        if self.state is State.SKIP:
            # Whatever chunk it was, there was no message for it.
            self._transfer = None
            self.state = self._after
            assert transfer.failure is not None
            self._refuse(transfer.failure)
            return None
        if type(event) is End:
            self._transfer = None
            self.state = _DELIVERY
            return event
        assert type(event) is Reply
        self.state = State.CHUNKS
        if event.code == 250:
            self.write(event)
        else:
            self._refuse(event)
        return None

    def _trouble(self, trouble: Trouble) -> None:
        if self.trace is not None:
            self.trace("C", f"<{trouble.value}>".encode())
        if trouble is Trouble.TOO_LONG:
            if self.state is State.AUTH:
                self.authentication.cancel()
                self.state = _READY
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
        reply = self.patience.refused(reply, counts_as_idle=verb is None or verb in WORK)
        self.write(reply, extended=self._has_enhanced(verb))

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
            self.write(self.last_call)
            return None
        known = self._commands[self.state]
        command = known.get(word) or known.get(word.upper())
        if self.trace is not None:
            self.trace("C", commands.redact(line, known=command is not None))
        if command is None:
            return self._unknown(word)
        verb, parse, works, after = command
        if self._strict and self._framer.buffered and self._sends_too_early(verb):
            self._refuse(replies.SENT_TOO_EARLY, verb)
            return None
        if not works and self.patience.idle():
            self._refuse(replies.TOO_MANY_COMMANDS, verb)
            return None
        # RFC 5321 section 4.1.1 asks to tolerate white space before the CRLF.
        argument = argument.rstrip(b" \t")
        if verb is _BDAT:
            return self._bdat(argument, after)
        if type(after) is Reply:
            self._refuse(after, verb)
            return None
        self._after = after  # type: ignore[assignment]
        event = parse(self, argument)
        if type(event) is Reply:
            self._refuse(event, verb)
            return None
        if event is not None:
            self._verb = verb
        return event  # type: ignore[return-value]

    def _unknown(self, word: bytes) -> Event | None:
        if word.upper() in _HTTP and self.state not in _TRANSACTION:
            # A browser that a page makes talk to this port, or a proxy: what it sends next may
            # be anybody's choice, and look like SMTP.
            self.state = State.CLOSED
            return _FOREIGN
        self._refuse(replies.UNKNOWN_COMMAND)
        return None

    def _sends_too_early(self, verb: Verb) -> bool:
        """There is more behind `verb` in its flight: is that against the rules?

        A client that did not see PIPELINING must send nothing early (RFC 2920 section 3.1),
        and nobody may behind certain commands. Whoever does it may be a spammer in a hurry, or
        two clients in one connection.
        """
        return verb in LAST_IN_FLIGHT or not self.extended

    def _bdat(self, argument: bytes, after: State | Reply) -> Event | None:
        """Take BDAT. The octets behind it are never commands, whatever is wrong with it."""
        chunk = parse_chunk(argument)
        if chunk is None:
            self._refuse(replies.BDAT_SYNTAX)
            return None
        transfer = self._transfer
        begins = transfer is None
        if transfer is None:
            transfer = Transfer(self.settings)
        size, last = chunk
        if not self.settings.chunking:
            after = replies.NOT_IMPLEMENTED
        if isinstance(after, Reply):
            transfer.failure = after
        transfer.begin(size, last=last)
        if transfer.too_large_to_read:
            self._refuse(replies.TOO_LARGE_TO_READ)
            return None
        self._transfer = transfer
        if isinstance(after, Reply):
            # RFC 3030 section 2: the chunk is read, and thrown away.
            self._after = self.state
            self.state = State.SKIP
            return None
        if begins:
            self._after = after
            self._verb = Verb.BDAT
            return _BEGINS
        self.state = after
        return None

    def _response(self, line: bytes) -> Event | None:
        """Take a line of a running exchange."""
        if self.trace is not None:
            self.trace("C", b"<credentials>")
        # What a refusal, and an acceptance, find.
        self.state = _READY
        if self._strict and self._framer.buffered:
            self.authentication.cancel()
            self._refuse(replies.SENT_TOO_EARLY)
            return None
        event = self.ask_on(self.authentication.respond(line))
        if type(event) is Reply:
            self._refuse(event, Verb.AUTH)
            return None
        if event is not None:
            self._verb = Verb.AUTH
        return event  # type: ignore[return-value]

    def ask_on(self, answer: Event | Reply) -> Event | Reply | None:
        """Ask on where the exchange does."""
        if type(answer) is Reply and answer.code == 334:
            self.state = State.AUTH
            self.write(answer)
            return None
        return answer
