"""The Middleware value: optional hooks, one field a phase."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, fields

from preforkmx.context import Context
from preforkmx.errors import SMTPError
from preforkmx.model import Envelope, IPAddress, Peer, Verification

BlockedHook = Callable[[IPAddress], SMTPError | None]
"""``(address)``, no coroutine: why the client is refused before there is a session, or None."""
PeerHook = Callable[[Context, Peer], Awaitable[Context | None]]
"""``(ctx, peer)``: check_connection, check_auth and reset."""
NameHook = Callable[[Context, Peer, str], Awaitable[Context | None]]
"""``(ctx, peer, text)``: check_helo (name), check_sender and check_recipient (address)."""
AuthenticateHook = Callable[[Context, Peer, str, str], Awaitable[Context | None]]
"""``(ctx, peer, user, password)``; raises :class:`~preforkmx.errors.SMTPError` to refuse."""
VerifyHook = Callable[[Context, Peer, str], Awaitable[Verification | None]]
"""``(ctx, peer, text)``: the mailbox that VRFY's argument names, or None for "cannot say"."""
Handler = Callable[[Context, Peer, Envelope], Awaitable[Context | None]]
"""``(ctx, peer, envelope)``: a delivery, or a stage before it."""
DisconnectHook = Callable[[Context, Peer, BaseException | None], Awaitable[None]]
"""``(ctx, peer, error)``: error is None after QUIT, a refusal or a shutdown."""
Lifespan = Callable[[], AbstractAsyncContextManager[object]]
"""Entered once in each worker's loop before it accepts, left when it stops."""

PROMISES = frozenset({"BINARYMIME", "DSN", "REQUIRETLS", "SMTPUTF8"})
"""Extensions that promise something for the message's way after this server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Middleware:
    """Optional hooks, one for each phase; what is left out costs nothing.

    Hooks are coroutine functions and run in the order of :meth:`Server.use`. The first
    :class:`~preforkmx.errors.SMTPError` ends the phase and is the client's reply. A hook
    returns a :class:`~preforkmx.context.Context` to replace the session's, or None.

    ``blocked`` is asked where a connection is accepted (behind a PROXY header), before
    check_connection and before there is a session: for addresses of which a middleware knows
    already that it refuses them. It is a plain function and must not wait. The client gets the
    SMTPError, on a listener with implicit TLS nothing at all, and no other hook hears of it.

    ``check_auth`` runs at AUTH, before any ``authenticate`` hook sees the credentials: it may
    refuse to have them looked at, and lets nobody in. AUTH is offered where a middleware has an
    ``authenticate`` hook, and not for the sake of a ``check_auth``.

    :param name: what the log calls this middleware when it gives a verdict.
    :param extensions: of a delivery: those of :data:`PROMISES` whose promise it can keep; the
        server offers no other, whatever it is told. None: all that the server is told. A
        function is asked anew for each connection, where a next hop decides.
    """

    blocked: BlockedHook | None = None
    check_connection: PeerHook | None = None
    check_helo: NameHook | None = None
    check_sender: NameHook | None = None
    check_recipient: NameHook | None = None
    check_auth: PeerHook | None = None
    authenticate: AuthenticateHook | None = None
    verify: VerifyHook | None = None
    handler: Handler | None = None
    reset: PeerHook | None = None
    disconnect: DisconnectHook | None = None
    lifespan: Lifespan | None = None
    name: str = ""
    extensions: frozenset[str] | Callable[[], frozenset[str]] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            hook = getattr(self, field.name)
            if field.name not in ("name", "extensions") and hook is not None and not callable(hook):
                raise TypeError(f"Middleware({field.name}=…) takes a function, not {hook!r}")
