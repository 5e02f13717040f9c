"""Where the peers' programs are, and how to wait for what they do."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.integration.mx import program

if TYPE_CHECKING:
    from collections.abc import Callable

PEERS = Path(__file__).parents[3] / ".venv" / "peers"
PAUSE_SECONDS = 0.05


def peer_program(path: str) -> Path:
    """Return a program below .venv/peers, where scripts/test puts what it does not install."""
    found = PEERS / path
    assert found.is_file(), f"{found} is missing: scripts/test puts it there"
    return found


def run(*command: object, seconds: float = 30, **options) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return what it said on both streams, as ``stdout``."""
    return subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
        **options,
    )


def swaks(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run swaks with what every test says; the last of an option's values counts."""
    return run(
        program("swaks"),
        *("--helo", "client.example", "--from", "sender@example.org", "--body", "hello"),
        *arguments,
    )


def until(condition: Callable[[], object], what: str, *, seconds: float = 10) -> None:
    """Wait until another process has done what nobody tells us of.

    :param what: what the failure says was waited for.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(PAUSE_SECONDS)


def answers(port: int, greeting: bytes = b"220 ") -> bool:
    """Say whether somebody on this port greets."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            return client.recv(1024).startswith(greeting)
    except OSError:
        return False
