"""What the dns row compares: resolvers, each in a process of its own, and who answers them."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.server import Failed, Server

LOOKERS_UP = ("preforkmx", "dnspython")
_SECONDS = 120


class NameServer(Server):
    """A DNS server that answers every query alike."""

    name = "name server"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.name_server", str(self.port)]

    def greets(self) -> bool:
        return self.log.exists() and "ready" in self.log.read_text()


def look_up(who: str, port: int, names: int) -> list[tuple[float, float]]:
    """Let `who` look names up: fresh ones, then the same again.

    :returns: for each the seconds, and the seconds of CPU.
    """
    command = [sys.executable, "-m", "benchmarks.lookups", who, str(port), str(names)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if ran.returncode:
        raise Failed(f"{who} could not look names up:\n{ran.stderr[-2000:]}")
    return [(float(line.split()[0]), float(line.split()[1])) for line in ran.stdout.splitlines()]
