"""Figures, their ratios, and how they are shown."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any


@dataclass
class Figure:
    """One server in one profile."""

    profile: str
    """What was done: ``sink, kept connection``."""
    server: str
    unit: str
    """Of the values: ``µs of CPU per message``."""
    values: list[float] = field(default_factory=list)
    """One for each round."""
    rates: list[float] = field(default_factory=list)
    """What the server got done in each round, in :attr:`rate_unit`."""
    rate_unit: str = "msg/s"
    ratio: float | None = None
    budget: str = ""
    """The budget in words, where this figure has one."""
    met: bool | None = None

    @property
    def value(self) -> float:
        """The middle value of all rounds."""
        return median(self.values)

    @property
    def rate(self) -> float | None:
        """The middle rate of all rounds."""
        return median(self.rates) if self.rates else None

    def at_most(self, limit: float, other: Figure | None = None, *, of: str = "") -> None:
        """Set the budget: at most `limit` (times `other`)."""
        self.ratio = self.value / other.value if other else None
        self.met = (self.ratio if self.ratio is not None else self.value) <= limit
        self.budget = f"≤ {limit:g}{f' × {of}' if other else ''}"

    def at_least(self, limit: float, other: Figure, *, of: str) -> None:
        """Set the budget: at least `limit` times `other`."""
        self.ratio = self.value / other.value
        self.met = self.ratio >= limit
        self.budget = f"≥ {limit:g} × {of}"

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {
            "profile": self.profile,
            "server": self.server,
            "unit": self.unit,
            "value": self.value,
            "values": self.values,
            "rate": self.rate,
            "rate_unit": self.rate_unit if self.rates else None,
            "ratio": self.ratio,
            "budget": self.budget or None,
            "met": self.met,
        }


def table(figures: list[Figure]) -> str:
    """Return the figures as a table, grouped by profile."""
    rows = [("", "", "rounds", "rate", "ratio", "budget")]
    profile = None
    for figure in figures:
        if figure.profile != profile:
            profile = figure.profile
            rows.append((f"{profile}: {figure.unit}", "", "", "", "", ""))
        spread = f"{min(figure.values):.4g}…{max(figure.values):.4g}"
        verdict = {True: "met", False: "MISSED", None: ""}[figure.met]
        rows.append(
            (
                f"  {figure.server}",
                f"{figure.value:.4g}",
                spread if len(figure.values) > 1 else "",
                f"{figure.rate:,.0f} {figure.rate_unit}" if figure.rate is not None else "",
                f"{figure.ratio:.2f}" if figure.ratio is not None else "",
                f"{figure.budget} {verdict}".strip(),
            )
        )
    data = [row for row in rows if any(row[1:])]
    widths = [max(len(row[column]) for row in data) for column in range(6)]
    lines = []
    for row in rows:
        if any(row[1:]):
            cells = [row[0].ljust(widths[0])]
            cells += [row[column].rjust(widths[column]) for column in range(1, 5)]
            lines.append("  ".join([*cells, row[5]]).rstrip())
        else:
            lines += ["", row[0]]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Return what the figures depend on: the machine and the versions."""
    versions = {}
    for name in ("preforkmx", "uvloop", "aiosmtpd"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        **versions,
    }
