"""Postfix's smtp-sink as a next hop: it keeps what it takes in files, and may be killed."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.integration.mx import program
from tests.integration.peers.programs import answers
from tests.integration.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator


class Sink:
    """smtp-sink on a port of 127.0.0.1."""

    def __init__(self, folder: Path, port: int, *options: str, keep: bool) -> None:
        self.folder = folder
        self.port = port
        self._options = options
        self._keep = keep
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0

    def start(self) -> None:
        """Start it, and wait until it greets."""
        self._starts += 1
        dump = ("-d", f"{self._starts}-%M.") if self._keep else ()
        user = ("-u", pwd.getpwnam("nobody").pw_name) if os.getuid() == 0 else ()
        self._process = subprocess.Popen(
            [program("smtp-sink"), *dump, *user, *self._options, f"127.0.0.1:{self.port}", "128"],
            cwd=self.folder,
        )
        until(lambda: answers(self.port), "smtp-sink's greeting")

    def kill(self) -> None:
        """Kill it in the middle of whatever it does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def messages(self) -> list[bytes]:
        """Return what it has written; what it was killed in is not whole."""
        return [path.read_bytes() for path in sorted(self.folder.iterdir())]


@contextlib.contextmanager
def smtp_sink(port: int, *options: str, keep: bool = True) -> Iterator[Sink]:
    """Run smtp-sink.

    :param options: ``-L`` is LMTP.
    :param keep: write each message into a file.
    """
    folder = Path(tempfile.mkdtemp(prefix="sink-"))
    folder.chmod(0o777)
    sink = Sink(folder, port, *options, keep=keep)
    try:
        sink.start()
        yield sink
    finally:
        sink.kill()
        shutil.rmtree(folder)
