"""Where the peers' programs are, and how to run them."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

from tests.integration.mx import program
from tests.integration.waiting import until

__all__ = ["answers", "peer_program", "run", "swaks", "until"]

PEERS = Path(__file__).parents[3] / ".venv" / "peers"


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


def answers(port: int, greeting: bytes = b"220 ") -> bool:
    """Say whether somebody on this port greets."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            return client.recv(1024).startswith(greeting)
    except OSError:
        return False
