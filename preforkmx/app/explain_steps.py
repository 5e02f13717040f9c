"""What explain sees of each hook: its verdict, what it changed, why, and how long it took."""

from __future__ import annotations

import logging
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from preforkmx.body import prepend
from preforkmx.context import Context
from preforkmx.errors import MessageAborted, SMTPError
from preforkmx.middleware.authentication_results import results_of
from preforkmx.middleware.verdicts import ALLOW_LISTED, SPF_PASSED
from preforkmx.protocol.replies import Reply

if TYPE_CHECKING:
    from collections.abc import Iterator

    from preforkmx.body import MessageStream
    from preforkmx.middleware.chain import Link
    from preforkmx.model import Envelope, Peer

LARGEST_HEADER: Final = 1024 * 1024
"""Octets of a message that are looked at for its header."""

_SILENT: Final = frozenset({"reset", "disconnect"})
"""Phases that no reply tells of: they are shown where a hook fails."""


@dataclass(slots=True)
class Step:
    """One hook that ran."""

    name: str
    phase: str
    """The field of :class:`~preforkmx.middleware.base.Middleware`."""
    reply: str = ""
    """The reply that it gave the client; ``""``: it let the client pass, or failed."""
    effects: list[str] = field(default_factory=list)
    """What it changed, each as a phrase: ``"sets result spf=pass"``."""
    why: list[str] = field(default_factory=list)
    """What it logged, and what the store told it."""
    stack: str = ""
    """Where it crashed; ``""``: it did not."""
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """``"passes"``, ``"refuses"`` or ``"crashes"``."""
        return "crashes" if self.stack else "refuses" if self.reply else "passes"


@dataclass(slots=True)
class Phase:
    """One command of the client, the hooks that ran for it, and its reply."""

    name: str
    subject: str = ""
    steps: list[Step] = field(default_factory=list)
    not_asked: list[str] = field(default_factory=list)
    """Who would have run behind the hook that ended the phase."""
    code: int = 0
    """The reply's; 0: the server closed instead of a reply."""
    lines: tuple[str, ...] = ()

    @property
    def reply(self) -> str:
        """The reply as the client saw it, its lines as one text; ``""``: there was none."""
        return f"{self.code} {' '.join(self.lines)}" if self.code else ""

    @property
    def by(self) -> str | None:
        """Who refused; None: nobody, or the protocol itself."""
        last = self.steps[-1] if self.steps else None
        return None if last is None or last.verdict == "passes" else last.name


class Watcher(logging.Handler):
    """Watches the hooks of one session, and the log meanwhile.

    :ivar phases: what happened, in its order.
    :ivar booting: whose lifespan was entered last.
    :ivar notes: warnings of nobody's.
    """

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.phases: list[Phase] = []
        self.booting = ""
        self.notes: list[str] = []
        self._links: dict[str, list[str]] = {}
        self._step: Step | None = None
        self._fields: Counter[str] = Counter()
        self._looked = False

    def begin(self, name: str, subject: str = "") -> Phase:
        """The client says something; return where it is noted."""
        phase = Phase(name, subject)
        self.phases.append(phase)
        return phase

    def tell(self, text: str) -> None:
        """Note `text` as a reason of the hook that runs."""
        if self._step is not None:
            self._step.why.append(text)

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("asyncio") and record.levelno < logging.WARNING:
            return
        # The dialogue is shown already, and so is the stack of a hook that crashed.
        if record.funcName in {"trace", "crashed"}:
            return
        try:
            text = record.getMessage()
        except Exception as error:
            text = f"{record.msg} (not formatted: {type(error).__name__})"
        if self._step is not None:
            self._step.why.append(text)
        elif record.levelno >= logging.WARNING:
            self.notes.append(text)

    def watch(self, phase: str, link: Link[Any]) -> Link[Any]:
        """Return a link in the place of `link`, for :meth:`Server.host
        <preforkmx.server.Server.host>`."""
        if phase == "blocked":
            # It knows only whom this process has refused before.
            return link
        if phase == "lifespan":
            return link._replace(hook=partial(self._boot, link))
        self._links.setdefault(phase, []).append(link.name)
        place = len(self._links[phase])
        run = self._run_handler if phase == "handler" else self._run

        async def hook(ctx: Context, peer: Peer, *arguments: Any) -> Any:
            step = Step(link.name, phase)
            try:
                return await run(step, link, ctx, peer, *arguments)
            finally:
                self._note(step, place)

        return link._replace(hook=hook)

    def _boot(self, link: Link[Any]) -> Any:
        self.booting = link.name
        return link.hook()

    def _note(self, step: Step, place: int) -> None:
        if not self.phases or (step.phase in _SILENT and step.verdict == "passes"):
            return
        phase = self.phases[-1]
        phase.steps.append(step)
        if step.verdict != "passes":
            phase.not_asked = self._links[step.phase][place:]

    async def _run(
        self, step: Step, link: Link[Any], ctx: Context, peer: Peer, *arguments: Any
    ) -> Any:
        outer, self._step = self._step, step
        began = time.perf_counter()
        try:
            result = await link.hook(ctx, peer, *arguments)
        except SMTPError as error:
            step.reply = Reply.from_error(error).text
            raise
        except MessageAborted as error:
            step.effects.append(f"gives the message up: {error}")
            raise
        except BaseException as error:
            step.stack = "".join(traceback.format_exception(error))
            raise
        finally:
            step.seconds = time.perf_counter() - began
            self._step = outer
        if isinstance(result, Context):
            step.effects += _differences(ctx, result)
        if step.phase == "check_recipient" and ctx.envelope is not None:
            targets = ctx.envelope.targets.get(arguments[0])
            if targets and not any(self._redirections()):
                step.effects.append(f"leads to {', '.join(targets)}")
        return result

    def _redirections(self) -> Iterator[str]:
        for step in self.phases[-1].steps if self.phases else ():
            yield from (effect for effect in step.effects if effect.startswith("leads to "))

    async def _run_handler(
        self, step: Step, link: Link[Any], ctx: Context, peer: Peer, envelope: Envelope
    ) -> Any:
        if not self._looked:
            self._looked = True
            self._fields, envelope.data = await _look_at_header(envelope.data)
        before = envelope.data
        result = await self._run(step, link, ctx, peer, envelope)
        if envelope.data is not before:
            fields, envelope.data = await _look_at_header(envelope.data)
            step.effects += [f"adds header {text}" for text in fields - self._fields]
            step.effects += [f"removes header {text}" for text in self._fields - fields]
            if fields == self._fields:
                step.effects.append("puts another stream in the message's place")
            self._fields = fields
        return result


def _differences(before: Context, after: Context) -> Iterator[str]:
    old, new = results_of(before), results_of(after)
    for result in new:
        if result not in old:
            yield f"sets result {' '.join(result.words(utf8=True))}"
    subjects = {result.subject for result in new}
    for result in old:
        if result.subject not in subjects:
            yield f"takes back result {result.method}={result.result}"
    for key in (SPF_PASSED, ALLOW_LISTED):
        value = after.value(key)
        if value != before.value(key):
            yield f"sets {key!r} to {value}" if value is not None else f"takes back {key!r}"


async def _look_at_header(stream: MessageStream) -> tuple[Counter[str], MessageStream]:
    """Return the fields of a message's header, unfolded, and a stream of the whole message."""
    head = bytearray()
    try:
        while b"\r\n\r\n" not in head and len(head) < LARGEST_HEADER:
            octets = await stream.read(1 << 16)
            if not octets:
                break
            head += octets
    except MessageAborted:
        # Whoever reads on is told again.
        return Counter(), stream
    # A message that begins with an empty line has no header.
    text = b"" if head.startswith(b"\r\n") else bytes(head.partition(b"\r\n\r\n")[0])
    fields: list[str] = []
    for line in text.decode("utf-8", "replace").split("\r\n"):
        if line[:1] in {" ", "\t"} and fields:
            fields[-1] += " " + line.strip()
        elif line:
            fields.append(line)
    return Counter(fields), prepend(stream, bytes(head))
