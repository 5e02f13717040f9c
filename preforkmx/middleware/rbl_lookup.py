"""Asks lists, all at once, for as long as it matters what they say."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, Protocol

from preforkmx.errors import DNSBusy, DNSError, DNSNameError
from preforkmx.middleware.rbl_codes import is_code, is_error
from preforkmx.middleware.rbl_health import Health
from preforkmx.middleware.rbl_score import score

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from ipaddress import IPv4Address

    from preforkmx.middleware.rbl_list import DNSList, Question
    from preforkmx.middleware.rbl_score import Answers, Entry, Score

#: Answers of one list that are looked at.
MAX_CODES: Final = 16
#: Characters of a list's text in a refusal.
MAX_TEXT: Final = 200
#: Octets of a list's text that are looked at.
_MAX_OCTETS: Final = 1000

_UNPRINTABLE: Final = bytes(c if 32 < c < 127 else 32 if c < 128 else ord("?") for c in range(256))


class LooksUp(Protocol):
    """What is wanted of a :class:`~preforkmx.dns.Resolver`."""

    async def a(self, name: str, /) -> tuple[IPv4Address, ...]:
        """Return the IPv4 addresses of `name`, or raise a DNSError."""

    async def txt(self, name: str, /) -> tuple[bytes, ...]:
        """Return the TXT records of `name`, or raise a DNSError."""


class _Broken(Exception):
    """The list answers what is of no use to anybody; the text is for the operator."""


class Lists:
    """What one worker knows of the lists that it asks.

    :param clock: seconds, from any beginning.
    """

    __slots__ = ("_clock", "_health")

    def __init__(
        self, lists: Iterable[DNSList], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._health = {each.zone: Health(each.shown, clock) for each in lists}

    async def ask(
        self,
        resolver: LooksUp,
        entries: Sequence[Entry],
        answers: Answers,
        enough: Callable[[Score], bool],
        deadline: float,
    ) -> Answers:
        """Return `answers`, and those to the questions of `entries` that were waited for.

        A list that fails, or is silent until the deadline, lists nobody.

        :param enough: says whether the rest need not be waited for.
        :param deadline: by the clock of the event loop.
        """
        # Less those about names that are not the client's any more.
        found = {
            question.name: answers[question.name]
            for entry in entries
            for question in entry.questions
            if question.name in answers
        }
        if enough(score(entries, found)):
            return found
        tasks: dict[asyncio.Task[tuple[IPv4Address, ...]], Question] = {}
        wanted = {each.name: each for entry in entries for each in entry.questions}
        for name, question in wanted.items():
            if name in found:
                continue
            if self._health[question.zone].may_be_asked():
                tasks[asyncio.create_task(self._look_up(resolver, question))] = question
            else:
                found[name] = ()
        if not tasks:
            return found
        try:
            await self._collect(tasks, found, lambda: enough(score(entries, found)), deadline)
        finally:
            await _cancel(tasks)
        return found

    async def text(self, resolver: LooksUp, question: Question, deadline: float) -> str:
        """Return what a list says of a listing, on one line; ``""`` if it says nothing in time."""
        try:
            async with asyncio.timeout_at(deadline):
                texts = await resolver.txt(question.name)
        except (DNSError, TimeoutError):
            return ""
        return harmless(texts[0]) if texts else ""

    async def _collect(
        self,
        tasks: dict[asyncio.Task[tuple[IPv4Address, ...]], Question],
        found: dict[str, tuple[IPv4Address, ...]],
        enough: Callable[[], bool],
        deadline: float,
    ) -> None:
        now = asyncio.get_running_loop().time
        # What is there after one turn of the loop was known before: it says nothing of today.
        fresh = False
        await asyncio.sleep(0)
        done = {task for task in tasks if task.done()}
        while True:
            for task in done:
                question = tasks.pop(task)
                found[question.name] = self._outcome(task, question, fresh=fresh)
            if not tasks or enough():
                break
            done, _ = await asyncio.wait(
                tasks, timeout=max(0.0, deadline - now()), return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                for question in tasks.values():
                    self._health[question.zone].failed("it is silent")
                    found[question.name] = ()
                return
            fresh = True
        for question in tasks.values():
            self._health[question.zone].given_up()

    def _outcome(
        self, task: asyncio.Task[tuple[IPv4Address, ...]], question: Question, *, fresh: bool
    ) -> tuple[IPv4Address, ...]:
        health = self._health[question.zone]
        try:
            codes = task.result()
        except _Broken as error:
            health.broken(str(error))
        except (DNSBusy, DNSNameError):
            # That is not the list's fault.
            health.given_up()
        except DNSError as error:
            if fresh:
                health.failed(str(error) or type(error).__name__)
            else:
                health.given_up()
        else:
            if fresh:
                health.answered()
            else:
                health.given_up()
            return codes
        return ()

    async def _look_up(self, resolver: LooksUp, question: Question) -> tuple[IPv4Address, ...]:
        codes = tuple(filter(is_code, await resolver.a(question.name)))[:MAX_CODES]
        error = next(filter(is_error, codes), None)
        if error is not None:
            raise _Broken(f"answers with the error {error}")
        health = self._health[question.zone]
        if codes and not health.trusted:
            # RFC 5782 section 5. Lists that are given up list everybody, to be noticed.
            if any(map(is_code, await resolver.a(question.never_listed))):
                raise _Broken("lists everybody")
            health.trust()
        return codes


async def _cancel(tasks: Iterable[asyncio.Task[tuple[IPv4Address, ...]]]) -> None:
    left = set(tasks)
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left)
        for task in left:
            # Looked at: asyncio reports what nobody does.
            task.cancelled() or task.exception()


def harmless(text: bytes) -> str:
    """Return a list's text as one line of printable ASCII, at most :data:`MAX_TEXT` long."""
    words = text[:_MAX_OCTETS].translate(_UNPRINTABLE).decode("ascii").split()
    line = " ".join(words)
    return line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT - 3]}..."
