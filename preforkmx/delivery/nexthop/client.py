"""The client's side of SMTP and LMTP, without a socket: commands out, replies in.

The caller moves octets: it gives :meth:`Client.receive_data` what came and sends what
:meth:`Client.take_output` returns. Each command that is sent has one reply (the message in LMTP
one for each recipient that was accepted), which :meth:`Client.next_reply` returns in their order.
A reply that its command cannot have (RFC 5321 section 4.3.2) is nonsense, and ends the dialogue.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING

from preforkmx.delivery.nexthop.content import Transparency
from preforkmx.delivery.nexthop.errors import LinkLost, Nonsense
from preforkmx.delivery.nexthop.offers import Offers
from preforkmx.delivery.nexthop.replies import ReplyParser
from preforkmx.errors import LocalProtocolError

if TYPE_CHECKING:
    from preforkmx.delivery.nexthop.replies import Reply

MAX_UNREAD = 65536
"""Octets that may come before anybody asks for a reply, and :data:`FOR_EACH` more for each that
is awaited."""
FOR_EACH = 512


class Awaited(enum.Enum):
    """What a reply is the reply to."""

    GREETING = enum.auto()
    HELLO = enum.auto()
    STARTTLS = enum.auto()
    AUTH = enum.auto()
    XCLIENT = enum.auto()
    MAIL = enum.auto()
    RCPT = enum.auto()
    DATA = enum.auto()
    CHUNK = enum.auto()
    MESSAGE = enum.auto()
    RESET = enum.auto()
    QUIT = enum.auto()


_ANY_2XX = frozenset(range(200, 300))
_GOOD = {
    Awaited.GREETING: frozenset((220,)),
    Awaited.HELLO: frozenset((250,)),
    Awaited.STARTTLS: frozenset((220,)),
    Awaited.AUTH: frozenset((235, 334)),
    Awaited.XCLIENT: frozenset((220, 250)),
    Awaited.DATA: frozenset((354,)),
}
"""The replies that are no error, where they are not all those with 2xx."""


class Client:
    """One connection's dialogue.

    :param lmtp: speak LMTP (RFC 2033).
    """

    def __init__(self, *, lmtp: bool) -> None:
        self.lmtp = lmtp
        self.offers = Offers()
        """What the last EHLO or LHLO was answered with."""
        self.tls = False
        """:meth:`tls_started` was called."""
        self.in_transaction = False
        """MAIL was accepted; neither the message nor RSET has ended it."""
        self.accepted = 0
        """Recipients that were accepted in this transaction."""
        self._awaited: deque[Awaited] = deque((Awaited.GREETING,))
        self._parser = ReplyParser()
        self._output: list[bytes] = []
        self._unsent = 0
        self._transparency: Transparency | None = None
        self._chunks = False
        self._ready = False
        self._closing = False
        self._unasked = False
        self._broken = False
        self._eof = False

    # --- in -------------------------------------------------------------------------------------

    def receive_data(self, octets: bytes) -> None:
        """Take what came.

        :raises Nonsense: it comes unasked, or is too much.
        """
        if not self._awaited and not self._closing:
            # A server that closes an idle connection may say so first: 421, and nobody reads it.
            self._closing = True
            self._unasked = True
        self._parser.feed(octets)
        if self._parser.pending > MAX_UNREAD + FOR_EACH * len(self._awaited):
            raise self._nonsense("the server says more than it is asked")

    def receive_eof(self) -> None:
        """The server closed, or the connection was lost."""
        self._eof = True

    def next_reply(self) -> Reply | None:
        """Return the next reply, or None while it is not whole.

        :raises Nonsense: what came is no reply to what was asked.
        :raises LinkLost: the server closed, and what it said before was returned.
        """
        if self._broken:
            raise LinkLost("the dialogue has ended")
        try:
            reply = self._parser.next_reply()
        except Nonsense:
            self._broken = True
            raise
        if reply is None:
            if self._eof:
                self._broken = True
                raise LinkLost("the server closed the connection")
            return None
        if not self._awaited or (self._unasked and reply.kind < 4):
            # An error may come early; a success would be taken for the next command's.
            raise self._nonsense(f"unasked: {reply}")
        awaited = self._awaited.popleft()
        if reply.code == 421:
            # RFC 5321 section 3.8: it closes, whatever was asked.
            self._closing = True
        if reply.kind < 4 and reply.code not in _GOOD.get(awaited, _ANY_2XX):
            raise self._nonsense(f"to {awaited.name}: {reply}")
        self._take(awaited, reply)
        return reply

    def _take(self, awaited: Awaited, reply: Reply) -> None:
        good = reply.kind < 4
        match awaited:
            case Awaited.HELLO if good:
                self.offers = Offers.of(reply)
                self._ready = True
                self.in_transaction, self.accepted = False, 0
            case Awaited.STARTTLS if good and self._parser.pending:
                # Said in plain text, and to be heard inside TLS: somebody in between.
                raise self._nonsense("the server sent more behind its answer to STARTTLS")
            case Awaited.XCLIENT if good:
                self._ready = False
            case Awaited.MAIL if good:
                self.in_transaction, self.accepted = True, 0
            case Awaited.RCPT if good:
                self.accepted += 1
            case Awaited.DATA if good:
                self._transparency = Transparency()
            case Awaited.CHUNK if not good:
                # RFC 3030 section 2: the transaction has failed, and only RSET is of use.
                self._closing = True
            case Awaited.MESSAGE if Awaited.MESSAGE not in self._awaited:
                self.in_transaction, self.accepted = False, 0
            case Awaited.RESET if good:
                self.in_transaction, self.accepted = False, 0
            case Awaited.RESET:
                self._closing = True

    def _nonsense(self, what: str) -> Nonsense:
        self._broken = True
        return Nonsense(what)

    # --- out ------------------------------------------------------------------------------------

    def take_output(self) -> bytes:
        """Return the octets to send, and forget them."""
        output = b"".join(self._output)
        self._output.clear()
        self._unsent = 0
        return output

    @property
    def unsent(self) -> int:
        """Octets that :meth:`take_output` would return."""
        return self._unsent

    @property
    def awaits(self) -> int:
        """Replies that are still to come."""
        return len(self._awaited)

    @property
    def pipelining(self) -> bool:
        """Commands may be sent before those before them are answered (RFC 2920)."""
        return "PIPELINING" in self.offers

    @property
    def reusable(self) -> bool:
        """Another transaction may follow, after :meth:`reset` where one is under way."""
        return (
            self._ready
            and not (self._awaited or self._broken or self._closing or self._eof)
            and self._transparency is None
            and not self._chunks
            and not self._parser.pending
        )

    @property
    def alive(self) -> bool:
        """Nothing is known that ends the dialogue."""
        return not (self._broken or self._closing or self._eof)

    def hello(self, name: str, *, old: bool = False) -> None:
        """Say LHLO or EHLO; `old`: HELO, to a server that knows no EHLO."""
        verb = "LHLO" if self.lmtp else "HELO" if old else "EHLO"
        self._say(f"{verb} {name}", Awaited.HELLO)

    def starttls(self) -> None:
        """Say STARTTLS; nothing may be sent before its reply."""
        self._say("STARTTLS", Awaited.STARTTLS)

    def tls_started(self) -> None:
        """The handshake is over: what was offered in plain text is forgotten (RFC 3207 4.2)."""
        self.tls, self.offers, self._ready = True, Offers(), False

    def auth(self, line: str) -> None:
        """Send ``AUTH mechanism …``, or the response to its challenge."""
        self._say(line, Awaited.AUTH)

    def xclient(self, line: str) -> None:
        """Send XCLIENT; after its 220 the session begins again with EHLO."""
        self._say(line, Awaited.XCLIENT)

    def mail(self, line: str) -> None:
        """Send MAIL as :mod:`~preforkmx.delivery.nexthop.commands` makes it."""
        self._say(line, Awaited.MAIL)

    def rcpt(self, line: str) -> None:
        """Send RCPT."""
        self._say(line, Awaited.RCPT)

    def data(self) -> None:
        """Send DATA; after its 354 come :meth:`content` and :meth:`end_of_data`."""
        self._say("DATA", Awaited.DATA)

    def content(self, octets: bytes) -> None:
        """Send a piece of the message, with its dots doubled."""
        if self._transparency is None:
            raise LocalProtocolError("content comes after the 354")
        self._put(self._transparency.feed(octets))

    def end_of_data(self) -> None:
        """End the message. Replies: one, or in LMTP one for each accepted recipient."""
        if self._transparency is None:
            raise LocalProtocolError("there is no message to end")
        self._put(self._transparency.end())
        self._transparency = None
        self._await_message()

    def chunk(self, octets: bytes, *, last: bool) -> None:
        """Send octets of the message with BDAT (RFC 3030), as they are.

        :param last: they end it; the replies are those of :meth:`end_of_data`.
        """
        self._put(f"BDAT {len(octets)}{' LAST' if last else ''}\r\n".encode("ascii"))
        self._put(octets)
        self._chunks = not last
        if last:
            self._await_message()
        else:
            self._awaited.append(Awaited.CHUNK)

    def reset(self) -> None:
        """Send RSET."""
        self._say("RSET", Awaited.RESET)

    def quit(self) -> None:
        """Send QUIT."""
        self._say("QUIT", Awaited.QUIT)
        self._closing = True

    def _put(self, octets: bytes) -> None:
        self._output.append(octets)
        self._unsent += len(octets)

    def _await_message(self) -> None:
        count = self.accepted if self.lmtp else 1
        self._awaited.extend([Awaited.MESSAGE] * count)

    def _say(self, line: str, awaited: Awaited) -> None:
        if self._transparency is not None:
            raise LocalProtocolError("a command inside a message")
        self._put(line.encode() + b"\r\n")
        self._awaited.append(awaited)
