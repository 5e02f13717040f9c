"""HAProxy in front of a server, on ports of its own."""

from __future__ import annotations

import contextlib
import csv
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.integration.peers.programs import peer_program, run
from tests.integration.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

HAPROXY = "haproxy/usr/sbin/haproxy"
CONFIGURATION = """
global
    maxconn 100
    stats socket unix@{folder}/admin.sock mode 600
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    timeout check 5s
"""


@dataclass(frozen=True)
class Route:
    """A port of HAProxy's, and where it leads."""

    name: str
    to: str
    """The server's address, ``127.0.0.1:25`` or ``unix@PATH``."""
    server: str
    """What stands behind the address in the ``server`` line: ``send-proxy-v2``."""
    bind: str = ""
    """What stands behind the address in the ``bind`` line: ``ssl crt FILE``."""
    backend: str = ""
    """Further lines of the backend."""


@dataclass
class HAProxy:
    """A running HAProxy."""

    folder: Path
    process: subprocess.Popen[bytes]
    ports: dict[str, int]
    """The port on 127.0.0.1 of each route."""

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def server(self, name: str) -> dict[str, str]:
        """Return the row of ``show stat`` about the server of a route."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(self.folder / "admin.sock"))
            client.sendall(b"show stat\n")
            text = b"".join(iter(lambda: client.recv(65536), b"")).decode()
        for row in csv.DictReader(text.removeprefix("# ").splitlines()):
            if (row["pxname"], row["svname"]) == (name, "mx"):
                return row
        raise AssertionError(f"no server of {name} in {text}")


@contextlib.contextmanager
def haproxy(*routes: Route) -> Iterator[HAProxy]:
    """Run HAProxy with these routes, and a free port of 127.0.0.1 for each."""
    # Not below pytest's own folder: the path of its socket would be too long.
    folder = Path(tempfile.mkdtemp(prefix="haproxy-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        lines = [CONFIGURATION.format(folder=folder)]
        sockets = {}
        for route in routes:
            # It is handed the listening socket: no port is free twice.
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            sockets[route.name] = listening
            lines.append(
                f"frontend {route.name}\n"
                f"    bind fd@{listening.fileno()} {route.bind}\n"
                "    unique-id-format %ci:%cp\n"
                f"    default_backend {route.name}\n"
                f"backend {route.name}\n"
                f"{route.backend}\n"
                f"    server mx {route.to} {route.server}\n"
            )
        (folder / "haproxy.cfg").write_text("".join(lines))
        log = stack.enter_context((folder / "log").open("wb"))
        process = subprocess.Popen(
            [peer_program(HAPROXY), "-db", "-f", folder / "haproxy.cfg"],
            stdout=log,
            stderr=log,
            pass_fds=[listening.fileno() for listening in sockets.values()],
        )
        stack.callback(_end, process)
        ports = {name: listening.getsockname()[1] for name, listening in sockets.items()}
        running = HAProxy(folder, process, ports)

        def ready() -> bool:
            assert process.poll() is None, running.log
            return (folder / "admin.sock").exists()

        until(ready, "HAProxy's control socket")
        yield running


def is_valid(configuration: Path) -> tuple[bool, str]:
    """Let HAProxy check a configuration; what it says comes along."""
    checked = run(peer_program(HAPROXY), "-c", "-f", configuration)
    return checked.returncode == 0, checked.stdout


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
