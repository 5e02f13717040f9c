"""Call-forward: a server behind this one is asked whether a recipient is there.

Answers are remembered, questions for the same recipient are joined, and no more than so many are
under way at once: a flood of RCPT commands is not handed on.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from copy import copy
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from preforkmx.errors import SMTPError
from preforkmx.middleware.recipients_source import Found
from preforkmx.state.expiring import ExpiringMap
from preforkmx.state.triplets import short_key

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from preforkmx.middleware.addresses import Recipient

_log = logging.getLogger("preforkmx.recipients")

#: That the back end cannot be asked is logged once in so many seconds.
REPORT_SECONDS: Final = 60.0


class Verdict(enum.Enum):
    """What a back end says of a recipient."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    REFUSED = "refused"
    """It is there, and takes no mail: its mailbox is disabled or full."""


class BackEndAnswer(NamedTuple):
    """A back end's answer to RCPT, as far as it decides something."""

    verdict: Verdict
    refusal: SMTPError | None = None
    """The 5xx of :attr:`Verdict.REFUSED`."""


class BackEndAway(Exception):
    """Nobody can say now; the text is for the log."""


class BackEnd(Protocol):
    """Whoever can be asked with MAIL and RCPT."""

    def lifespan(self) -> AbstractAsyncContextManager[object]:
        """Have what is needed to ask while a worker runs."""
        ...

    async def ask(self, address: str) -> BackEndAnswer:
        """Ask for one recipient.

        :raises BackEndAway: there is no answer, or none about the recipient.
        """
        ...


class _Known(NamedTuple):
    answer: BackEndAnswer
    until: float


class CallForward:
    """A :class:`~preforkmx.middleware.recipients_source.Source` that asks a back end.

    :param back_end: who is asked, with MAIL FROM:<> and RCPT.
    :param plain: ask for the address without its extension.
    :param known_for: how long it is remembered that a recipient is there, in seconds.
    :param unknown_for: how long it is remembered that one is not, or takes no mail, in seconds.
    :param remembered: answers that are remembered at most, about 250 octets each.
    :param deadline: how long a session waits for an answer, in seconds.
    :param at_once: recipients that are asked for at the same time.
    :param waiting: recipients that wait for their turn at most; a further one has no answer.
    :param clock: seconds, from any beginning.
    :raises ValueError: a number is out of range.
    """

    def __init__(
        self,
        back_end: BackEnd,
        *,
        plain: bool = False,
        known_for: float = 3600.0,
        unknown_for: float = 300.0,
        remembered: int = 50_000,
        deadline: float = 10.0,
        at_once: int = 10,
        waiting: int = 500,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if min(known_for, unknown_for) < 0 or deadline <= 0 or at_once < 1 or waiting < 0:
            raise ValueError("call-forward needs times and numbers that are not negative")
        self.lifespan = back_end.lifespan
        self._back_end = back_end
        self._plain = plain
        self._known_for = known_for
        self._unknown_for = unknown_for
        self._deadline = deadline
        self._most = at_once + waiting
        self._turns = asyncio.Semaphore(at_once)
        self._clock = clock
        self._answers: ExpiringMap[bytes, _Known] = ExpiringMap(
            remembered, lambda known: known.until
        )
        self._asking: dict[bytes, asyncio.Task[BackEndAnswer]] = {}
        self._reported = -REPORT_SECONDS

    async def look_up(self, recipient: Recipient) -> Found | None:
        """Return what the back end says, or said a while ago.

        :raises SMTPError: 451 4.4.1 (RFC 3463 section 3.5: no answer from host); the back end's
            own 5xx for a mailbox that is there and takes no mail.
        """
        name, address = recipient.name, recipient.address
        if self._plain:
            name, address = recipient.base, recipient.plain
        key = short_key(name)
        known = self._answers.get(key, self._clock())
        answer = known.answer if known is not None else await self._joined(key, address)
        if answer.refusal is not None:
            # Each client has its own: an exception collects the stacks that it went through.
            raise copy(answer.refusal)
        if answer.verdict is Verdict.UNKNOWN:
            return None
        return Found(extended=self._plain and recipient.base != recipient.name)

    async def _joined(self, key: bytes, address: str) -> BackEndAnswer:
        task = self._asking.get(key)
        if task is None:
            if len(self._asking) >= self._most:
                raise self._away(f"{self._most} recipients are asked for already")
            task = asyncio.create_task(self._ask(key, address))
            self._asking[key] = task
            task.add_done_callback(lambda done: self._done(key, done))
        try:
            # A client that leaves takes the answer from nobody else.
            return await asyncio.shield(task)
        except BackEndAway as error:
            raise self._away(str(error)) from error

    async def _ask(self, key: bytes, address: str) -> BackEndAnswer:
        try:
            async with asyncio.timeout(self._deadline), self._turns:
                answer = await self._back_end.ask(address)
        except TimeoutError:
            raise BackEndAway(f"no answer within {self._deadline:g} s") from None
        now = self._clock()
        known = answer.verdict is Verdict.KNOWN
        life = self._known_for if known else self._unknown_for
        self._answers.put(key, _Known(answer, now + life), now)
        return answer

    def _done(self, key: bytes, task: asyncio.Task[BackEndAnswer]) -> None:
        self._asking.pop(key, None)
        # Who waited has it; where nobody did any more it is no news.
        if not task.cancelled():
            task.exception()

    def _away(self, why: str) -> SMTPError:
        now = self._clock()
        if now - self._reported >= REPORT_SECONDS:
            self._reported = now
            _log.warning("recipients cannot be asked for at the back end: %s", why)
        return SMTPError(451, "Recipients cannot be looked up at the moment", enhanced=(4, 4, 1))
