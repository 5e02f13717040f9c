"""What the kernel shows of the processes of a server."""

from __future__ import annotations

import re
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.integration.mx import program
from tests.integration.waiting import until

GONE = (FileNotFoundError, ProcessLookupError)
SAME = 5
"""So many looks, one after the other, that see the same are believed."""


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] != "Z"
    except GONE:
        return False


def dead(pid: int) -> bool:
    """Whether a process has ended."""
    return not alive(pid)


def title(pid: int) -> str:
    """Return what ps shows; "" of a process that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()
    except GONE:
        return ""


def children(pid: int) -> list[int]:
    """Return the process ids of all children."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii")
    return [int(child) for child in text.split()]


def descriptors(pid: int) -> list[str]:
    """Return what each descriptor is, in order: a path, ``socket``, ``pipe``, ``anon_inode``."""
    kinds = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        # A connection may end meanwhile.
        with suppress(FileNotFoundError):
            kinds.append(str(entry.readlink()).partition("[")[0].partition(":")[0])
    return sorted(kinds)


def steady_descriptors(pid: int) -> list[str]:
    """Return :func:`descriptors` when they no longer change: control connections are gone."""
    seen: list[list[str]] = []

    def same() -> list[str] | None:
        seen.append(descriptors(pid))
        last = seen[-SAME:]
        return last[0] if len(last) == SAME and all(each == last[0] for each in last) else None

    return until(same, "the descriptors stay the same") or []


def resident(pid: int) -> int:
    """Return the resident octets of a process that are its own."""
    found = re.search(r"^RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None, f"process {pid} has no memory of its own"
    return int(found[1]) * 1024


def backlogs(port: int) -> list[int]:
    """Return the backlog of every socket that listens on a port, as ``ss -ltn`` shows it."""
    shown = subprocess.run(
        [program("ss"), "-H", "-l", "-t", "-n", f"sport = :{port}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [int(line.split()[2]) for line in shown.splitlines()]
