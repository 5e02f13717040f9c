"""Every exception of preforkmx, as one tree.

::

    PreforkmxError
    ├── SMTPError            a hook or handler answers the client with this reply
    ├── MessageAborted       the message that was being read will never be complete
    │   └── ConnectionLost   … because the client went away
    ├── ConfigError          one or more things are wrong in the configuration
    ├── BootError            a worker could not start
    ├── ProxyError           a connection did not begin with a PROXY header
    ├── StoreUnavailable     no answer from the shared state within its deadline
    └── DNSError             a name could not be looked up; that it does not exist is an answer
        ├── DNSTimeout       … no answer in time
        ├── DNSServerFailure … the answer is that it cannot be answered (SERVFAIL), or nonsense
        ├── DNSRefused       … the answer is that it will not be answered (REFUSED)
        ├── DNSUnreachable   … nobody listens where the resolver should be
        ├── DNSBusy          … too many look-ups are under way or wait
        └── DNSNameError     … it is no name; nobody was asked

    LocalProtocolError       (RuntimeError) a caller broke the protocol core's contract: a bug here
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class PreforkmxError(Exception):
    """The root: everything that preforkmx raises on purpose."""


class SMTPError(PreforkmxError):
    """A reply for the client, raised by a hook or a delivery handler.

    :param code: the reply code, 400 to 599 (RFC 5321 section 4.2).
    :param message: the text. Control characters, line breaks among them, become spaces, so that
        nothing in it can make one reply two; a long text goes over several lines.
    :param enhanced: the enhanced status code of RFC 3463 as three numbers; ``None`` means
        x.0.0 of the code's class. It is sent to clients that greeted with EHLO (RFC 2034).
    :param close: close the session after the reply; 421 always does (RFC 5321 section 3.8).
    :param limit: the name of the limit that is reached, for the log; ``""``: none is.
    """

    def __init__(
        self,
        code: int,
        message: str,
        *,
        enhanced: tuple[int, int, int] | None = None,
        close: bool = False,
        limit: str = "",
    ) -> None:
        if not 400 <= code <= 599:
            raise ValueError(f"an SMTPError has a code from 400 to 599, not {code}")
        if enhanced is not None and enhanced[0] != code // 100:
            raise ValueError(f"enhanced code {enhanced} does not belong to a {code} reply")
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.enhanced = enhanced if enhanced is not None else (code // 100, 0, 0)
        self.close = close or code == 421
        self.limit = limit

    def __str__(self) -> str:
        return f"{self.code} {'.'.join(map(str, self.enhanced))} {self.message}"


class MessageAborted(PreforkmxError):
    """The message will never be complete: no part of it may be delivered.

    Reading ``envelope.data`` raises this when the message turned out too large or
    malformed, or when a drain reached its deadline.
    """


class ConnectionLost(MessageAborted):
    """The client went away in the middle of its message."""


class ConfigError(PreforkmxError):
    """Everything that is wrong in a configuration, at once.

    :param problems: one text for each problem, ready to print; where it is known it begins
        with ``file:line: ``.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class BootError(PreforkmxError):
    """A worker, the store process or a checker could not start; the text says why."""


class ProxyError(PreforkmxError):
    """A connection did not begin with a PROXY header that can be believed: it ends, unanswered.

    :param reason: what is wrong, for the log; it holds none of the client's octets.
    :param closed: the peer went away before its header was whole. Balancers that check a port
        by connecting to it do this all day.
    """

    def __init__(self, reason: str, *, closed: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.closed = closed


class StoreUnavailable(PreforkmxError):
    """The shared state gave no answer within its deadline, or an answer that is not one.

    :param partial: only a part of the store is away (a node of a cluster): another operation
        may be answered.
    """

    def __init__(self, message: str = "", *, partial: bool = False) -> None:
        super().__init__(message)
        self.partial = partial


class DNSError(PreforkmxError):
    """A name could not be looked up. All but :class:`DNSNameError` may pass with time.

    The text is for logs and has no control characters.
    """


class DNSTimeout(DNSError):
    """Nobody answered in time."""


class DNSServerFailure(DNSError):
    """The name server answered that it cannot answer (SERVFAIL and its like), or nonsense."""


class DNSRefused(DNSError):
    """The name server answered that it will not answer this client or question (REFUSED)."""


class DNSUnreachable(DNSError):
    """Nobody listens at the name server's address, or no way leads there."""


class DNSBusy(DNSError):
    """Too many look-ups are under way or wait for their turn; nobody was asked."""


class DNSNameError(DNSError):
    """It is no domain name: a label is empty or too long, or not ASCII. Nobody was asked."""


class LocalProtocolError(RuntimeError):
    """A caller broke the contract of the protocol core: a bug in this program, not a client's."""
