"""What a server's processes use: CPU and memory of a process and all below it, from Linux."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Snapshot:
    """The CPU that a tree of processes has used so far, in nanoseconds."""

    processes: dict[int, int]
    """Of each process that is alive, all its threads, those that ended included."""
    ended: int
    """Of children that ended and were waited for, in ticks of 10 ms."""

    def since(self, earlier: Snapshot) -> float:
        """Return the seconds of CPU between two snapshots."""
        used = sum(self.processes.values()) + self.ended
        before = sum(earlier.processes.values()) + earlier.ended
        return max(0, used - before) / 1e9


class ProcessTree:
    """A process and its descendants."""

    def __init__(self, root: int) -> None:
        self.root = root

    def pids(self) -> list[int]:
        """Return the processes of the tree, the root first."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                fields = _stat(int(entry.name))
                if fields:
                    children.setdefault(int(fields[1]), []).append(int(entry.name))
        found = [self.root]
        for pid in found:
            found.extend(children.get(pid, ()))
        return found

    def cpu(self) -> Snapshot:
        """Return the CPU used so far."""
        processes, ended = {}, 0
        for pid in self.pids():
            fields = _stat(pid)
            try:
                # The process' own CPU clock (clock_getcpuclockid(3)): to the nanosecond, where
                # /proc/PID/stat has ticks of 10 ms.
                processes[pid] = time.clock_gettime_ns((~pid << 3) | 2)
            except OSError:
                continue
            if fields:
                ended += (int(fields[13]) + int(fields[14])) * _TICK
        return Snapshot(processes, ended)

    def memory(self) -> int:
        """Return the octets of memory in use; what processes share counts once."""
        total = 0
        for pid in self.pids():
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        return total


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat behind the name: state, parent, …"""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()
