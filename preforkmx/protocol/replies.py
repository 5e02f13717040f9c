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


# --- success -----------------------------------------------------------------------------

OK = Reply(250, "Ok", enhanced=(2, 0, 0))
SENDER_OK = Reply(250, "Ok", enhanced=(2, 1, 0))
RECIPIENT_OK = Reply(250, "Ok", enhanced=(2, 1, 5))
START_MESSAGE = Reply(354, "End data with <CR><LF>.<CR><LF>")
BYE = Reply(221, "Bye", enhanced=(2, 0, 0), close=True)
READY_FOR_TLS = Reply(220, "Ready to start TLS", enhanced=(2, 0, 0))
AUTHENTICATED = Reply(235, "Authentication successful", enhanced=(2, 7, 0))
CANNOT_VERIFY = Reply(
    252, "Cannot VRFY the user, but will take messages for it", enhanced=(2, 5, 0)
)
HELP = Reply(
    214,
    "Commands: HELO EHLO MAIL RCPT DATA BDAT RSET NOOP QUIT VRFY HELP STARTTLS AUTH",
    "See RFC 5321",
    enhanced=(2, 0, 0),
)
LMTP_HELP = Reply(
    214,
    "Commands: LHLO MAIL RCPT DATA BDAT RSET NOOP QUIT VRFY HELP STARTTLS AUTH",
    "See RFC 2033",
    enhanced=(2, 0, 0),
)
USERNAME_PROMPT = Reply(334, "VXNlcm5hbWU6")
PASSWORD_PROMPT = Reply(334, "UGFzc3dvcmQ6")
EMPTY_CHALLENGE = Reply(334, "")

# --- the order of commands (RFC 5321 section 4.1.4) -----------------------------------------

SEND_HELLO_FIRST = Reply(503, "Send HELO or EHLO first", enhanced=(5, 5, 1))
SEND_EHLO_FIRST = Reply(503, "Send EHLO first", enhanced=(5, 5, 1))
SEND_LHLO_FIRST = Reply(503, "Send LHLO first", enhanced=(5, 5, 1))
NEED_MAIL = Reply(503, "Send MAIL first", enhanced=(5, 5, 1))
NESTED_MAIL = Reply(503, "There is a transaction already", enhanced=(5, 5, 1))
NOT_IN_TRANSACTION = Reply(503, "Not during a mail transaction", enhanced=(5, 5, 1))
NO_VALID_RECIPIENTS = Reply(554, "No valid recipients", enhanced=(5, 5, 1))
ALREADY_TLS = Reply(503, "TLS is active already", enhanced=(5, 5, 1))
ALREADY_AUTHENTICATED = Reply(503, "Authenticated already", enhanced=(5, 5, 1))
CHUNKS_BEGAN = Reply(503, "BDAT began this message, and ends it", enhanced=(5, 5, 1))
BINARY_NEEDS_CHUNKS = Reply(503, "BODY=BINARYMIME needs BDAT", enhanced=(5, 5, 1))
LMTP_NO_RECIPIENTS = Reply(503, "No valid recipients", enhanced=(5, 5, 1))
SEND_LHLO = Reply(500, "This is LMTP: send LHLO", enhanced=(5, 5, 1))
SEND_EHLO = Reply(500, "This is SMTP: send EHLO or HELO", enhanced=(5, 5, 1))
SENT_TOO_EARLY = Reply(
    554, "You sent more before you had the answer", enhanced=(5, 5, 0), close=True
)

# --- syntax ------------------------------------------------------------------------------

UNKNOWN_COMMAND = Reply(500, "Command not recognized", enhanced=(5, 5, 2))
LINE_TOO_LONG = Reply(500, "Line too long", enhanced=(5, 5, 2))
LINE_ENDLESS = Reply(500, "Line too long", enhanced=(5, 5, 2), close=True)
BARE_NEWLINE_IN_COMMAND = Reply(
    500, "Lines end with <CR><LF>, and only there", enhanced=(5, 5, 2), close=True
)
NO_ARGUMENT = Reply(501, "This command takes no argument", enhanced=(5, 5, 4))
HELLO_SYNTAX = Reply(501, "Syntax: HELO or EHLO, then your host name", enhanced=(5, 5, 4))
MAIL_SYNTAX = Reply(501, "Syntax: MAIL FROM:<address>", enhanced=(5, 5, 4))
RCPT_SYNTAX = Reply(501, "Syntax: RCPT TO:<address>", enhanced=(5, 5, 4))
AUTH_SYNTAX = Reply(501, "Syntax: AUTH mechanism [initial-response]", enhanced=(5, 5, 4))
VRFY_SYNTAX = Reply(501, "Syntax: VRFY address", enhanced=(5, 5, 4))
BAD_SENDER = Reply(501, "Bad sender address syntax", enhanced=(5, 1, 7))
BAD_RECIPIENT = Reply(501, "Bad recipient address syntax", enhanced=(5, 1, 3))
SENDER_TOO_LONG = Reply(501, "Path too long", enhanced=(5, 1, 7))
RECIPIENT_TOO_LONG = Reply(501, "Path too long", enhanced=(5, 1, 3))
SENDER_NOT_ASCII = Reply(550, "Non-ASCII sender not accepted", enhanced=(5, 6, 7))
RECIPIENT_NOT_ASCII = Reply(553, "Non-ASCII recipient not accepted", enhanced=(5, 6, 7))
BAD_PARAMETER = Reply(501, "Bad parameter syntax", enhanced=(5, 5, 4))
UNKNOWN_PARAMETER = Reply(555, "Parameter not recognized", enhanced=(5, 5, 4))
NOT_IMPLEMENTED = Reply(502, "Command not implemented", enhanced=(5, 5, 1))
NOT_UTF8 = Reply(501, "Not valid UTF-8", enhanced=(5, 5, 2))
VRFY_NEEDS_UTF8 = Reply(252, "The answer needs SMTPUTF8 (RFC 6531)", enhanced=(2, 6, 8))
BDAT_SYNTAX = Reply(501, "Syntax: BDAT size [LAST]", enhanced=(5, 5, 4), close=True)
XCLIENT_SYNTAX = Reply(501, "Syntax: XCLIENT attribute=value ...", enhanced=(5, 5, 4))
XCLIENT_NOT_FOR_YOU = Reply(550, "XCLIENT is not for you", enhanced=(5, 7, 1))

# --- AUTH (RFC 4954 section 4 and 6) --------------------------------------------------------

AUTH_CANCELLED = Reply(501, "Authentication cancelled", enhanced=(5, 7, 0))
AUTH_BAD_BASE64 = Reply(501, "Cannot decode the response", enhanced=(5, 5, 2))
AUTH_TOO_LONG = Reply(500, "Authentication exchange line is too long", enhanced=(5, 5, 6))
AUTH_UNKNOWN_MECHANISM = Reply(504, "Unknown authentication mechanism", enhanced=(5, 5, 4))
AUTH_NEEDS_TLS = Reply(
    538, "Encryption required for the requested authentication", enhanced=(5, 7, 11)
)
AUTH_FAILED = Reply(535, "Authentication credentials invalid", enhanced=(5, 7, 8))

# --- limits --------------------------------------------------------------------------------

TOO_MANY_RECIPIENTS = Reply(452, "Too many recipients", enhanced=(4, 5, 3))
TOO_LARGE = Reply(552, "Message exceeds the maximum size", enhanced=(5, 3, 4))
TOO_LARGE_TO_READ = Reply(552, "Message exceeds the maximum size", enhanced=(5, 3, 4), close=True)
BARE_NEWLINE = Reply(
    550, "A line of the message does not end with <CR><LF>", enhanced=(5, 5, 2), close=True
)
TOO_MANY_ERRORS = Reply(421, "Too many errors", enhanced=(4, 7, 0))
TOO_MANY_AUTH_FAILURES = Reply(421, "Too many failed authentications", enhanced=(4, 7, 0))
TOO_MANY_COMMANDS = Reply(421, "Too many commands without a message", enhanced=(4, 7, 0))
TOO_MANY_TRANSACTIONS = Reply(421, "Too many transactions in one session", enhanced=(4, 7, 0))
TOO_MANY_HOPS = Reply(
    554, "Too many Received headers: this message is going in circles", enhanced=(5, 4, 6)
)
TOO_SLOW = Reply(421, "Your message comes too slowly", enhanced=(4, 4, 2))

# --- the end of a session (RFC 5321 section 3.8) ----------------------------------------------

SHUTTING_DOWN = Reply(421, "Service shutting down, try again later", enhanced=(4, 3, 2))
TIMED_OUT = Reply(421, "Timeout, closing the connection", enhanced=(4, 4, 2))
SESSION_TOO_LONG = Reply(421, "The session lasted too long", enhanced=(4, 4, 2))
TOO_MANY_SESSIONS = Reply(421, "Too many connections, try again later", enhanced=(4, 3, 2))
TLS_INJECTION = Reply(554, "Commands after STARTTLS in one flight", enhanced=(5, 5, 0), close=True)
TLS_UNAVAILABLE = Reply(454, "TLS not available now", enhanced=(4, 7, 0))
INTERNAL_ERROR = Reply(421, "Internal error, try again later", enhanced=(4, 3, 0))
NOT_DELIVERED = Reply(451, "The message was not taken, try again", enhanced=(4, 3, 0))
DELIVERY_TIMEOUT = Reply(451, "The delivery took too long, try again", enhanced=(4, 3, 0))
HOOK_TIMEOUT = Reply(451, "A check took too long, try again", enhanced=(4, 3, 0), close=True)


def greeting(hostname: str, protocol: str = "ESMTP") -> Reply:
    """220: the greeting (RFC 5321 section 4.2: the host name is its first word)."""
    return Reply(220, f"{hostname} {protocol}")


def hello(hostname: str, *keywords: str) -> Reply:
    """250 to HELO and EHLO: the host name, then one EHLO keyword a line."""
    return Reply(250, hostname, *keywords)


def queued(envelope_id: str) -> Reply:
    """250 after the message: from here on the server is responsible for it."""
    return Reply(250, f"Ok: queued as {envelope_id}", enhanced=(2, 0, 0))


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
