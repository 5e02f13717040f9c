"""A redis-server on a unix socket of its own."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.integration.peers.programs import peer_program, until

if TYPE_CHECKING:
    from collections.abc import Iterator

REDIS_SERVER = "redis-tools/usr/bin/redis-server"


@contextlib.contextmanager
def redis_socket(*options: str) -> Iterator[Path]:
    """Run a redis-server that keeps nothing on the disk, and yield its socket's path.

    :param options: more of its configuration: ``"--maxmemory", "1mb"``.
    """
    # Not below pytest's own folder: the path of the socket would be too long.
    folder = Path(tempfile.mkdtemp(prefix="redis-"))
    path = folder / "redis.sock"
    try:
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    *(str(peer_program(REDIS_SERVER)), "--port", "0"),
                    *("--unixsocket", str(path), "--unixsocketperm", "600"),
                    *("--dir", str(folder), "--save", "", "--appendonly", "no"),
                    *options,
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            until(lambda: _answers(path) or process.poll() is not None, "an answer of redis-server")
            assert process.poll() is None, (folder / "log").read_text()
            yield path
        finally:
            process.kill()
            process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _answers(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith(b"+PONG")
    except OSError:
        return False
