"""A message after DATA: RFC 5321 sections 4.1.1.4 and 4.5.2.

Only CRLF ``.`` CRLF ends a message, however the octets were split. Everything is done with
``find`` and ``replace`` on whole pieces, never octet by octet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.protocol import replies
from preforkmx.protocol.events import Chunk, End
from preforkmx.protocol.hops import HopCounter

if TYPE_CHECKING:
    from preforkmx.protocol.framing import LineFramer
    from preforkmx.protocol.replies import Reply
    from preforkmx.protocol.settings import Settings

_END = b"\r\n.\r\n"


class MessageScanner:
    """Finds the end of one message, removes its transparency dots, and checks its line ends.

    It keeps at most 4 octets between two calls: the beginning of what may be the end.

    :param max_size: the limit in octets as they come over the wire. A message over it is
        read to its end, unheard, up to twice the limit: then the session is over.
    :param normalize: a bare LF becomes CRLF and a bare CR a space, instead of being a fault.
        Neither can be part of the message's end.
    """

    __slots__ = ("_bare", "_carry", "_delivered", "_max_size", "_normalize", "ended", "size")

    def __init__(self, max_size: int, *, normalize: bool = False) -> None:
        self._normalize = normalize
        # The CRLF of the DATA line counts: "." CRLF right after it is an empty message.
        self._carry = b"\r\n"
        # How many octets of _carry are no part of the message.
        self._delivered = 2
        self._max_size = max_size
        self._bare = False
        self.size = -2
        """Octets of the message so far, as they came over the wire."""
        self.ended = False
        """Nothing more belongs to the message: its end was found, or it was given up."""

    @property
    def fault(self) -> Reply | None:
        """The reply that refuses the message for its octets, None while they are good."""
        if self.size > 2 * self._max_size:
            return replies.TOO_LARGE_TO_READ
        if self._bare:
            return replies.BARE_NEWLINE
        if self.size > self._max_size:
            return replies.TOO_LARGE
        return None

    def feed(self, octets: bytes) -> tuple[bytes, bytes]:
        """Scan `octets`, which continue the message.

        :returns: the octets of the message that are now certain, transparency dots removed
            (``b""`` once there is a fault); and what comes behind the end of the message,
            ``b""`` while :attr:`ended` is false.
        """
        delivered = self._delivered
        data = self._carry + octets if self._carry else octets
        rest = b""
        dots = data.find(b"\r\n.")
        end = data.find(_END, dots) if dots >= 0 else -1
        if end >= 0:
            self.ended = True
            rest = data[end + 5 :]
            data = data[: end + 2]
            self._carry = b""
        else:
            keep = _tail(data)
            if keep == 0 and self._normalize and data.endswith(b"\n"):
                # A dot that follows is a transparency dot, and has to be seen with its LF.
                keep = 1
            if keep == len(data):
                self._carry = data
                return b"", b""
            if keep:
                self._carry = data[-keep:]
                data = data[:-keep]
            else:
                self._carry = b""
            self._delivered = 0
        self.size += len(data)
        if self.size > 2 * self._max_size:
            self.ended = True
        # No piece ends between CR and LF, so what is left without its CRLFs has neither, or it is
        # bad. Counting all three instead takes four times as long on an optimised Python.
        lines = data.replace(b"\r\n", b"")
        if b"\n" in lines or b"\r" in lines:
            if self._normalize:
                data = data.replace(b"\r\n", b"\n").replace(b"\r", b" ").replace(b"\n", b"\r\n")
                dots = 0
            else:
                self._bare = True
        if self._bare or self.size > self._max_size:
            return b"", rest
        if dots >= 0 and dots != end:
            data = data.replace(b"\r\n.", b"\r\n")
        return (data[delivered:] if delivered else data), rest


def _tail(data: bytes) -> int:
    """Return how many octets at the end of `data` may be the beginning of the end."""
    # From the longest on: CRLF . CR, CRLF . , CRLF, CR.
    for length in (4, 3, 2, 1):
        if data.endswith(_END[:length]):
            return length
    return 0


class Data:
    """One message after DATA, up to its end."""

    __slots__ = ("_hops", "_scanner")

    def __init__(self, settings: Settings) -> None:
        self._scanner = MessageScanner(
            settings.message_size, normalize=settings.bare_newline == "normalize"
        )
        self._hops = HopCounter(settings.hops)

    def next(self, framer: LineFramer) -> Chunk | End | None:
        """Take octets from `framer`: the next of the message, or its end; None: too few came."""
        scanner = self._scanner
        while not scanner.ended:
            octets = framer.take()
            if not octets:
                return None
            chunk, rest = scanner.feed(octets)
            if rest:
                framer.feed(rest)
            if chunk:
                self._hops.feed(chunk)
                return Chunk(chunk)
        fault = scanner.fault
        if fault is None and self._hops.too_many:
            fault = replies.TOO_MANY_HOPS
        return End(scanner.size, fault)
