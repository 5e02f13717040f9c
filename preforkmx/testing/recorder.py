"""The Recorder: a middleware that remembers what its server asked it."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args

from preforkmx.body import whole
from preforkmx.middleware.base import Middleware

if TYPE_CHECKING:
    from collections.abc import Callable

    from preforkmx.context import Context
    from preforkmx.model import Envelope, Peer

Phase = Literal[
    "check_connection",
    "check_helo",
    "check_sender",
    "check_recipient",
    "authenticate",
    "verify",
    "handler",
    "reset",
    "disconnect",
]
"""The hooks of a session, by their names in :class:`~preforkmx.middleware.base.Middleware`."""

_PHASES: frozenset[str] = frozenset(get_args(Phase))

_T = TypeVar("_T")


class Call(NamedTuple):
    """One call of a hook."""

    phase: Phase
    peer: Peer
    arguments: tuple[Any, ...]
    """What the hook was given after the context and the peer: the HELO name, the address,
    user name and password, the envelope, the error."""
    context: Context


class ReceivedMessage(NamedTuple):
    """A message that arrived whole."""

    sender: str
    """The reverse path, ``""`` is the null one."""
    recipients: tuple[str, ...]
    octets: bytes
    """As the hook before this one left it; transparency dots removed, CRLF kept."""
    id: str
    """The transaction's id, which the reply after the message names."""
    peer: Peer
    context: Context


class Recorder(Middleware):
    """Records each hook call and each message, and refuses what it is told to refuse.

    ::

        recorder = Recorder()
        server.use(recorder)
        ...
        assert recorder.phases == ["check_connection", "check_helo", "disconnect"]
        assert recorder.messages[0].sender == "a@example.org"

    Used with :meth:`Server.use` it stands among the other middleware and hands every message
    on; as ``Server(handler=recorder)`` it is the delivery. A call is recorded before it is
    refused, a message only once its last octet has passed every check.

    It may be asked from any thread. It keeps everything until :meth:`clear`.

    :param authenticate: take part in AUTH, which offers AUTH to clients, and lets everybody
        in who is not refused.
    :param message_size: octets of a message that are kept; a larger one gets 552.
    """

    calls: list[Call]
    """Every call, in its order."""
    messages: list[ReceivedMessage]
    """Every message that arrived whole, in its order."""

    def __init__(self, *, authenticate: bool = False, message_size: int = 64 * 1024 * 1024) -> None:
        super().__init__(
            check_connection=self._check_connection,
            check_helo=self._check_helo,
            check_sender=self._check_sender,
            check_recipient=self._check_recipient,
            authenticate=self._authenticate if authenticate else None,
            verify=self._verify,
            handler=self._handler,
            reset=self._reset,
            disconnect=self._disconnect,
            name="recorder",
        )
        # Middleware is frozen, and what it freezes with does not bear a subclass's own fields.
        for name, value in (
            ("calls", []),
            ("messages", []),
            ("_message_size", message_size),
            ("_refusals", {}),
            ("_changed", threading.Condition()),
            ("_waiters", []),
        ):
            object.__setattr__(self, name, value)

    _message_size: int
    _refusals: dict[str, tuple[Exception, int | None]]
    _changed: threading.Condition
    _waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]]

    # --- what it is told --------------------------------------------------------------------

    def refuse(self, phase: Phase, error: Exception, *, times: int | None = None) -> None:
        """Raise `error` in `phase` from now on.

        :param error: an :class:`~preforkmx.errors.SMTPError`; anything else shows how the
            server takes a hook that crashes.
        :param times: only for the next so many calls, 1 or more.
        """
        self._known(phase)
        if times is not None and times < 1:
            raise ValueError(f"times is 1 or more, not {times}")
        with self._changed:
            self._refusals[phase] = (error, times)

    def accept(self, phase: Phase) -> None:
        """Take back :meth:`refuse`."""
        self._known(phase)
        with self._changed:
            self._refusals.pop(phase, None)

    def clear(self) -> None:
        """Forget the calls and the messages, not the refusals."""
        with self._changed:
            self.calls.clear()
            self.messages.clear()

    # --- what it knows ----------------------------------------------------------------------

    @property
    def phases(self) -> list[str]:
        """The names of the phases that were called, in their order."""
        with self._changed:
            return [call.phase for call in self.calls]

    def of(self, phase: Phase) -> list[Call]:
        """Return the calls of `phase`."""
        self._known(phase)
        with self._changed:
            return [call for call in self.calls if call.phase == phase]

    def wait_for(self, phase: Phase, count: int = 1, *, seconds: float = 10.0) -> list[Call]:
        """Block until `phase` was called `count` times; return its calls.

        For a test whose server runs in another thread; a coroutine awaits :meth:`happened`.

        :raises TimeoutError: it was not, within `seconds`.
        """
        self._known(phase)
        return self._wait(lambda: self.of(phase), count, seconds, phase)

    def wait_for_message(self, count: int = 1, *, seconds: float = 10.0) -> ReceivedMessage:
        """Block until `count` messages arrived; return the last of them.

        :raises TimeoutError: they did not, within `seconds`.
        """
        return self._wait(lambda: list(self.messages), count, seconds, "message")[count - 1]

    async def happened(self, phase: Phase, count: int = 1, *, seconds: float = 10.0) -> list[Call]:
        """Wait until `phase` was called `count` times; return its calls.

        :raises TimeoutError: it was not, within `seconds`.
        """
        self._known(phase)
        event = asyncio.Event()
        waiter = (asyncio.get_running_loop(), event)
        with self._changed:
            self._waiters.append(waiter)
        try:
            async with asyncio.timeout(seconds):
                while len(calls := self.of(phase)) < count:
                    event.clear()
                    await event.wait()
        except TimeoutError:
            raise TimeoutError(_too_few(phase, count, len(self.of(phase)), seconds)) from None
        finally:
            with self._changed:
                self._waiters.remove(waiter)
        return calls

    def __repr__(self) -> str:
        return f"<Recorder {len(self.calls)} calls, {len(self.messages)} messages>"

    # --- hooks ------------------------------------------------------------------------------

    async def _check_connection(self, ctx: Context, peer: Peer) -> None:
        self._record("check_connection", ctx, peer)

    async def _check_helo(self, ctx: Context, peer: Peer, name: str) -> None:
        self._record("check_helo", ctx, peer, name)

    async def _check_sender(self, ctx: Context, peer: Peer, address: str) -> None:
        self._record("check_sender", ctx, peer, address)

    async def _check_recipient(self, ctx: Context, peer: Peer, address: str) -> None:
        self._record("check_recipient", ctx, peer, address)

    async def _authenticate(self, ctx: Context, peer: Peer, user: str, password: str) -> None:
        self._record("authenticate", ctx, peer, user, password)

    async def _verify(self, ctx: Context, peer: Peer, text: str) -> None:
        self._record("verify", ctx, peer, text)

    async def _handler(self, ctx: Context, peer: Peer, envelope: Envelope) -> None:
        self._record("handler", ctx, peer, envelope)
        octets = await envelope.data.read_all(self._message_size)
        envelope.data = whole(octets)
        message = ReceivedMessage(
            envelope.sender, tuple(envelope.recipients), octets, envelope.id, peer, ctx
        )
        with self._changed:
            self.messages.append(message)
            self._tell()

    async def _reset(self, ctx: Context, peer: Peer) -> None:
        self._record("reset", ctx, peer)

    async def _disconnect(self, ctx: Context, peer: Peer, error: BaseException | None) -> None:
        self._record("disconnect", ctx, peer, error)

    def _record(self, phase: Phase, ctx: Context, peer: Peer, *arguments: Any) -> None:
        with self._changed:
            self.calls.append(Call(phase, peer, arguments, ctx))
            error = self._refusal(phase)
            self._tell()
        if error is not None:
            raise error

    # --- with the lock held -------------------------------------------------------------------

    def _refusal(self, phase: Phase) -> Exception | None:
        error, times = self._refusals.get(phase, (None, None))
        if error is None or times is None:
            return error
        if times == 1:
            del self._refusals[phase]
        else:
            self._refusals[phase] = (error, times - 1)
        return error

    def _tell(self) -> None:
        self._changed.notify_all()
        for loop, event in self._waiters:
            loop.call_soon_threadsafe(event.set)

    # ------------------------------------------------------------------------------------------

    def _wait(self, get: Callable[[], list[_T]], count: int, seconds: float, what: str) -> list[_T]:
        with self._changed:
            if not self._changed.wait_for(lambda: len(get()) >= count, seconds):
                raise TimeoutError(_too_few(what, count, len(get()), seconds))
            return get()

    def _known(self, phase: str) -> None:
        if phase not in _PHASES:
            raise ValueError(f"{phase!r} is no phase; phases are {', '.join(sorted(_PHASES))}")


def _too_few(what: str, count: int, seen: int, seconds: float) -> str:
    return f"{seen} of {count} {what} within {seconds:g} s"
