"""How many files a process may have open at most."""

from __future__ import annotations

import resource
from pathlib import Path

_CAP_SYS_RESOURCE = 1 << 24


def most_open_files() -> int:
    """Return the hard limit of open files, or what this process may raise it to.

    The master raises its limit when it starts, and its workers inherit that: a privileged one
    may go beyond the hard limit, up to the kernel's fs.nr_open.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or not _privileged():
        return hard
    try:
        return max(hard, int(Path("/proc/sys/fs/nr_open").read_text()))
    except (OSError, ValueError):
        return hard


def _privileged() -> bool:
    try:
        status = Path("/proc/self/status").read_text()
        effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
        return bool(int(effective.split()[1], 16) & _CAP_SYS_RESOURCE)
    except (OSError, ValueError, StopIteration):
        return False
