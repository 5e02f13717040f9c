"""A session's hooks: who is asked, how long they have, and what becomes of their bugs."""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING, Any

from preforkmx.context import Context, SessionInfo, Signal
from preforkmx.errors import SMTPError
from preforkmx.protocol import replies
from preforkmx.protocol.replies import Reply
from preforkmx.session.wire import Wire

if TYPE_CHECKING:
    from preforkmx.middleware.chain import Link
    from preforkmx.model import Peer
    from preforkmx.protocol.core import Core
    from preforkmx.session.service import Service


class HookedWire(Wire):
    """A connection whose phases hooks decide.

    :ivar context: what the hooks so far have made.
    :ivar info: what its Contexts have in common.
    :ivar peer: what is known of the client.
    :ivar by: who gave the last verdict.
    :ivar ended: how the session ends, for the log.
    :ivar error: what ended it, for the disconnect hooks.
    """

    __slots__ = ("_closed", "by", "context", "ended", "error", "id", "info", "peer", "service")

    def __init__(
        self, service: Service, core: Core, peer: Peer, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(core, loop, service.outbox)
        self.service = service
        self.peer = peer
        self.id = f"{service.id_prefix}{next(service.ids):x}"
        self._closed = Signal()
        self.info = SessionInfo(self.id, service.logger, service.draining, self._closed, core)
        self.context = service.base_context.bind(self.info)
        self.by: str | None = None
        self.error: BaseException | None = None
        self.ended = "closed"

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._closed.set()

    async def ask(
        self, links: tuple[Link[Any], ...], *arguments: Any, silent: bool = False
    ) -> Reply | None:
        """Run the hooks of one phase: None, or the reply of the first that refuses.

        :param silent: nobody will see a refusal (disconnect): it is no use to the client.
        """
        if not links:
            return None
        name = ""
        self.expired = False
        self.deadline = self._loop.time() + self.service.command_timeout
        try:
            for name, hook in links:  # noqa: B007 - named in the log below
                context = await hook(self.context, self.peer, *arguments)
                if context is not None and not silent:
                    self.take_context(context)
        except SMTPError as error:
            self.by = name
            return Reply.from_error(error)
        except BaseException as error:
            if not self.timed_out(error):
                return self.crashed(name, error)
            self.by = name
            self.ended = "timeout"
            self.error = TimeoutError(f"{name} took too long")
            self.service.logger.error("hook took too long", extra={"session": self.id, "by": name})
            return replies.HOOK_TIMEOUT
        finally:
            self.deadline = inf
        return None

    def take_context(self, context: Any) -> None:
        if not isinstance(context, Context):
            raise TypeError(f"a hook returns a Context or None, not {context!r}")
        self.context = context

    def timed_out(self, error: BaseException) -> bool:
        """Say whether `error` is the cancellation at the deadline, and if so take it back."""
        if not self.expired or self.task is None or not isinstance(error, asyncio.CancelledError):
            return False
        self.expired = False
        self.task.uncancel()
        self.service.counters.timeouts += 1
        return True

    def crashed(self, name: str, error: BaseException) -> Reply:
        """A hook raised what is not an SMTPError: log its stack, end this session.

        SystemExit is a hook's mistake like any other, and so is a CancelledError of its own
        making. What means this task or this process is raised again.
        """
        cancelled = isinstance(error, asyncio.CancelledError)
        if (cancelled and self.task is not None and self.task.cancelling()) or isinstance(
            error, (KeyboardInterrupt, GeneratorExit)
        ):
            raise error
        service = self.service
        service.counters.hook_failures += 1
        service.logger.error("hook failed", exc_info=error, extra={"session": self.id, "by": name})
        self.by = name
        self.error = error
        self.ended = "error"
        failure = service.hook_failure
        return Reply(failure.code, failure.message, enhanced=failure.enhanced, close=True)
