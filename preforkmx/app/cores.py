"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def usable_cores(cgroups: Path = _CGROUPS) -> int:
    """Return the number of cores that the affinity and the cgroup's quota leave, at least 1.

    A quota of 1.5 cores counts as 2: the workers then share what there is.
    """
    cores = len(os.sched_getaffinity(0))
    quota = _quota(cgroups)
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def _quota(cgroups: Path) -> float | None:
    """Return the cores of the cgroup's quota: version 2 (cpu.max) or 1 (cpu.cfs_quota_us)."""
    try:
        limit, period = (cgroups / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (cgroups / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroups / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        cores = int(limit) / int(period)
    except (ValueError, ZeroDivisionError):
        # "max": there is none.
        return None
    return cores if cores > 0 else None
