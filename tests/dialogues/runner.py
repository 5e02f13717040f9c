"""Runs a dialogue: against the bare protocol core, and against a server on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import ssl
from ipaddress import ip_network
from typing import TYPE_CHECKING

from dialogues.caller import Caller
from dialogues.language import (
    ID,
    PHASES,
    Dialogue,
    Flight,
    Handshake,
    Hello,
    Hook,
    Message,
    Step,
    flights,
)

from preforkmx.errors import SMTPError
from preforkmx.middleware.base import Middleware
from preforkmx.model import Verification
from preforkmx.observe.log import AccessLog
from preforkmx.protocol import replies
from preforkmx.protocol.replies import Reply
from preforkmx.protocol.settings import Settings
from preforkmx.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from preforkmx.context import Context
    from preforkmx.model import Envelope, Peer

HOSTNAME = "mx.example.com"
LOOPBACK = ip_network("127.0.0.0/8")
TIMEOUT = 10.0
"""Seconds for each wait of the client: reached only by a test that fails."""


class Hooks:
    """What the hooks of a dialogue say at this point of it."""

    def __init__(self, users: dict[str, str]) -> None:
        self._users = users
        self._answers: dict[tuple[str, str | None], SMTPError | str | None] = {}

    def set(self, hook: Hook) -> None:
        self._answers[hook.phase, hook.argument] = hook.answer

    def ask(self, phase: str, argument: str) -> SMTPError | str | None:
        """The hook's refusal, or VRFY's mailbox, or None."""
        if phase == "auth":
            user, _, password = argument.partition("\0")
            if self._users.get(user) == password:
                return None
            return SMTPError(535, "Authentication credentials invalid", enhanced=(5, 7, 8))
        if (phase, argument) in self._answers:
            return self._answers[phase, argument]
        return self._answers.get((phase, None))

    def decide(self, phase: str, argument: str) -> Reply | None:
        """The same for the bare core."""
        smtputf8 = phase == "vrfy-utf8"
        answer = self.ask("vrfy" if smtputf8 else phase, argument)
        if isinstance(answer, SMTPError):
            return Reply.from_error(answer)
        return replies.verified(answer, smtputf8=smtputf8) if answer is not None else None

    async def run(self, phase: str, argument: str) -> str | None:
        """The same for a server's hook."""
        answer = self.ask(phase, argument)
        if isinstance(answer, SMTPError):
            raise answer
        return answer


def matches(output: bytes, expected: bytes) -> bool:
    """Compare, with any transaction id for ``{id}``."""
    pattern = re.escape(expected).replace(re.escape(ID), rb"[0-9a-f.-]+")
    return re.fullmatch(pattern, output, re.DOTALL) is not None


def assert_says(output: bytes, expected: bytes) -> None:
    if not matches(output, expected):
        raise AssertionError(
            f"the server says\n  {output!r}\ninstead of\n  {expected!r}".replace(
                "\\r\\n", "\\r\\n\n    "
            )
        )


# --- the bare core ---------------------------------------------------------------------------


def run_whole(dialogue: Dialogue) -> None:
    """Feed every flight in one piece."""
    run_on_core(dialogue, lambda _number, octets: iter((octets,)))


def run_at_every_cut(dialogue: Dialogue) -> None:
    """Run the dialogue once for each octet of it, cut there in two."""
    for cut_flight, flight in enumerate(flights(dialogue)):
        for place in range(1, len(flight.octets)):

            def cut(
                number: int, octets: bytes, cut_flight: int = cut_flight, place: int = place
            ) -> Iterator[bytes]:
                if number == cut_flight:
                    yield octets[:place]
                    yield octets[place:]
                else:
                    yield octets

            run_on_core(dialogue, cut)


def run_octet_by_octet(dialogue: Dialogue) -> None:
    """Feed each octet alone."""

    def cut(_number: int, octets: bytes) -> Iterator[bytes]:
        for place in range(len(octets)):
            yield octets[place : place + 1]

    run_on_core(dialogue, cut)


def run_on_core(dialogue: Dialogue, cut: Callable[[int, bytes], Iterator[bytes]]) -> None:
    """Run the dialogue against the core.

    :param cut: ``(number of the flight, octets)`` → the pieces in which it is fed.
    """
    options = dict(dialogue.options)
    tls = bool(options.pop("tls", False))
    xclient = bool(options.pop("xclient", False))
    settings = Settings(hostname=HOSTNAME, auth=bool(dialogue.users), **options)  # type: ignore[arg-type]
    hooks = Hooks(dialogue.users)
    caller = Caller(settings, hooks.decide, tls=tls, may_forward=xclient)
    greeted = False
    number = 0
    for step in dialogue.steps:
        if not greeted and isinstance(step, (Flight, Hello)):
            greeting = caller.connect()
            greeted = True
            if isinstance(step, Flight) and not step.octets:
                assert_says(greeting, b"".join(step.replies))
                assert caller.core.closed == step.closed
                number += 1
                continue
        if isinstance(step, Flight):
            output = b"".join([caller.send(piece) for piece in cut(number, step.octets)])
            assert_says(output, b"".join(step.replies))
            assert caller.core.closed == step.closed
            number += 1
        elif isinstance(step, Hello):
            assert caller.send(b"%s client.example\r\n" % step.verb.encode()).startswith(b"250")
        elif isinstance(step, Message):
            assert caller.delivered.pop(0) == (step.sender, step.recipients, step.body)
        elif isinstance(step, Hook):
            hooks.set(step)
        elif isinstance(step, Handshake):
            assert caller.core.tls
        else:
            assert caller.hang_up() == b""
    assert caller.delivered == []
    traced = b"\n".join(caller.traced)
    assert not [secret for secret in dialogue.secrets if secret in traced]


# --- a server on loopback ---------------------------------------------------------------------


def run_on_server(
    dialogue: Dialogue,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    *,
    all_hooks: bool = True,
    octet_by_octet: bool = False,
) -> None:
    """Run the dialogue against a server, over a socket.

    :param all_hooks: the server has a hook for every phase, else only for those that the
        dialogue names: it has a shorter way for commands that nobody wants to see.
    :param octet_by_octet: the client sends each octet with a write of its own.
    """

    async def run() -> None:
        hooks = Hooks(dialogue.users)
        delivered: list[tuple[str, list[str], bytes]] = []
        log = _Log()
        server = _server(dialogue, hooks, delivered, server_tls, log, all_hooks=all_hooks)

        def converse() -> None:
            client = _Client(dialogue, hooks, delivered, client_tls, octet_by_octet=octet_by_octet)
            client.converse(server.addresses[0])

        async with server:
            await asyncio.to_thread(converse)
            server.drain()
            async with asyncio.timeout(TIMEOUT):
                await server.wait_closed()
        assert delivered == []
        log.check(dialogue.secrets)

    asyncio.run(run())


class _Log(logging.Handler):
    """Everything that a server writes to its logs, the dialogue of debug level included."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.logger = logging.Logger("dialogue", logging.DEBUG)  # noqa: LOG001 - for this one server
        self.logger.addHandler(self)
        self.access_log = AccessLog(self.lines.append)

    def emit(self, record: logging.LogRecord) -> None:
        assert record.exc_info is None, record.exc_info
        self.lines.append(record.getMessage())

    def check(self, secrets: list[bytes]) -> None:
        assert self.lines
        # Not of what a client wrote in the dialogue: there the log's writer escapes.
        entries = [line for line in self.lines if line.endswith("\n")]
        assert all(line[:-1].isprintable() for line in entries)
        assert not [s for s in secrets if any(s.decode() in line for line in self.lines)]


def _server(
    dialogue: Dialogue,
    hooks: Hooks,
    delivered: list[tuple[str, list[str], bytes]],
    tls: ssl.SSLContext,
    log: _Log,
    *,
    all_hooks: bool,
) -> Server:
    options = dict(dialogue.options)
    implicit = options.pop("tls", False)
    starttls = options.pop("starttls", False)
    lmtp = options.pop("lmtp", False)
    xclient = options.pop("xclient", False)
    # Below what a server may be given: a dialogue of a hundred recipients would be no reading.
    recipients = options.pop("recipients", None)

    async def deliver(_ctx: Context, _peer: Peer, envelope: Envelope) -> None:
        await hooks.run("begin", envelope.sender)
        body = await envelope.data.read()
        await hooks.run("data", body.decode("latin-1"))
        for index, path in enumerate(envelope.recipients):
            answer = hooks.ask("deliver", path)
            if isinstance(answer, SMTPError):
                envelope.reject_recipient(index, answer)
        delivered.append((envelope.sender, list(envelope.recipients), body))

    server = Server(
        hostname=HOSTNAME,
        tls=tls if implicit or starttls else None,
        handler=deliver,
        logger=log.logger,
        access_log=log.access_log,
        **options,  # type: ignore[arg-type]
    )
    if recipients is not None:
        server._limits["recipients"] = recipients  # type: ignore[assignment]
    phases = set(PHASES)
    if not all_hooks:
        phases = {step.phase for step in dialogue.steps if isinstance(step, Hook)}
    server.use(_middleware(hooks, phases | ({"auth"} if dialogue.users else set())))
    server.listen(
        "127.0.0.1:0",
        tls="implicit" if implicit else "starttls",
        protocol="lmtp" if lmtp else "smtp",
        xclient_from=(LOOPBACK,) if xclient else (),
    )
    return server


def _middleware(hooks: Hooks, phases: set[str]) -> Middleware:
    async def connect(_ctx: Context, _peer: Peer) -> None:
        await hooks.run("connect", "")

    async def helo(_ctx: Context, _peer: Peer, name: str) -> None:
        await hooks.run("helo", name)

    async def sender(_ctx: Context, _peer: Peer, path: str) -> None:
        await hooks.run("mail", path)

    async def recipient(_ctx: Context, _peer: Peer, path: str) -> None:
        await hooks.run("rcpt", path)

    async def verify(_ctx: Context, _peer: Peer, text: str) -> Verification | None:
        mailbox = await hooks.run("vrfy", text)
        return Verification(mailbox) if mailbox is not None else None

    async def authenticate(_ctx: Context, _peer: Peer, user: str, password: str) -> None:
        await hooks.run("auth", f"{user}\0{password}")

    fields = {
        "connect": ("check_connection", connect),
        "helo": ("check_helo", helo),
        "mail": ("check_sender", sender),
        "rcpt": ("check_recipient", recipient),
        "vrfy": ("verify", verify),
        "auth": ("authenticate", authenticate),
    }
    used = dict(fields[phase] for phase in phases & set(fields))
    return Middleware(name="dialogue", **used)  # type: ignore[arg-type]


class _Client:
    """The client's side of a dialogue; runs in a thread of its own."""

    def __init__(
        self,
        dialogue: Dialogue,
        hooks: Hooks,
        delivered: list[tuple[str, list[str], bytes]],
        tls: ssl.SSLContext,
        *,
        octet_by_octet: bool,
    ) -> None:
        self._dialogue = dialogue
        self._hooks = hooks
        self._delivered = delivered
        self._tls = tls
        self._octet_by_octet = octet_by_octet
        self._sock = socket.socket()
        self._closed = False

    def converse(self, address: tuple[str, int]) -> None:
        steps = list(self._dialogue.steps)
        while isinstance(steps[0], Hook):
            self._hooks.set(steps.pop(0))
        self._sock.settimeout(TIMEOUT)
        try:
            self._sock.connect(address)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._dialogue.options.get("tls"):
                self._shake_hands()
            if not isinstance(steps[0], Flight) or steps[0].octets:
                assert self._sock.recv(65536).startswith(b"220 ")
            for step in steps:
                self._take(step)
            if not self._closed:
                self._leave()
        finally:
            self._sock.close()

    def _take(self, step: Step) -> None:
        if isinstance(step, Flight):
            self._closed = step.closed
            if step.closed and not step.replies:
                # At once, perhaps with octets of the client's unread.
                with contextlib.suppress(ConnectionError):
                    self._send(step.octets)
                    assert self._sock.recv(65536) == b""
                return
            self._send(step.octets)
            self._hear(step.replies)
            if step.closed:
                assert self._sock.recv(65536) == b""
        elif isinstance(step, Hello):
            self._sock.sendall(b"%s client.example\r\n" % step.verb.encode())
            assert self._sock.recv(65536).startswith(b"250")
        elif isinstance(step, Message):
            assert self._delivered.pop(0) == (step.sender, step.recipients, step.body)
        elif isinstance(step, Hook):
            self._hooks.set(step)
        elif isinstance(step, Handshake):
            self._shake_hands()

    def _shake_hands(self) -> None:
        self._sock = self._tls.wrap_socket(self._sock, server_hostname=HOSTNAME)

    def _send(self, octets: bytes) -> None:
        if not self._octet_by_octet:
            self._sock.sendall(octets)
            return
        for at in range(len(octets)):
            self._sock.sendall(octets[at : at + 1])

    def _hear(self, replies: list[bytes]) -> None:
        """Read what a flight is answered with: one write, and one more after each 354.

        On loopback one write is one read.
        """
        if not replies:
            return
        expected = b"".join(replies)
        output = b""
        if self._octet_by_octet:
            while len(output) < len(expected) and (octets := self._sock.recv(65536)):
                output += octets
        for _ in range(1 + len(re.findall(rb"^354 ", expected, re.MULTILINE))):
            if matches(output, expected):
                return
            output += self._sock.recv(65536)
        assert_says(output, expected)

    def _leave(self) -> None:
        """Close the client's side: nothing was left unsaid, but for a 421 in mid-message."""
        if isinstance(self._sock, ssl.SSLSocket):
            with contextlib.suppress(ssl.SSLError):
                self._sock = self._sock.unwrap()
            return
        self._sock.shutdown(socket.SHUT_WR)
        rest = b"".join(iter(lambda: self._sock.recv(65536), b""))
        assert rest == b"" or re.fullmatch(rb"421 [^\r\n]*\r\n", rest)
