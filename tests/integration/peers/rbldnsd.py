"""rbldnsd, the name server of block lists, with a few lists on a port of its own. UDP only."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.integration.peers.nsd import ATTEMPTS, NameServer
from tests.integration.peers.programs import peer_program
from tests.integration.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

RBLDNSD = "rbldnsd/usr/sbin/rbldnsd"


@dataclass
class ListServer(NameServer):
    """A running rbldnsd."""

    zones: tuple[str, ...] = ()
    """``ZONE:KIND:FILE``."""

    def start(self) -> None:
        """Start it, on the port that it had."""
        # It does not run as root.
        user = ["-u", "nobody:nogroup"] if os.geteuid() == 0 else []
        options = [*user, "-n", "-q", "-e", "-w", self.folder, "-b", f"127.0.0.1/{self.port}"]
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in (peer_program(RBLDNSD), *options, *self.zones)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(lambda: self._answers() or self.ended, "rbldnsd answers")


@contextlib.contextmanager
def rbldnsd(lists: Mapping[str, tuple[str, str]]) -> Iterator[ListServer]:
    """Run rbldnsd.

    :param lists: by zone: the kind of its data (``"ip4set"``, ``"dnset"`` …), and the data.
    """
    folder = Path(tempfile.mkdtemp(prefix="rbldnsd-"))
    folder.chmod(0o755)
    zones = []
    for number, (zone, (kind, data)) in enumerate(lists.items()):
        (folder / f"list{number}").write_text(data)
        zones.append(f"{zone}:{kind}:list{number}")
    running = ListServer(folder, zones=tuple(zones))
    try:
        for _ in range(ATTEMPTS):
            with socket.socket(type=socket.SOCK_DGRAM) as probe:
                probe.bind(("127.0.0.1", 0))
                running.port = probe.getsockname()[1]
            running.start()
            if not running.ended:
                break
        else:
            raise AssertionError((folder / "log").read_text())
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder)
