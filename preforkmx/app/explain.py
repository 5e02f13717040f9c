"""Explain: one message through the whole chain, hook by hook, and delivered to nobody.

The session is a real one, over a pair of sockets in this process, so what the client is told
here is what it would be told there. Three ends are others: the store is looked at and not
charged, nobody's password is asked for, and the delivery's handler reads the message and lets
it go.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import socket
import ssl
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, Literal

from preforkmx.app.chain import redis_target
from preforkmx.app.explain_steps import Phase, Watcher
from preforkmx.app.operate import DEADLINE, NoSharedState, make_operator
from preforkmx.delivery.nexthop.errors import Nonsense
from preforkmx.delivery.nexthop.replies import ReplyParser
from preforkmx.errors import PreforkmxError
from preforkmx.middleware.base import Middleware
from preforkmx.observe.log import AccessLog
from preforkmx.session.listener import Listener
from preforkmx.state.looking import LookingStore
from preforkmx.state.redis import nodes_for
from preforkmx.state.redis.store import RedisStore
from preforkmx.workers.seat import WorkerSeat

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from preforkmx.app.site import Site
    from preforkmx.context import Context
    from preforkmx.delivery.nexthop.replies import Reply
    from preforkmx.middleware.chain import Link
    from preforkmx.model import Envelope, IPAddress, Peer
    from preforkmx.server import Server

CLIENT_PORT: Final = 50_000
"""What hooks see as the client's port."""
_AT_ONCE: Final = 1 << 16


class HookDidNotBoot(PreforkmxError):
    """A lifespan failed, which is what a worker would not boot with. Its cause is the error.

    :param name: whose it is.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"{name or 'a hook'} could not start")
        self.name = name


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What is tried: who sends what to whom.

    :param helo: the name of HELO, in EHLO.
    :param sender: the reverse path, ``""`` the null one.
    :param message: with CRLF line ends.
    :param tls: the client uses STARTTLS.
    :param user: who authenticates, with a password that is taken for right.
    :param known: the greylist knows the client.
    """

    address: IPAddress
    helo: str
    sender: str
    recipients: tuple[str, ...]
    message: bytes
    tls: bool = False
    user: str | None = None
    known: bool = False


@dataclass(slots=True)
class Delivered:
    """What the delivery would have been given."""

    name: str
    sender: str
    recipients: tuple[str, ...]
    """Behind aliases and redirections."""
    size: int
    """Octets, with the header fields that were added."""


Verdict = Literal["accepted", "partly", "deferred", "refused"]


@dataclass(slots=True)
class Explanation:
    """What became of a message, and why."""

    phases: list[Phase]
    delivered: Delivered | None = None
    """None: it did not come so far."""
    notes: list[str] = field(default_factory=list)
    """What to know about this answer."""
    log: list[str] = field(default_factory=list)
    """The lines of the access log."""

    @property
    def final(self) -> Phase:
        """The phase that decided: that of the message, or the last one that came so far."""
        return self.phases[-1]

    @property
    def verdict(self) -> Verdict:
        """``"partly"``: some recipients have it, others were refused."""
        final = self.final
        if 0 < final.code < 400 and self.delivered is not None:
            refused = any(phase.code >= 400 for phase in self.phases)
            return "partly" if refused else "accepted"
        return "refused" if final.code >= 500 else "deferred"


class _Gone(Exception):
    """The server closed the connection."""


async def explain(site: Site, trial: Trial) -> Explanation:
    """Run one message through the chain of `site`.

    :raises ConfigError: there is no server with this configuration.
    :raises HookDidNotBoot: a worker would not boot.
    """
    watcher = Watcher()
    notes: list[str] = []
    lines: list[str] = []
    store = _looking_store(site, trial, watcher, notes)
    server = site.build_server(WorkerSeat(slot=0, count=1, generation=1), decisions=store)
    stand_in = _StandIn(watcher, server.delivery)
    server.host(
        delivery=stand_in.middleware(),
        watch=_watching(watcher, trial),
        access_log=AccessLog(lines.append, site.loaded.config.log.format, worker="explain"),
    )
    with _listening(watcher):
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(server.started())
            except Exception as error:
                raise HookDidNotBoot(watcher.booting) from error
            await _converse(server, _listener(site), trial, watcher)
    if store.away:
        notes.append(
            f"the store gave no answer ({store.away}): limits and greylist as if nobody were known"
        )
    return Explanation(watcher.phases, stand_in.delivered, notes + watcher.notes, lines)


def _looking_store(site: Site, trial: Trial, watcher: Watcher, notes: list[str]) -> LookingStore:
    try:
        operator = make_operator(site.loaded)
    except NoSharedState:
        operator = None
        notes.append(
            "the state is in the memory of each worker: limits and greylist as if nobody were known"
        )
    if trial.known:
        notes.append("the greylist was not asked: the client is taken as known")
    state = site.loaded.config.state
    target = redis_target(state)
    # That its files can be used was seen by the operator's.
    sets = target and RedisStore(nodes_for(target, deadline=DEADLINE), prefix=state.prefix)
    return LookingStore(operator, tell=watcher.tell, known=trial.known, sets=sets or None)


def _watching(watcher: Watcher, trial: Trial) -> Any:
    def watch(phase: str, link: Link[Any]) -> Link[Any]:
        if phase == "authenticate" and trial.user is not None:

            async def taken_for_right(*_arguments: object) -> None:
                watcher.tell("not asked: the password is taken for right")

            link = link._replace(hook=taken_for_right)
        return watcher.watch(phase, link)

    return watch


def _listener(site: Site) -> Listener:
    """Return the first listener of the configuration, without a proxy in front."""
    table = site.loaded.config.listener[0]
    return Listener(table.address, protocol=table.protocol)


class _StandIn:
    """Stands where the delivery does: its hooks are the delivery's own, but for the handler."""

    def __init__(self, watcher: Watcher, delivery: Middleware | None) -> None:
        self._watcher = watcher
        self._delivery = delivery or Middleware(name="nothing")
        hook = self._delivery.handler
        self._name = self._delivery.name or str(
            getattr(hook, "__qualname__", None) or type(hook).__qualname__
        )
        self.delivered: Delivered | None = None

    def middleware(self) -> Middleware:
        hooks = {each.name: getattr(self._delivery, each.name) for each in fields(Middleware)}
        hooks["handler"] = self._handle
        hooks["name"] = self._name
        if hooks["check_sender"] is None and hooks["check_recipient"] is None:
            # Nothing of it runs; a Maildir's would make its folder, as whoever runs this.
            hooks["lifespan"] = None
        return Middleware(**hooks)

    async def _handle(self, _ctx: Context, _peer: Peer, envelope: Envelope) -> None:
        size = 0
        async for octets in envelope.data:
            size += len(octets)
        recipients = tuple(envelope.recipients)
        self.delivered = Delivered(self._name, envelope.sender, recipients, size)
        self._watcher.tell(f"would have {size} octets for {', '.join(recipients)}")


@contextlib.contextmanager
def _listening(watcher: Watcher) -> Iterator[None]:
    """Let the watcher have what is logged, all of it."""
    root, own = logging.getLogger(), logging.getLogger("preforkmx")
    others, levels = root.handlers[:], (root.level, own.level)
    root.handlers[:] = [watcher]
    root.setLevel(logging.INFO)
    own.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        root.handlers[:] = others
        root.setLevel(levels[0])
        own.setLevel(levels[1])


# --- the client ---------------------------------------------------------------------------------


async def _converse(server: Server, listener: Listener, trial: Trial, watcher: Watcher) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    first = watcher.begin("connection", f"from {trial.address}")
    server.take(theirs, (str(trial.address), CLIENT_PORT), listener)
    reader, writer = await asyncio.open_connection(sock=ours)
    client = _Client(reader, writer, watcher, lmtp=listener.protocol == "lmtp")
    try:
        with contextlib.suppress(_Gone):
            await client.hear(first)
            if first.code == 220:
                await client.send_mail(trial)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        await server.wait_closed()


class _Client:
    """Says what a mail server would say, and has every reply noted."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        watcher: Watcher,
        *,
        lmtp: bool,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._watcher = watcher
        self._lmtp = lmtp
        self._parser = ReplyParser()

    async def send_mail(self, trial: Trial) -> None:
        """Go on as long as the server takes it."""
        hello = await self._hello(trial.helo)
        if hello.code == 250 and trial.tls:
            if not await self._starttls():
                return
            hello = await self._hello(trial.helo, "under TLS")
        if hello.code != 250:
            return
        if trial.user is not None and not await self._authenticate(trial.user):
            return
        mail = self._watcher.begin("MAIL", f"<{trial.sender}>")
        if (await self._say(mail, self._mail(trial, hello.lines))).code != 250:
            return
        accepted = 0
        for recipient in trial.recipients:
            rcpt = self._watcher.begin("RCPT", f"<{recipient}>")
            accepted += (await self._say(rcpt, f"RCPT TO:<{recipient}>")).code in {250, 251}
        if accepted:
            await self._data(trial.message, answers=accepted if self._lmtp else 1)
        else:
            await self._say(Phase("RSET"), "RSET")
        await self._say(Phase("QUIT"), "QUIT")

    async def _hello(self, name: str, how: str = "") -> Phase:
        phase = self._watcher.begin("HELO", f"{name} {how}".strip())
        return await self._say(phase, f"{'LHLO' if self._lmtp else 'EHLO'} {name}")

    async def _starttls(self) -> bool:
        phase = self._watcher.begin("STARTTLS")
        if (await self._say(phase, "STARTTLS")).code != 220:
            return False
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            await self._writer.start_tls(context)
        except OSError:
            raise _Gone from None
        return True

    async def _authenticate(self, user: str) -> bool:
        phase = self._watcher.begin("AUTH", user)
        response = base64.b64encode(f"\0{user}\0password".encode()).decode()
        return (await self._say(phase, f"AUTH PLAIN {response}")).code == 235

    def _mail(self, trial: Trial, offers: Sequence[str]) -> str:
        """Return MAIL with the parameters that a client would give."""
        offered = {line.partition(" ")[0].upper() for line in offers[1:]}
        command = f"MAIL FROM:<{trial.sender}>"
        if "SIZE" in offered:
            command += f" SIZE={len(trial.message)}"
        if not trial.message.isascii() and "8BITMIME" in offered:
            command += " BODY=8BITMIME"
        addresses = "".join((trial.sender, *trial.recipients))
        if not addresses.isascii() and "SMTPUTF8" in offered:
            command += " SMTPUTF8"
        return command

    async def _data(self, message: bytes, *, answers: int) -> None:
        phase = self._watcher.begin("message", f"{len(message)} octets")
        if (await self._say(phase, "DATA")).code != 354:
            return
        sending = asyncio.create_task(self._send(message))
        try:
            await self.hear(phase)
            worst = phase.code, phase.lines
            for _ in range(answers - 1):
                await self.hear(phase)
                worst = max(worst, (phase.code, phase.lines))
            phase.code, phase.lines = worst
        finally:
            sending.cancel()
            await asyncio.wait((sending,))

    async def _send(self, message: bytes) -> None:
        stuffed = b".".join((b"", message)) if message.startswith(b".") else message
        stuffed = stuffed.replace(b"\r\n.", b"\r\n..")
        end = b".\r\n" if not stuffed or stuffed.endswith(b"\r\n") else b"\r\n.\r\n"
        with contextlib.suppress(OSError):
            for start in range(0, len(stuffed), _AT_ONCE):
                self._writer.write(stuffed[start : start + _AT_ONCE])
                await self._writer.drain()
            self._writer.write(end)
            await self._writer.drain()

    async def _say(self, phase: Phase, command: str) -> Phase:
        self._writer.write(f"{command}\r\n".encode())
        return await self.hear(phase)

    async def hear(self, phase: Phase) -> Phase:
        """Note the next reply.

        :raises _Gone: there is none.
        """
        phase.code, phase.lines = 0, ()
        try:
            reply = await self._next_reply()
        except (OSError, Nonsense):
            raise _Gone from None
        if reply is None:
            raise _Gone
        phase.code, phase.lines = reply.code, reply.lines
        return phase

    async def _next_reply(self) -> Reply | None:
        while True:
            reply = self._parser.next_reply()
            if reply is not None:
                return reply
            octets = await self._reader.read(_AT_ONCE)
            if not octets:
                return None
            self._parser.feed(octets)
