"""What the dns row compares: resolvers, each in a process of its own, and who answers them."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.server import Failed, Server

LOOKERS_UP = ("preforkmx", "dnspython")
_SECONDS = 120


class NameServer(Server):
    """A DNS server that knows every name."""

    name = "name server"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.name_server", str(self.port)]

    def greets(self) -> bool:
        return self.log.exists() and "ready" in self.log.read_text()


def look_up(who: str, port: int, names: int) -> list[tuple[float, float]]:
    """Let `who` look names up: fresh ones, then the same again.

    :returns: for each the seconds, and the seconds of CPU.
    """
    return _turns(who, "benchmarks.lookups", who, str(port), str(names))


def check_spf(port: int, domains: int) -> list[tuple[float, float]]:
    """Let preforkmx check clients of fresh domains, then of the same again; as :func:`look_up`."""
    return _turns("preforkmx", "benchmarks.spf_checks", str(port), str(domains))


def _turns(who: str, module: str, *arguments: str) -> list[tuple[float, float]]:
    command = [sys.executable, "-m", module, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if ran.returncode:
        raise Failed(f"{who} could not look names up:\n{ran.stderr[-2000:]}")
    return [(float(line.split()[0]), float(line.split()[1])) for line in ran.stdout.splitlines()]
