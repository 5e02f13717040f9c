"""A master with real workers that do what a test asks for, and its clients."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

import preforkmx
from tests.integration.processes import alive, children, title
from tests.integration.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROGRAM = Path(__file__).with_name("process_site.py")


class Client:
    """A plain SMTP client that reads what comes."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._buffer = b""

    def reply(self) -> str:
        """Return the last line of the next reply; "" at the end."""
        while True:
            line, end, rest = self._buffer.partition(b"\r\n")
            if end:
                self._buffer = rest
                if line[3:4] != b"-":
                    return line.decode()
                continue
            octets = self.socket.recv(4096)
            if not octets:
                return ""
            self._buffer += octets

    def say(self, line: str) -> str:
        """Send a command and return its reply."""
        self.socket.sendall(line.encode() + b"\r\n")
        return self.reply()

    def begin(self, sender: str = "a@example.net") -> None:
        """Go to the middle of a transaction."""
        assert self.reply().startswith("220 ")
        assert self.say("EHLO client.example.net").startswith("250 ")
        assert self.say(f"MAIL FROM:<{sender}>").startswith("250 ")
        assert self.say("RCPT TO:<b@example.com>").startswith("250 ")

    def deliver(self, sender: str = "a@example.net") -> str:
        """Deliver one message in a connection of its own; return the reply after it."""
        self.begin(sender)
        assert self.say("DATA").startswith("354 ")
        answer = self.say("Subject: x\r\n\r\nx\r\n.")
        assert self.say("QUIT").startswith("221 ")
        return answer

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Site:
    """A running process_site.py."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.settings = {"control": str(folder / "control.sock"), **settings}
        self.errors = folder / f"stderr-{time.monotonic_ns()}"
        self.configure()
        root = str(Path(preforkmx.__file__).parent.parent)
        with self.errors.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", PROGRAM, folder / "settings.json"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": root, "PYTHONDEVMODE": ""},
                process_group=0,
            )
        self.first_status: dict[str, Any] = {}
        self.pids: set[int] = {self.process.pid}

    def configure(self, **settings: Any) -> None:
        """Write the settings that the next load reads."""
        self.settings.update(settings)
        path = self.folder / "settings.json"
        path.write_text(json.dumps(self.settings), "utf-8")

    def wait_ready(self) -> Site:
        """Wait for the announcement."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        line = self.process.stdout.readline() if readable else b""
        assert line, self.log()
        self.first_status = json.loads(line)
        self.note(self.first_status)
        return self

    @property
    def port(self) -> int:
        """The port of the only listener."""
        return int(self.first_status["listeners"][0]["address"].rpartition(":")[2])

    def log(self) -> str:
        """Return what was written to stderr so far."""
        return self.errors.read_text("utf-8")

    def note(self, status: dict[str, Any]) -> None:
        """Remember whom to end if a test fails."""
        self.pids |= {worker["pid"] for worker in status["workers"] if worker["pid"]}

    @contextmanager
    def control(self) -> Iterator[socket.socket]:
        """Connect to the control socket."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(self.settings["control"])
            yield sock

    def command(self, name: str) -> dict[str, Any]:
        """Send one command and return the answer."""
        with self.control() as sock:
            sock.sendall(json.dumps({"command": name}).encode() + b"\n")
            return read_line(sock)

    def status(self) -> dict[str, Any]:
        """Return the status document."""
        status = self.command("status")
        self.note(status)
        return status

    def workers(self, state: str = "ready") -> dict[int, int]:
        """Return the pids of the workers in one state, by slot."""
        return {w["slot"]: w["pid"] for w in self.status()["workers"] if w["state"] == state}

    def children(self) -> list[int]:
        """Return the pids of all children of the master."""
        return children(self.process.pid)

    def store(self) -> int:
        """Return the pid of the store process."""
        (pid,) = [pid for pid in self.children() if title(pid) == "preforkmx: store"]
        self.pids.add(pid)
        return pid

    def signal(self, number: signal.Signals) -> None:
        """Send the master a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end and return the exit status."""
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """End everything that is left."""
        with suppress(FileNotFoundError, ProcessLookupError):
            self.pids |= set(self.children())
        self.process.kill()
        self.process.wait()
        for pid in self.pids - {self.process.pid}:
            if alive(pid) and title(pid).startswith("preforkmx: "):
                os.kill(pid, signal.SIGKILL)
        assert self.process.stdout is not None
        self.process.stdout.close()


def replaced(site: Site, pid: int) -> bool:
    """Whether slot 0 has a ready worker with another pid."""
    return site.workers().get(0, pid) != pid


def read_line(sock: socket.socket) -> dict[str, Any]:
    """Read one line of JSON."""
    octets = b""
    while not octets.endswith(b"\n"):
        piece = sock.recv(65536)
        assert piece, "the connection ended before the answer"
        octets += piece
    answer: dict[str, Any] = json.loads(octets)
    return answer


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Start sites, and end them after the test: import it with ``__all__``."""
    with ExitStack() as stack:

        def start(**settings: Any) -> Site:
            site = Site(tmp_path, **settings)
            stack.callback(site.close)
            return site

        yield start
