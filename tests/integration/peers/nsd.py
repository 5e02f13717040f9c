"""NSD, a name server, with one zone on a port of its own, over UDP and TCP."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.integration.peers.programs import peer_program
from tests.integration.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

NSD = "nsd/usr/sbin/nsd"
ATTEMPTS = 5
CONFIGURATION = """
server:
  ip-address: 127.0.0.1@{port}
  server-count: 1
  rrl-ratelimit: 0
  username: ""
  zonesdir: "{folder}"
  database: ""
  pidfile: ""
  xfrdfile: ""
  xfrdir: "{folder}"
  zonelistfile: "{folder}/zone.list"
  logfile: "{folder}/log"
remote-control:
  control-enable: no
zone:
  name: "{zone}"
  zonefile: zone
"""


@dataclass
class NameServer:
    """A running NSD: its processes are a group."""

    folder: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, on the port that it had."""
        command = [peer_program(NSD), "-d", "-c", self.folder / "nsd.conf"]
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        until(lambda: self._answers() or self.ended, "NSD answers")

    @property
    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def signal(self, number: int) -> None:
        """Send a signal to all its processes."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def stop(self) -> None:
        """End it, and its processes with it."""
        if self.process is not None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
            self.process.wait()
            # The leader's end is not yet that of the others, who have the socket too.
            until(self._is_gone, "NSD's socket is closed")

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self._ask())
        return False

    def _is_gone(self) -> bool:
        with contextlib.suppress(TimeoutError):
            try:
                self._ask()
            except ConnectionRefusedError:
                return True
        return False

    def _ask(self) -> bytes:
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(0.2)
            client.connect(("127.0.0.1", self.port))
            client.send(b"\0\1\0\0\0\1\0\0\0\0\0\0\0\0\2\0\1")
            return client.recv(512)


@contextlib.contextmanager
def nsd(zone: str, records: str) -> Iterator[NameServer]:
    """Run NSD with the text of a zone's file."""
    folder = Path(tempfile.mkdtemp(prefix="nsd-"))
    running = NameServer(folder)
    (folder / "zone").write_text(records)
    try:
        for _ in range(ATTEMPTS):
            with socket.create_server(("127.0.0.1", 0)) as probe:
                running.port = probe.getsockname()[1]
            configuration = CONFIGURATION.format(port=running.port, folder=folder, zone=zone)
            (folder / "nsd.conf").write_text(configuration)
            running.start()
            if not running.ended:
                break
        else:
            raise AssertionError((folder / "log").read_text())
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder)
