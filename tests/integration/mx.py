"""A whole preforkmx as an operator runs it, and clients that count what was acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.integration.waiting import PAUSE

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Iterator, Sequence

COMMAND = (sys.executable, "-m", "preforkmx")
START_SECONDS = 30.0


def program(name: str) -> str:
    """Return the path of a program that the tests need; a missing one is a failure."""
    found = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    assert found is not None, f"{name} is missing: scripts/test installs what the tests need"
    return found


@dataclass
class MX:
    """A running ``preforkmx serve``."""

    directory: Path
    config: Path
    process: subprocess.Popen[bytes]
    ports: list[int] = field(default_factory=list)
    """Those of the listeners that have one, in the order of the configuration."""

    @property
    def mail(self) -> Path:
        return self.directory / "mail"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another verb of the command against this server."""
        return subprocess.run(
            [*COMMAND, *arguments, "-c", str(self.config)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def command(self, name: str) -> dict:
        """Send one command to the control socket, and return the answer."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(str(self.directory / "control.sock"))
            sock.sendall(json.dumps({"command": name}).encode() + b"\n")
            with sock.makefile("rb") as answers:
                return json.loads(answers.readline())

    def status(self) -> dict:
        return self.command("status")

    def pids(self) -> list[int]:
        """Return the workers' process ids, by slot."""
        return [worker["pid"] for worker in self.status()["workers"]]

    def delivered(self) -> list[Path]:
        """Return every message in every new/."""
        return sorted(self.mail.glob("*/*/new/*"))

    def stop(self) -> int:
        """End it with TERM and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def serving(
    directory: Path, toml: str, *, workers: int = 2, command: tuple[str, ...] = COMMAND
) -> Iterator[MX]:
    """Serve a configuration; what `toml` leaves out gets what a test wants."""
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "preforkmx.toml"
    defaults = {
        "hostname": 'hostname = "mx.example.com"\ndomains = ["example.com"]\n',
        "[workers]": f"[workers]\ncount = {workers}\n",
        "[[listener]]": '[[listener]]\naddress = "127.0.0.1:0"\n',
        "[delivery]": f'[delivery]\nuse = "maildir"\npath = "{directory}/mail"\n',
        "[admin]": f'[admin]\naddress = ""\ncontrol = "{directory}/control.sock"\n',
    }
    top = "".join(text for key, text in defaults.items() if key == "hostname" and key not in toml)
    rest = "".join(text for key, text in defaults.items() if key[0] == "[" and key not in toml)
    config.write_text(f"{top}{toml}\n{rest}")
    with running(config, [*command, "serve", "-c", config]) as mx:
        yield mx


@contextlib.contextmanager
def running(
    config: Path, command: Sequence[str | Path], *, ready: bool = True, **options: Any
) -> Iterator[MX]:
    """Run a command that serves this configuration, in its folder, and end it.

    :param ready: wait until it serves.
    :param options: those of :class:`subprocess.Popen`.
    """
    with (config.parent / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log, cwd=config.parent, **options)
    mx = MX(config.parent, config, process)
    try:
        if ready:
            await_ready(mx)
        yield mx
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGQUIT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def await_ready(mx: MX) -> None:
    """Wait until every worker is ready; it learns its ports then."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert mx.process.poll() is None, mx.log
        try:
            listeners = mx.status()["listeners"]
        except (OSError, ValueError):
            assert time.monotonic() < deadline, mx.log
            time.sleep(PAUSE)
            continue
        addresses = [listener["address"] for listener in listeners]
        mx.ports = [
            int(address.rpartition(":")[2])
            for address in addresses
            if not address.startswith("unix:")
        ]
        return


@dataclass
class Load:
    """What a load generator saw."""

    acknowledged: list[str] = field(default_factory=list)
    """The numbers of the messages that were answered with 250."""
    resets: int = 0
    """Connections that were refused by a reset or ended without a reply, after connect."""
    refused: int = 0
    """Connections that the port refused."""
    busy: int = 0
    """421 replies."""
    lost: int = 0
    """Sessions that ended in the middle: their messages may or may not be stored."""

    @property
    def failures(self) -> int:
        """Everything that a client would call a failure."""
        return self.resets + self.refused + self.busy + self.lost


class Generator:
    """Sends numbered messages over many sessions until it is told to stop.

    :param place: a port of loopback, or the path of a unix socket.
    :param implicit_tls: each connection begins with TLS, in this context.
    :param starttls: each session says STARTTLS, and goes on in this context.
    """

    def __init__(
        self,
        place: int | Path,
        *,
        sessions: int = 10,
        messages: int = 5,
        implicit_tls: ssl.SSLContext | None = None,
        starttls: ssl.SSLContext | None = None,
    ) -> None:
        self._place = place
        self._implicit_tls = implicit_tls
        self._starttls = starttls
        self._sessions = sessions
        self._messages = messages
        self._number = 0
        self.load = Load()
        self.stopping = asyncio.Event()
        self._progress = asyncio.Condition()

    async def run(self) -> None:
        """Send, until :attr:`stopping` is set."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._sessions):
                group.create_task(self._client())

    @contextlib.asynccontextmanager
    async def sending(self) -> AsyncIterator[Load]:
        """Send meanwhile, and let every client finish what it has begun."""
        task = asyncio.create_task(self.run())
        try:
            yield self.load
        finally:
            self.stopping.set()
            await asyncio.wait_for(task, 60)

    async def acknowledged(self, more: int) -> None:
        """Wait until so many more messages are acknowledged."""
        target = len(self.load.acknowledged) + more
        async with asyncio.timeout(60 + more / 20), self._progress:
            await self._progress.wait_for(lambda: len(self.load.acknowledged) >= target)

    async def _client(self) -> None:
        while not self.stopping.is_set():
            try:
                reader, writer = await self._connect()
            except (ConnectionRefusedError, FileNotFoundError):
                self.load.refused += 1
                await asyncio.sleep(0.01)
                continue
            except TimeoutError:
                continue
            except OSError:
                self.load.resets += 1
                continue
            try:
                await self._session(reader, writer)
            except ConnectionResetError:
                self.load.resets += 1
            except (asyncio.IncompleteReadError, BrokenPipeError):
                self.load.lost += 1
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._place, Path):
            return await asyncio.open_unix_connection(self._place)
        return await asyncio.open_connection("127.0.0.1", self._place, ssl=self._implicit_tls)

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def reply() -> int:
            while True:
                line = await reader.readuntil(b"\r\n")
                if line[3:4] != b"-":
                    return int(line[:3])

        async def say(line: str) -> int:
            writer.write(line.encode() + b"\r\n")
            return await reply()

        if await reply() != 220 or await say("EHLO client.example") != 250:
            self.load.busy += 1
            return
        if self._starttls is not None:
            if await say("STARTTLS") != 220:
                self.load.busy += 1
                return
            await writer.start_tls(self._starttls, server_hostname="127.0.0.1")
            if await say("EHLO client.example") != 250:
                self.load.busy += 1
                return
        for _ in range(self._messages):
            self._number += 1
            number = f"{self._number:06d}"
            for line, expected in (
                ("MAIL FROM:<sender@example.org>", 250),
                ("RCPT TO:<box@example.com>", 250),
                ("DATA", 354),
            ):
                if await say(line) != expected:
                    self.load.busy += 1
                    return
            if await say(f"Subject: {number}\r\n\r\nmessage {number}\r\n.") != 250:
                self.load.busy += 1
                return
            self.load.acknowledged.append(number)
            async with self._progress:
                self._progress.notify_all()
            if self.stopping.is_set():
                break
        await say("QUIT")


def stored_numbers(mx: MX) -> list[str]:
    """Return the numbers of the messages in the Maildirs, doubles included."""
    numbers = []
    for path in mx.delivered():
        text = path.read_bytes()
        assert text.endswith(b"\r\n"), f"{path} is not a whole message"
        numbers.append(text.rpartition(b"message ")[2].strip().decode())
    return numbers
