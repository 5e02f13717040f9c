"""A server that is measured: started on a free port of loopback, and stopped afterwards."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from benchmarks.meter import ProcessTree

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

START = 30.0
"""Seconds that a server has until it greets."""
STOP = 20.0
"""Seconds that a server has to stop when it is asked to."""


class Failed(Exception):
    """A server or its load did not do what the benchmark needs."""


class NotHere(Exception):
    """A peer cannot run on this machine; the text says why."""


def free_port() -> int:
    """Return a port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int, greeting: bytes) -> bool:
    """Return whether what is heard first on `port` begins so."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as probe:
        if probe.recv(4).startswith(greeting):
            probe.sendall(b"QUIT\r\n")
            return True
    return False


class Server(ABC):
    """One server, as a context manager: entered it greets on its port, left it has ended.

    :param folder: for its files; made, and not removed.
    """

    name: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """Write the configuration below the folder, and return the command to run."""

    @property
    def tree(self) -> ProcessTree:
        """The server's processes."""
        assert self.process is not None
        return ProcessTree(self.process.pid)

    @property
    def log(self) -> Path:
        """Where its standard output and error go."""
        return self.folder / "log"

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = self.command()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self.wait_until_it_greets()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ask the server to stop, and see to it that it does."""
        process = self.process
        if process is None:
            return
        pids = self.tree.pids()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP)
        except subprocess.TimeoutExpired:
            # Its own children, by their ids, taken while it was alive.
            for pid in pids[1:]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.kill()
            process.wait()
        self.process = None

    def greets(self) -> bool:
        """Return whether there is a 220 on the port."""
        return answers(self.port, b"220")

    def wait_until_it_greets(self) -> None:
        """Wait until it greets.

        :raises Failed: when it ends, or after :data:`START` seconds.
        """
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                break
            if self.greets():
                return
            time.sleep(0.05)
        tail = self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""
        raise Failed(f"{self.name} did not start:\n{tail}")
