"""Context: what a session's hooks hand to the hooks after them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Generator, MutableMapping

    from preforkmx.protocol.core import Core
    from preforkmx.protocol.dsn import RecipientDSN


class Signal:
    """Something that happens once: true after it happened, and awaitable until then.

    ``if ctx.draining: …`` asks, ``await ctx.closed`` waits. No future is made before somebody
    waits, so a session that nobody watches pays nothing for it.
    """

    __slots__ = ("_happened", "_waiters")

    def __init__(self) -> None:
        self._happened = False
        self._waiters: list[asyncio.Future[None]] = []

    def __bool__(self) -> bool:
        return self._happened

    def __await__(self) -> Generator[Any, None, None]:
        if self._happened:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            yield from waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def set(self) -> None:
        """It happened: wake everybody who waits. A second call does nothing."""
        self._happened = True
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def __repr__(self) -> str:
        return f"<Signal {'set' if self._happened else 'not set'}>"


class _SessionLogger(logging.LoggerAdapter[logging.Logger]):
    """Puts the session's id on every record as ``session``."""

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        extra = kwargs.get("extra")
        kwargs["extra"] = {**(self.extra or {}), **(extra or {})}
        return msg, kwargs


_NEVER = Signal()
_LOGGER = logging.getLogger("preforkmx")


class Usage(NamedTuple):
    """What a session spent so far: a value, as it was when it was asked for.

    STARTTLS and XCLIENT change nothing of it: it counts from the connection on.
    """

    messages: int = 0
    """Messages that were accepted for delivery: their reply was 250."""
    recipients: int = 0
    """Forward paths that were accepted, whatever became of their message."""
    auth_failures: int = 0
    """Credentials that were refused with 5xx."""
    octets: int = 0
    """Octets of the messages that arrived whole, whatever their reply was."""
    errors: int = 0
    """Commands and messages that were answered with 5xx."""


class SessionInfo:
    """What all Contexts of one session have in common. The session alone writes here.

    :param core: counts recipients, authentications and errors.
    """

    __slots__ = (
        "closed",
        "core",
        "draining",
        "envelope",
        "id",
        "logger",
        "messages",
        "octets",
        "recipient_dsn",
    )

    def __init__(
        self,
        session_id: str = "",
        logger: logging.Logger = _LOGGER,
        draining: Signal = _NEVER,
        closed: Signal = _NEVER,
        core: Core | None = None,
    ) -> None:
        self.id = session_id
        self.logger = logger
        self.draining = draining
        self.closed = closed
        self.core = core
        self.messages = 0
        """Messages that were answered with 250."""
        self.octets = 0
        """Octets of messages that arrived whole."""
        self.envelope: Any = None
        """The transaction's, from MAIL on."""
        self.recipient_dsn: RecipientDSN | None = None
        """What the last RCPT asked."""

    def usage(self) -> Usage:
        """Return what the session spent so far."""
        core = self.core
        if core is None:
            return Usage(messages=self.messages, octets=self.octets)
        return Usage(
            self.messages,
            core.earlier_recipients + core.recipients,
            core.authentication.failures,
            self.octets,
            core.patience.faults,
        )


class Context:
    """Immutable values that travel through the hooks of one session.

    A hook derives a new Context with :meth:`with_value` and returns it; the session then goes
    on with that one. After STARTTLS the session's Context is the one of check_connection
    again (RFC 3207 section 4.2: what was learnt in plain text is forgotten).
    """

    __slots__ = ("_session", "_values", "sender")

    #: The reverse path of the transaction, from MAIL on; ``""`` is the null one, ``None``
    #: means that there is no transaction.
    sender: str | None

    def __init__(
        self,
        values: dict[Any, Any] | None = None,
        *,
        session_id: str = "",
        logger: logging.Logger = _LOGGER,
        draining: Signal = _NEVER,
        closed: Signal = _NEVER,
        sender: str | None = None,
    ) -> None:
        self._values = values if values is not None else {}
        self._session = SessionInfo(session_id, logger, draining, closed)
        self.sender = sender

    def value(self, key: Any, default: Any = None) -> Any:
        """Return what :meth:`with_value` stored under `key`, else `default`.

        Use a private object or a class of your own as key, so that no other middleware's
        value can be meant.
        """
        return self._values.get(key, default)

    def with_value(self, key: Any, value: Any) -> Context:
        """Return a Context that also holds `value`; this one stays as it is."""
        return self._derive({**self._values, key: value}, self.sender)

    def with_sender(self, sender: str | None) -> Context:
        """Return a Context whose :attr:`sender` is `sender` (the session does this at MAIL)."""
        return self._derive(self._values, sender)

    def bind(self, session: SessionInfo) -> Context:
        """Return a Context with these values for one session (the server does this)."""
        bound = self._derive(self._values, None)
        bound._session = session
        return bound

    def _derive(self, values: dict[Any, Any], sender: str | None) -> Context:
        # Twice a transaction: without the detour over __init__ and its keywords.
        derived = Context.__new__(Context)
        derived._values = values
        derived._session = self._session
        derived.sender = sender
        return derived

    @property
    def session_id(self) -> str:
        """The id that every log line of this session carries."""
        return self._session.id

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry the session's id."""
        return _SessionLogger(self._session.logger, {"session": self._session.id})

    @property
    def draining(self) -> Signal:
        """Set, and awaitable, when the server drains: finish soon, begin nothing long."""
        return self._session.draining

    @property
    def closed(self) -> Signal:
        """Set, and awaitable, when the client's connection is gone."""
        return self._session.closed

    @property
    def envelope(self) -> Any:
        """The transaction's :class:`~preforkmx.model.Envelope` from MAIL on, with its parameters;
        None outside of one. At RCPT its recipients are those before."""
        return self._session.envelope

    @property
    def recipient_dsn(self) -> RecipientDSN | None:
        """In check_recipient: what this RCPT asks about notifications (RFC 3461)."""
        return self._session.recipient_dsn

    @property
    def usage(self) -> Usage:
        """What the session spent until now. Each look makes the value anew."""
        return self._session.usage()

    def __repr__(self) -> str:
        return f"<Context {self._session.id or '-'} sender={self.sender!r} {self._values!r}>"
