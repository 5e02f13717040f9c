"""Every reply that the server writes of its own accord, in one catalogue.

Hooks and handlers add theirs as :class:`~preforkmx.errors.SMTPError`;
:meth:`Reply.from_error` puts both in one form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from preforkmx.errors import SMTPError

LINE_LIMIT = 512
"""Octets of a reply line, CRLF included (RFC 5321 section 4.5.3.1.5)."""

EnhancedCode = tuple[int, int, int]

# C0 controls, DEL and C1 controls: a line break among them would make one reply two.
_CONTROLS = dict.fromkeys((*range(32), *range(127, 160), 8232, 8233), " ")


class Reply:
    """One reply: its code, its lines of text, its enhanced code.

    :param text: one string a line. Control characters become spaces, what is not ASCII
        becomes ``?``, and a line that would exceed 512 octets is continued on the next.
    :param enhanced: the enhanced status code (RFC 3463), written in front of each line for
        clients that greeted with EHLO (RFC 2034 section 4); None where RFC 2034 has none.
    :param close: the session ends after this reply.
    :param utf8: the client asked for UTF-8 in this one reply.
    """

    __slots__ = ("_charset", "close", "code", "enhanced", "extended", "lines", "plain")

    limit: str = ""
    """The name of the limit that is reached, for the log; ``""``: none is."""

    def __init__(
        self,
        code: int,
        *text: str,
        enhanced: EnhancedCode | None = None,
        close: bool = False,
        utf8: bool = False,
    ) -> None:
        self.code = code
        self._charset = "utf-8" if utf8 else "ascii"
        self.lines = (
            text
            if len(text) == 1 and text[0].isprintable()
            else tuple(line.translate(_CONTROLS) for line in text) or ("",)
        )
        self.enhanced = enhanced
        self.close = close or code == 421
        # What octets() made: looked at here by those who cannot afford its call.
        self.plain: bytes | None = None
        self.extended: bytes | None = None

    @classmethod
    def from_error(cls, error: SMTPError) -> Reply:
        """Return the reply that a hook asked for."""
        if error.limit:
            return _LimitReply(error)
        return cls(error.code, error.message, enhanced=error.enhanced, close=error.close)

    def closing(self) -> Reply:
        """Return this reply as the last one of its session."""
        return Reply(self.code, *self.lines, enhanced=self.enhanced, close=True)

    @property
    def text(self) -> str:
        """The reply on one line, for the log."""
        text = self.lines[0] if len(self.lines) == 1 else " ".join(self.lines)
        if self.enhanced is None:
            return f"{self.code} {text}"
        kind, subject, detail = self.enhanced
        return f"{self.code} {kind}.{subject}.{detail} {text}"

    def octets(self, *, extended: bool) -> bytes:
        """Return the reply as it goes over the wire.

        :param extended: with its enhanced code: the client greeted with EHLO.
        """
        if extended:
            octets = self.extended
            if octets is None:
                octets = self.extended = self._format(self.enhanced)
        else:
            octets = self.plain
            if octets is None:
                octets = self.plain = self._format(None)
        return octets

    def _format(self, enhanced: EnhancedCode | None) -> bytes:
        prefix = f"{enhanced[0]}.{enhanced[1]}.{enhanced[2]} " if enhanced else ""
        room = LINE_LIMIT - len("250 \r\n") - len(prefix)
        if len(self.lines) == 1 and len(self.lines[0]) <= room:
            return f"{self.code} {prefix}{self.lines[0]}\r\n".encode(self._charset, "replace")
        lines = [
            line[start : start + room]
            for line in self.lines
            for start in range(0, max(len(line), 1), room)
        ]
        last = len(lines) - 1
        return b"".join(
            f"{self.code}{'-' if i < last else ' '}{prefix}{line}".encode(self._charset, "replace")
            + b"\r\n"
            for i, line in enumerate(lines)
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reply) and (
            (self.code, self.lines, self.enhanced, self.close)
            == (other.code, other.lines, other.enhanced, other.close)
        )

    def __hash__(self) -> int:
        return hash((self.code, self.lines, self.enhanced, self.close))

    def __repr__(self) -> str:
        return f"<Reply {self.text}{' and close' if self.close else ''}>"


class _LimitReply(Reply):
    """The reply of a limit: few replies pay for its name."""

    __slots__ = ("limit",)

    def __init__(self, error: SMTPError) -> None:
        super().__init__(error.code, error.message, enhanced=error.enhanced, close=error.close)
        self.limit = error.limit


# --- success -----------------------------------------------------------------------------

OK = Reply(250, "Ok", enhanced=(2, 0, 0))
"""To RSET and NOOP."""
SENDER_OK = Reply(250, "Ok", enhanced=(2, 1, 0))
"""To MAIL: a transaction begins."""
RECIPIENT_OK = Reply(250, "Ok", enhanced=(2, 1, 5))
"""To RCPT."""
START_MESSAGE = Reply(354, "End data with <CR><LF>.<CR><LF>")
"""To DATA: the message may come."""
BYE = Reply(221, "Bye", enhanced=(2, 0, 0), close=True)
"""To QUIT."""
READY_FOR_TLS = Reply(220, "Ready to start TLS", enhanced=(2, 0, 0))
"""To STARTTLS: the client's next octets are a TLS handshake."""
AUTHENTICATED = Reply(235, "Authentication successful", enhanced=(2, 7, 0))
"""At the end of an AUTH exchange whose credentials were right."""
CANNOT_VERIFY = Reply(
    252, "Cannot VRFY the user, but will take messages for it", enhanced=(2, 5, 0)
)
"""To VRFY where no verify hook names a mailbox, and between the chunks of a message."""
HELP = Reply(
    214,
    "Commands: HELO EHLO MAIL RCPT DATA BDAT RSET NOOP QUIT VRFY HELP STARTTLS AUTH",
    "See RFC 5321",
    enhanced=(2, 0, 0),
)
"""To HELP, whatever its argument."""
LMTP_HELP = Reply(
    214,
    "Commands: LHLO MAIL RCPT DATA BDAT RSET NOOP QUIT VRFY HELP STARTTLS AUTH",
    "See RFC 2033",
    enhanced=(2, 0, 0),
)
"""To HELP in LMTP, whatever its argument."""
USERNAME_PROMPT = Reply(334, "VXNlcm5hbWU6")
"""To AUTH LOGIN without an initial response: ``Username:`` in base64."""
PASSWORD_PROMPT = Reply(334, "UGFzc3dvcmQ6")
"""After the user name of AUTH LOGIN: ``Password:`` in base64."""
EMPTY_CHALLENGE = Reply(334, "")
"""To AUTH PLAIN without an initial response (RFC 4954 section 4)."""

# --- the order of commands (RFC 5321 section 4.1.4) -----------------------------------------

SEND_HELLO_FIRST = Reply(503, "Send HELO or EHLO first", enhanced=(5, 5, 1))
"""To MAIL, RCPT, DATA and BDAT before HELO or EHLO."""
SEND_EHLO_FIRST = Reply(503, "Send EHLO first", enhanced=(5, 5, 1))
"""To STARTTLS before HELO or EHLO, and to AUTH before EHLO."""
SEND_LHLO_FIRST = Reply(503, "Send LHLO first", enhanced=(5, 5, 1))
"""In LMTP, to a command that comes before the LHLO that it needs."""
NEED_MAIL = Reply(503, "Send MAIL first", enhanced=(5, 5, 1))
"""To RCPT, DATA and BDAT outside of a transaction."""
NESTED_MAIL = Reply(503, "There is a transaction already", enhanced=(5, 5, 1))
"""To MAIL inside a transaction."""
NOT_IN_TRANSACTION = Reply(503, "Not during a mail transaction", enhanced=(5, 5, 1))
"""To STARTTLS, AUTH and XCLIENT inside a transaction."""
NO_VALID_RECIPIENTS = Reply(554, "No valid recipients", enhanced=(5, 5, 1))
"""To DATA and BDAT when no recipient was accepted."""
ALREADY_TLS = Reply(503, "TLS is active already", enhanced=(5, 5, 1))
"""To STARTTLS under TLS."""
ALREADY_AUTHENTICATED = Reply(503, "Authenticated already", enhanced=(5, 5, 1))
"""To AUTH in a session that has authenticated (RFC 4954 section 4)."""
CHUNKS_BEGAN = Reply(503, "BDAT began this message, and ends it", enhanced=(5, 5, 1))
"""To RCPT and DATA between the chunks of a message (RFC 3030 section 2)."""
BINARY_NEEDS_CHUNKS = Reply(503, "BODY=BINARYMIME needs BDAT", enhanced=(5, 5, 1))
"""To DATA after a MAIL with BODY=BINARYMIME (RFC 3030 section 3)."""
LMTP_NO_RECIPIENTS = Reply(503, "No valid recipients", enhanced=(5, 5, 1))
"""In LMTP, to DATA and BDAT when no recipient was accepted (RFC 2033 section 4.2)."""
SEND_LHLO = Reply(500, "This is LMTP: send LHLO", enhanced=(5, 5, 1))
"""In LMTP, to HELO and EHLO (RFC 2033 section 4.1)."""
SEND_EHLO = Reply(500, "This is SMTP: send EHLO or HELO", enhanced=(5, 5, 1))
"""To LHLO on a listener that speaks SMTP."""
SENT_TOO_EARLY = Reply(
    554, "You sent more before you had the answer", enhanced=(5, 5, 0), close=True
)
"""To a client that talks before its greeting where there is a `greeting_delay`, or that sends on
where RFC 2920 makes it wait and `strict_flights` holds."""

# --- syntax ------------------------------------------------------------------------------

UNKNOWN_COMMAND = Reply(500, "Command not recognized", enhanced=(5, 5, 2))
"""To a line that begins with no command of this server."""
LINE_TOO_LONG = Reply(500, "Line too long", enhanced=(5, 5, 2))
"""To a line of more than 2,048 octets, once its end was found."""
LINE_ENDLESS = Reply(500, "Line too long", enhanced=(5, 5, 2), close=True)
"""To a line that has no end within 8,192 octets beyond its limit."""
BARE_NEWLINE_IN_COMMAND = Reply(
    500, "Lines end with <CR><LF>, and only there", enhanced=(5, 5, 2), close=True
)
"""To a line with a CR or LF that stands alone, where `bare_newline` rejects it."""
NO_ARGUMENT = Reply(501, "This command takes no argument", enhanced=(5, 5, 4))
"""To DATA, RSET, QUIT and STARTTLS with an argument."""
HELLO_SYNTAX = Reply(501, "Syntax: HELO or EHLO, then your host name", enhanced=(5, 5, 4))
"""To HELO, EHLO and LHLO without a name, or with one that is no printable ASCII word of at most 255
octets."""
MAIL_SYNTAX = Reply(501, "Syntax: MAIL FROM:<address>", enhanced=(5, 5, 4))
"""To MAIL without ``FROM:``."""
RCPT_SYNTAX = Reply(501, "Syntax: RCPT TO:<address>", enhanced=(5, 5, 4))
"""To RCPT without ``TO:``."""
AUTH_SYNTAX = Reply(501, "Syntax: AUTH mechanism [initial-response]", enhanced=(5, 5, 4))
"""To AUTH without a mechanism, or with more than one word behind it."""
VRFY_SYNTAX = Reply(501, "Syntax: VRFY address", enhanced=(5, 5, 4))
"""To VRFY without a printable argument, or with a value at its SMTPUTF8."""
BAD_SENDER = Reply(501, "Bad sender address syntax", enhanced=(5, 1, 7))
"""To MAIL with a path that breaks the grammar, or has no domain."""
BAD_RECIPIENT = Reply(501, "Bad recipient address syntax", enhanced=(5, 1, 3))
"""To RCPT with a path that breaks the grammar, or is empty."""
SENDER_TOO_LONG = Reply(501, "Path too long", enhanced=(5, 1, 7))
"""To MAIL with a path, local part or domain that is longer than its bound."""
RECIPIENT_TOO_LONG = Reply(501, "Path too long", enhanced=(5, 1, 3))
"""To RCPT with a path, local part or domain that is longer than its bound."""
SENDER_NOT_ASCII = Reply(550, "Non-ASCII sender not accepted", enhanced=(5, 6, 7))
"""To MAIL with a path that is not ASCII and without SMTPUTF8 (RFC 6531 section 3.5)."""
RECIPIENT_NOT_ASCII = Reply(553, "Non-ASCII recipient not accepted", enhanced=(5, 6, 7))
"""To RCPT with a path that is not ASCII where MAIL had no SMTPUTF8 (RFC 6531 section 3.5)."""
BAD_PARAMETER = Reply(501, "Bad parameter syntax", enhanced=(5, 5, 4))
"""To MAIL and RCPT with a parameter that breaks its syntax, or comes twice."""
UNKNOWN_PARAMETER = Reply(555, "Parameter not recognized", enhanced=(5, 5, 4))
"""To MAIL and RCPT with a parameter of an extension that is not offered (RFC 5321 section
4.1.1.11)."""
NOT_IMPLEMENTED = Reply(502, "Command not implemented", enhanced=(5, 5, 1))
"""To EXPN always, and to STARTTLS, AUTH and BDAT where they are not offered at all."""
NOT_UTF8 = Reply(501, "Not valid UTF-8", enhanced=(5, 5, 2))
"""To MAIL, RCPT and VRFY with octets that are not UTF-8."""
VRFY_NEEDS_UTF8 = Reply(252, "The answer needs SMTPUTF8 (RFC 6531)", enhanced=(2, 6, 8))
"""To VRFY without SMTPUTF8, for a mailbox that is not ASCII (RFC 6531 section 3.7.4.2)."""
BDAT_SYNTAX = Reply(501, "Syntax: BDAT size [LAST]", enhanced=(5, 5, 4), close=True)
"""To BDAT whose size is missing or is none: nobody knows where its chunk ends."""
XCLIENT_SYNTAX = Reply(501, "Syntax: XCLIENT attribute=value ...", enhanced=(5, 5, 4))
"""To XCLIENT with an attribute that is unknown, comes twice or has a bad value."""
XCLIENT_NOT_FOR_YOU = Reply(550, "XCLIENT is not for you", enhanced=(5, 7, 1))
"""To XCLIENT from a client that is not in `xclient_from`."""

# --- AUTH (RFC 4954 section 4 and 6) --------------------------------------------------------

AUTH_CANCELLED = Reply(501, "Authentication cancelled", enhanced=(5, 7, 0))
"""To ``*`` instead of a response."""
AUTH_BAD_BASE64 = Reply(501, "Cannot decode the response", enhanced=(5, 5, 2))
"""To a response that is not base64, or not of its mechanism's form in UTF-8."""
AUTH_TOO_LONG = Reply(500, "Authentication exchange line is too long", enhanced=(5, 5, 6))
"""To a response of more than 12,288 octets, once its end was found."""
AUTH_UNKNOWN_MECHANISM = Reply(504, "Unknown authentication mechanism", enhanced=(5, 5, 4))
"""To AUTH with a mechanism that EHLO does not list."""
AUTH_NEEDS_TLS = Reply(
    538, "Encryption required for the requested authentication", enhanced=(5, 7, 11)
)
"""To AUTH in plain text, unless `allow_insecure_auth` permits it."""
AUTH_FAILED = Reply(535, "Authentication credentials invalid", enhanced=(5, 7, 8))
"""To credentials that are wrong, empty, or of somebody who wants to act for somebody else."""

# --- limits --------------------------------------------------------------------------------

TOO_MANY_RECIPIENTS = Reply(452, "Too many recipients", enhanced=(4, 5, 3))
"""To RCPT beyond `recipients`; those before it stay accepted."""
TOO_LARGE = Reply(552, "Message exceeds the maximum size", enhanced=(5, 3, 4))
"""To MAIL with a SIZE above `message_size`, and to a message or chunk that went above it."""
TOO_LARGE_TO_READ = Reply(552, "Message exceeds the maximum size", enhanced=(5, 3, 4), close=True)
"""In the middle of a message, or to BDAT, above twice `message_size`."""
BARE_NEWLINE = Reply(
    550, "A line of the message does not end with <CR><LF>", enhanced=(5, 5, 2), close=True
)
"""After a message from DATA in which a CR or LF stands alone, where `bare_newline` rejects it."""
TOO_MANY_ERRORS = Reply(421, "Too many errors", enhanced=(4, 7, 0))
"""Instead of the 5xx with which there are more than `errors` since the last message that was
taken."""
TOO_MANY_AUTH_FAILURES = Reply(421, "Too many failed authentications", enhanced=(4, 7, 0))
"""Instead of the refusal with which `auth_failures` is reached."""
TOO_MANY_COMMANDS = Reply(421, "Too many commands without a message", enhanced=(4, 7, 0))
"""To the command with which there are more than `commands` since the last message that was
taken."""
TOO_MANY_TRANSACTIONS = Reply(421, "Too many transactions in one session", enhanced=(4, 7, 0))
"""To MAIL after `transactions` of them."""
TOO_MANY_HOPS = Reply(
    554, "Too many Received headers: this message is going in circles", enhanced=(5, 4, 6)
)
"""After a message with more than `hops` Received headers."""
TOO_SLOW = Reply(421, "Your message comes too slowly", enhanced=(4, 4, 2))
"""In the middle of a message that comes more slowly than `minimum_rate`."""

# --- the end of a session (RFC 5321 section 3.8) ----------------------------------------------

SHUTTING_DOWN = Reply(421, "Service shutting down, try again later", enhanced=(4, 3, 2))
"""Once the worker is to stop: to a session that idles, at the next command outside a transaction,
or at the drain's deadline wherever it is."""
TIMED_OUT = Reply(421, "Timeout, closing the connection", enhanced=(4, 4, 2))
"""To a client that sends or reads nothing for `command_timeout`."""
SESSION_TOO_LONG = Reply(421, "The session lasted too long", enhanced=(4, 4, 2))
"""Outside a transaction, to a session that is older than `session_time`."""
TOO_MANY_SESSIONS = Reply(421, "Too many connections, try again later", enhanced=(4, 3, 2))
"""Instead of the greeting, when the worker has `max_sessions` sessions."""
TLS_INJECTION = Reply(554, "Commands after STARTTLS in one flight", enhanced=(5, 5, 0), close=True)
"""To STARTTLS with anything behind it in the same flight (RFC 3207 section 4.2)."""
INTERNAL_ERROR = Reply(421, "Internal error, try again later", enhanced=(4, 3, 0))
"""When a session fails for a bug of this server, or a reset hook refuses after a message."""
NOT_DELIVERED = Reply(451, "The message was not taken, try again", enhanced=(4, 3, 0))
"""After a message that its handler gave up though nothing was wrong with it."""
DELIVERY_TIMEOUT = Reply(451, "The delivery took too long, try again", enhanced=(4, 3, 0))
"""After a message whose handlers took longer than `[delivery] timeout`."""
HOOK_TIMEOUT = Reply(451, "A check took too long, try again", enhanced=(4, 3, 0), close=True)
"""To a command whose hooks took longer than `command_timeout`."""


def greeting(hostname: str, protocol: str = "ESMTP") -> Reply:
    """220: the greeting, which says LMTP where that is spoken.

    RFC 5321 section 4.2: the host name is its first word.
    """
    return Reply(220, f"{hostname} {protocol}")


def hello(hostname: str, *keywords: str) -> Reply:
    """250 to HELO and EHLO: the host name, then one EHLO keyword a line."""
    return Reply(250, hostname, *keywords)


def queued(envelope_id: str) -> Reply:
    """250 after the message: from here on the server is responsible for it.

    :param envelope_id: printable ASCII, some dozen octets of it.
    """
    reply = Reply(250, f"Ok: queued as {envelope_id}", enhanced=(2, 0, 0))
    # One for each message: its octets without the detours of what may be long, or in any script.
    reply.extended = b"250 2.0.0 Ok: queued as %b\r\n" % envelope_id.encode("ascii")
    return reply


def chunk_taken(size: int) -> Reply:
    """250 after a chunk that is not the last (RFC 3030 section 2)."""
    return Reply(250, f"{size} octets received", enhanced=(2, 0, 0))


def verified(mailbox: str, *, smtputf8: bool = False) -> Reply:
    """250 to VRFY: the mailbox that the verify hook named (RFC 5321 section 3.5.1).

    :param smtputf8: the client can read UTF-8; a mailbox that needs it is 252 2.6.8 to others
        (RFC 6531 section 3.7.4.2).
    """
    if not mailbox.isascii() and not smtputf8:
        return VRFY_NEEDS_UTF8
    return Reply(250, f"<{mailbox}>", enhanced=(2, 1, 5), utf8=smtputf8)
