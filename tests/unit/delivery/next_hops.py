"""Next hops for the tests: one that says what it is told, and a server in front of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from preforkmx import Server
from preforkmx.delivery.lmtp import lmtp
from preforkmx.delivery.smtp import smtp
from preforkmx.testing import Client, running

HOSTNAME = "mx.example.com"
KEYWORDS = ("PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE 1000000", "DSN", "CHUNKING", "BINARYMIME")

Answer = str | None | Callable[["Backend", str], str | None]


class Backend:
    """An SMTP or LMTP server whose answers a test sets.

    ``answers`` has, by the beginning of a command (``"RCPT TO:<b@"``; the longest counts), what
    it is answered with; ``"."`` is the message, in LMTP one answer a recipient (``".b@…"``). None
    closes the connection instead, and "" is silence. ``greeting`` is said first.
    """

    def __init__(self, *, lmtp: bool = False, keywords=KEYWORDS, **options) -> None:
        self.lmtp = lmtp
        self.keywords = keywords
        self.greeting: str | None = "220 backend.example ESMTP"
        self.answers: dict[str, Answer] = {}
        self.said: list[str] = []
        self.messages: list[tuple[str, list[str], bytes]] = []
        self.delivered: list[tuple[str, bytes]] = []
        self.connections = 0
        self.heads: list[bytes] = []
        self.pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self.reading = asyncio.Event()
        self.reading.set()
        """Cleared: nothing of a message is read."""
        self._tasks: set[asyncio.Task] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._options = options
        self._server: asyncio.Server | None = None
        self.port = 0
        self.head = 0

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", port or self.port, **self._options
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        # Until the transports have closed.
        await asyncio.sleep(0.01)
        self._server = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def piece(self, octets: bytes) -> None:
        """Wait until this piece of a message has come."""
        async with asyncio.timeout(10):
            while await self.pieces.get() != octets:
                pass

    def verbs(self) -> list[str]:
        return [line.split(" ")[0] for line in self.said]

    def drop_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def _answer(self, line: str, default: str) -> str | None:
        best = max((key for key in self.answers if line.startswith(key)), key=len, default=None)
        if best is None:
            return default
        answer = self.answers[best]
        return answer(self, line) if callable(answer) else answer

    async def _serve(self, reader, writer) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        try:
            await self._converse(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _converse(self, reader, writer) -> None:
        def say(answer: str | None) -> bool:
            if answer is None:
                return False
            if answer == "":
                # Silence.
                return True
            writer.write(answer.encode() + b"\r\n")
            return True

        if self.head:
            self.heads.append(await reader.readexactly(self.head))
        if self.greeting == "":
            await reader.read()
            return
        if not say(self.greeting):
            return
        sender, recipients, chunks = "", [], b""
        while line := (await reader.readline()).decode():
            line = line.rstrip("\r\n")
            self.said.append(line)
            verb = line.split(" ")[0].upper()
            default = "250 2.0.0 Ok"
            if verb in ("EHLO", "LHLO"):
                lines = ["backend.example", *self.keywords]
                default = "\r\n".join(f"250-{word}" for word in lines[:-1])
                default += f"\r\n250 {lines[-1]}" if lines[1:] else "250 backend.example"
            elif verb == "DATA":
                default = "354 go on"
            elif verb == "QUIT":
                default = "221 bye"
            elif verb == "BDAT":
                octets = await reader.readexactly(int(line.split(" ")[1]))
                chunks += octets
                self.pieces.put_nowait(octets)
                if line.upper().endswith(" LAST"):
                    message, chunks = chunks, b""
                    if not self._end(say, sender, recipients, message):
                        return
                    recipients = []
                    continue
            answer = self._answer(line, default)
            if not say(answer):
                return
            good = answer[:1] in ("2", "3")
            if verb == "MAIL" and good:
                sender, recipients = line[11:].partition(">")[0], []
            elif verb == "RCPT" and good:
                recipients.append(line[9:].partition(">")[0])
            elif verb == "RSET":
                sender, recipients = "", []
            elif verb == "QUIT":
                return
            elif verb == "DATA" and good:
                message = b""
                await self.reading.wait()
                while (text := await reader.readline()) != b".\r\n":
                    if not text:
                        return
                    text = text.removeprefix(b".")
                    self.pieces.put_nowait(text)
                    message += text
                if not self._end(say, sender, recipients, message):
                    return
                recipients = []

    def _end(self, say, sender, recipients, message) -> bool:
        names = recipients if self.lmtp else [""]
        whole = []
        for name in names:
            answer = self._answer(f".{name}", "250 2.0.0 taken")
            if not say(answer):
                return False
            if answer.startswith("250"):
                whole.append(name)
                self.delivered.extend((each, message) for each in ([name] if name else recipients))
        if whole:
            self.messages.append((sender, list(recipients), message))
        return True


@contextlib.asynccontextmanager
async def backend(**options):
    """A running Backend."""
    server = Backend(**options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def relay(*servers, lmtp_=False, **options) -> Server:
    """A server whose delivery hands on to these backends."""
    addresses = [each if isinstance(each, str) else each.address for each in servers]
    make = lmtp if lmtp_ else smtp
    wishes = {"smtputf8": True, "dsn": True}
    server_options = {
        key: options.pop(key)
        for key in list(options)
        if key in ("message_size", "delivery_timeout", "tls", "requiretls", "bare_newline")
    }
    delivery = make(addresses, hostname=HOSTNAME, **options)
    return Server(hostname=HOSTNAME, handler=delivery, **wishes, **server_options)


@contextlib.asynccontextmanager
async def client_of(server: Server):
    """A client that has said EHLO to a running server."""
    async with running(server) as address, await Client.connect(address) as client:
        assert (await client.hello()).code == 250
        yield client
        await client.command("QUIT")
