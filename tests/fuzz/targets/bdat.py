"""BDAT: sessions of commands and chunks against a model of the command order, which says each
reply's code and which messages are delivered, with which octets.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dialogues.caller import Caller
from inputs import Choices, pieces

from preforkmx.protocol.events import Chunk, Event
from preforkmx.protocol.settings import Settings

TOKENS = (
    b"\0",
    b"\2\3",
    b"\2\3\7\5chunk",
    b"\x08\5chunk",
    b"\x08\7\r\n.\r\n.\r",
    b"\x08\0",
    b"\1\3\x08\4\0\r\n\n",
    b"\4",
    b"\5",
    b"\6",
    b"\x09",
    b"\x0a",
)
OUTCOMES = {"nothing", "delivered", "too large", "closed"}
COUNT = 2000

LIMIT = 60
SENDER = "a@example.org"
RECIPIENT = "b@example.com"
SETTINGS = Settings(hostname="mx.example.com", message_size=LIMIT, recipients=3, errors=10_000)


class Strict(Caller):
    """Gets octets of a message in a transaction only, and none above the limit."""

    def _answer(self, event: Event) -> None:
        super()._answer(event)
        if type(event) is Chunk:
            assert self._recipients
            assert sum(map(len, self._body)) <= LIMIT


@dataclass
class Model:
    """What a session has to be like."""

    stream: bytes = b"EHLO a.example\r\n"
    codes: list[int] = field(default_factory=lambda: [220, 250])
    delivered: list[tuple[str, list[str], bytes]] = field(default_factory=list)
    mail: bool = False
    binary: bool = False
    recipients: int = 0
    chunks: bytes | None = None
    """The message that arrives in chunks."""
    closed: bool = False
    too_large: bool = False

    def say(self, line: bytes, code: int) -> None:
        self.stream += line
        self.codes.append(code)

    def reset(self) -> None:
        self.mail = self.binary = False
        self.recipients = 0
        self.chunks = None

    def start(self, *, binary: bool) -> None:
        accepted = not self.mail
        self.say(
            b"MAIL FROM:<%b>" % SENDER.encode()
            + (b" BODY=BINARYMIME" if binary else b"")
            + b"\r\n",
            250 if accepted else 503,
        )
        if accepted:
            self.mail, self.binary = True, binary

    def recipient(self) -> None:
        accepted = self.mail and self.chunks is None
        full = accepted and self.recipients >= 3
        self.say(
            b"RCPT TO:<%b>\r\n" % RECIPIENT.encode(), 452 if full else 250 if accepted else 503
        )
        if accepted and not full:
            self.recipients += 1

    def data(self) -> None:
        if self.chunks is not None or not self.mail:
            self.say(b"DATA\r\n", 503)
        elif not self.recipients:
            self.say(b"DATA\r\n", 554)
        elif self.binary:
            self.say(b"DATA\r\n", 503)
        else:
            self.say(b"DATA\r\n", 354)
            self.say(b"..x\r\n.\r\n", 250)
            self.deliver(b".x\r\n")

    def chunk(self, octets: bytes, *, last: bool) -> None:
        """RFC 3030 section 2: whatever the reply, the octets are no commands."""
        self.stream += b"BDAT %d%b\r\n" % (len(octets), b" LAST" if last else b"") + octets
        if not self.recipients:
            if len(octets) > 2 * LIMIT:
                self.end(552)
            else:
                self.codes.append(554 if self.mail else 503)
            return
        self.chunks = (self.chunks or b"") + octets
        if len(self.chunks) > 2 * LIMIT:
            self.end(552)
            return
        good = len(self.chunks) <= LIMIT
        self.too_large |= not good
        self.codes.append(250 if good else 552)
        if last:
            if good:
                self.deliver(self.chunks)
            self.reset()

    def deliver(self, body: bytes) -> None:
        self.delivered.append((SENDER, [RECIPIENT] * self.recipients, body))
        self.reset()

    def end(self, code: int) -> None:
        """The last reply."""
        self.codes.append(code)
        self.closed = True


def check(data: bytes) -> str:
    choices = Choices(data)
    cut = choices.octet()
    model = Model()
    while choices.left and not model.closed:
        _step(model, choices)
    caller = _talk(pieces(model.stream, cut))
    assert caller.delivered == model.delivered
    final = [line for line in caller.output.split(b"\r\n") if line[3:4] == b" "]
    assert [int(line[:3]) for line in final] == model.codes
    assert caller.core.closed == model.closed
    whole = _talk([model.stream])
    assert (whole.happened, whole.output) == (caller.happened, caller.output)
    if model.closed:
        return "closed"
    if model.delivered:
        return "delivered"
    return "too large" if model.too_large else "nothing"


def _step(model: Model, choices: Choices) -> None:
    match choices.octet() % 12:
        case 0:
            model.say(b"RSET\r\n", 250)
            model.reset()
        case 1:
            model.start(binary=True)
        case 2:
            model.start(binary=False)
        case 3:
            model.recipient()
        case 4:
            model.data()
        case 5:
            model.say(b"EHLO b.example\r\n", 250)
            model.reset()
        case 6:
            model.say(b"NOOP\r\n", 250)
        case 7:
            model.chunk(choices.take(choices.octet() % 128), last=False)
        case 8:
            model.chunk(choices.take(choices.octet() % 128), last=True)
        case 9:
            model.say(b"STARTTLS\r\n", 502 if not model.mail else 503)
        case 10:
            model.say(b"VRFY b\r\n", 252)
        case 11:
            if choices.octet() & 7 == 0:
                model.stream += (b"BDAT\r\n", b"BDAT x\r\n", b"BDAT 1 FIRST\r\n", b"BDAT -1\r\n")[
                    choices.octet() & 3
                ]
                model.end(501)


def _talk(cuts: list[bytes]) -> Strict:
    caller = Strict(SETTINGS)
    caller.connect()
    for piece in cuts:
        if caller.core.closed:
            break
        caller.send(piece)
        if not caller.core.closed:
            assert caller.core.buffered <= 2048
    caller.hang_up()
    return caller
