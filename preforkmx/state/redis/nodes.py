"""Who is asked: what the store sees of a server, of sentinels and of a cluster."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from hiredis import ReplyError

from preforkmx.errors import StoreUnavailable
from preforkmx.state.redis.connection import printable
from preforkmx.state.redis.script import Call, pack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from preforkmx.state.redis.link import Link
    from preforkmx.state.redis.script import Command, Script, Word

_log = logging.getLogger("preforkmx.state")

#: How often one operation may be sent to another node.
MAX_REDIRECTS: Final = 2
#: How many commands for whose reply nobody waits may be under way a second time (because the
#: server did not know the script, or was the wrong one); what is more is left.
MAX_REPEATED: Final = 256
#: An error that is a bug is reported once in so many seconds.
BUG_SECONDS: Final = 60.0


class Nodes(Protocol):
    """One Redis, however many servers it is.

    Belongs to one process and one event loop: :meth:`start` it after the fork.
    """

    @property
    def available(self) -> bool:
        """Whether anybody would be asked now."""
        ...

    async def start(self) -> None:
        """Begin to connect. Returns after the first attempt, at the latest after a deadline."""
        ...

    async def close(self) -> None:
        """Close every connection; who still waits gets no answer."""
        ...

    async def run(
        self, script: Script | Command, keys: Sequence[bytes], args: Sequence[Word]
    ) -> Any:
        """Run a script or a command, and return its reply: ints, bytes, None and lists of them.

        :param keys: every key that it touches, at least one; in a cluster all of them
            have the same hash tag.
        :raises StoreUnavailable: there is no reply within the deadline, whatever the reason; it
            is partial where other keys may be answered. The script may have run all the same.
        """
        ...

    def tell(self, script: Script, keys: Sequence[bytes], args: Sequence[Word]) -> None:
        """Run a script without waiting for it; whatever goes wrong is not reported.

        It is sent behind everything that :meth:`run` sent before, also while a reply is overdue.
        """
        ...

    async def command(self, *words: Word, node: str = "", key: bytes = b"") -> Any:
        """Send any command and return its reply: for operators and tests.

        :param node: who is asked, one of :meth:`names`; ``""``: the node of `key`, or any.
        :raises StoreUnavailable: as :meth:`run`; an error that is the reply as well.
        """
        ...

    def names(self) -> tuple[str, ...]:
        """Return the addresses of all primaries, connected or not."""
        ...


class Askers:
    """What all :class:`Nodes` do alike: run a script by its name, and again where need be.

    :param deadline: how long an operation may take, in seconds.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._repeats: set[asyncio.Task[None]] = set()
        self._bug_reported = -BUG_SECONDS

    async def run(
        self, script: Script | Command, keys: Sequence[bytes], args: Sequence[Word]
    ) -> Any:
        """Run a script, and return its reply."""
        link = None
        try:
            until = asyncio.get_running_loop().time() + self._deadline
            link = self._link_of(keys[0])
            call = Call(script, keys, args)
            command, sent = link.command(call)
            reply = await link.ask(command)
            if isinstance(reply, Exception):
                reply = await self._again(link, reply, call, sent, until)
            return reply
        except StoreUnavailable as exc:
            exc.partial = self._is_partial(link)
            raise
        except Exception as exc:
            self._report(exc)
            raise StoreUnavailable(
                f"{type(exc).__name__}: {printable(exc)}", partial=self._is_partial(link)
            ) from exc

    def tell(self, script: Script, keys: Sequence[bytes], args: Sequence[Word]) -> None:
        """Run a script without waiting for it."""
        try:
            link = self._link_of(keys[0])
            call = Call(script, keys, args)
            command, sent = link.command(call)
            link.tell(command, partial(self._told, link, call, sent))
        except StoreUnavailable:
            pass
        except Exception as exc:
            self._report(exc)

    async def command(self, *words: Word, node: str = "", key: bytes = b"") -> Any:
        """Send any command and return its reply."""
        link = None
        try:
            link = self._link_of(key) if key or not node else self._link_named(node)
            reply = await link.ask(pack(*words))
        except StoreUnavailable as exc:
            exc.partial = self._is_partial(link)
            raise
        if isinstance(reply, StoreUnavailable):
            raise StoreUnavailable(f"{link}: {reply}", partial=self._is_partial(link))
        if isinstance(reply, ReplyError):
            raise StoreUnavailable(f"{link}: {printable(reply)}", partial=self._is_partial(link))
        return reply

    def _link_of(self, key: bytes) -> Link:
        """Return who is asked about a key; about any where it is empty."""
        raise NotImplementedError

    def _link_named(self, node: str) -> Link:
        raise NotImplementedError

    def _is_partial(self, _link: Link | None) -> bool:
        """Say whether others are there while this one failed."""
        return False

    async def _redirected(self, _link: Link, _code: str, _text: str) -> tuple[Link, bool] | None:
        """Return who is to be asked in place of `link`, and whether with ASKING."""
        return None

    def _refused(self, link: Link, text: str) -> None:
        """Draw conclusions from an error that is the last word on an operation."""
        if text.startswith("READONLY"):
            # The primary is elsewhere now: behind the same name, or the sentinels know.
            link.reconnect("the server has become a replica")

    async def _again(self, link: Link, reply: Any, call: Call, sent: int, until: float) -> Any:
        """Do what an error asks for, until there is a reply, and never beyond `until`.

        :param sent: as :meth:`Link.command` gave it for the command that `reply` answers.
        """
        asking = False
        redirects = 0
        try:
            async with asyncio.timeout_at(until):
                while True:
                    if isinstance(reply, StoreUnavailable):
                        raise StoreUnavailable(f"{link}: {reply}")
                    if not isinstance(reply, ReplyError):
                        return reply
                    text = str(reply)
                    code = text.partition(" ")[0]
                    if code == "NOSCRIPT":
                        command, sent = link.command(call, sent)
                    elif redirects < MAX_REDIRECTS and (
                        other := await self._redirected(link, code, text)
                    ):
                        link, asking = other
                        command, sent = link.command(call)
                        redirects += 1
                    else:
                        self._refused(link, text)
                        raise StoreUnavailable(f"{link}: {printable(text)}")
                    reply = await link.ask(command, asking=asking)
        except TimeoutError:
            raise StoreUnavailable(f"{link}: the server did not answer in time") from None

    def _told(self, link: Link, call: Call, sent: int, reply: Any) -> None:
        if isinstance(reply, ReplyError) and len(self._repeats) < MAX_REPEATED:
            task = asyncio.create_task(self._tell_again(link, reply, call, sent))
            self._repeats.add(task)
            task.add_done_callback(self._repeats.discard)

    async def _tell_again(self, link: Link, reply: ReplyError, call: Call, sent: int) -> None:
        try:
            until = asyncio.get_running_loop().time() + self._deadline
            await self._again(link, reply, call, sent, until)
        except StoreUnavailable:
            pass
        except Exception as exc:
            self._report(exc)

    async def _end_repeats(self) -> None:
        repeats = list(self._repeats)
        for task in repeats:
            task.cancel()
        await asyncio.gather(*repeats, return_exceptions=True)

    def _report(self, exc: Exception) -> None:
        now = time.monotonic()
        if now - self._bug_reported >= BUG_SECONDS:
            self._bug_reported = now
            _log.error("asking Redis failed in a way it should not", exc_info=exc)
