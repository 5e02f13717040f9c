"""AUTH: the exchanges of one session (RFC 4954)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.protocol import replies
from preforkmx.protocol.events import Credentials
from preforkmx.protocol.replies import Reply
from preforkmx.protocol.sasl import MECHANISMS, Identity, decode

if TYPE_CHECKING:
    from preforkmx.protocol.sasl import Exchange


class Authentication:
    """Begins exchanges, takes their responses, and counts the failures.

    :param failures: how many a session has; the last one gets 421.
    """

    __slots__ = ("_exchange", "_mechanism", "_most", "failures")

    def __init__(self, failures: int) -> None:
        self._most = failures
        self._exchange: Exchange | None = None
        self._mechanism = ""
        self.failures = 0
        """Failed authentications so far."""

    def begin(self, argument: bytes) -> Credentials | Reply:
        """Take what follows AUTH; the answers are those of :meth:`respond`."""
        name, space, initial = argument.partition(b" ")
        if not name or (space and (not initial or b" " in initial)):
            return replies.AUTH_SYNTAX
        mechanism = MECHANISMS.get(name.upper())
        if mechanism is None:
            return replies.AUTH_UNKNOWN_MECHANISM
        self._exchange = mechanism()
        self._mechanism = name.upper().decode("ascii")
        return self.respond(initial) if space else self._exchange.prompt

    def respond(self, line: bytes) -> Credentials | Reply:
        """Take a response: who the client says it is, or a reply.

        The reply is a 334 that asks for more, or the refusal that ends the exchange.
        """
        exchange = self._exchange
        assert exchange is not None
        # RFC 4954 section 4: "*" cancels.
        response = None if line == b"*" else decode(line)
        result: Identity | Reply | None
        if response is None:
            result = replies.AUTH_CANCELLED if line == b"*" else replies.AUTH_BAD_BASE64
        else:
            result = exchange.respond(response)
        if result is None:
            return exchange.prompt
        self._exchange = None
        if type(result) is Identity:
            return Credentials(result.username, result.password, self._mechanism)
        assert type(result) is Reply
        return self.failed(result) if result is replies.AUTH_FAILED else result

    def cancel(self) -> None:
        """The exchange is over, whoever ended it."""
        self._exchange = None

    def failed(self, reply: Reply) -> Reply:
        """Count a failure that `reply` tells; return the reply that the client gets."""
        self.failures += 1
        return replies.TOO_MANY_AUTH_FAILURES if self.failures >= self._most else reply
