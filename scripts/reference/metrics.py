"""Prints docs/reference/metrics.md: ``python -m reference.metrics``, as scripts/docs does."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from preforkmx.observe.counters import HELP
from preforkmx.observe.metrics import PROCESS_STATES, SERVER_STATES, StatusCollector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

_STARTED = "2024-05-01T12:00:00+00:00"
_WORKER = {
    "slot": 0,
    "state": "ready",
    "sessions": 0,
    "in_data": 0,
    "loop_lag_ms": 0,
    "started": _STARTED,
}
_DOCUMENT: dict[str, Any] = {
    "state": "ready",
    "version": "",
    "generation": 1,
    "started": _STARTED,
    "listeners": [{"address": "", "queued": 0, "dropped": 0}],
    "served": 1,
    "workers": [_WORKER],
    "totals": {**dict.fromkeys(HELP, 0), "worker_crashes": 0},
    "store": {"process": "ready", "away": 0},
}
"""As little of a status document as has every metric."""

_HEAD = """\
# Metrics

<!-- Printed by scripts/docs from the code. -->

The [admin process](../how-to/monitor.md) answers `/metrics` with these, in the text format of
Prometheus, or in OpenMetrics where a scrape asks for it.

- A counter counts since the start of the master, over all its workers, and never goes backwards
  while the master lives: not with a crash, a reload or a worker that is recycled. What a killed
  worker counted in its last second or two is missing.
- Labels are slots, listeners and states. No client can make a series.
- A value is at most a second older than the scrape, and a counter two more: workers tell the
  master every second or two.
"""

_LABELS = f"""\
| label | is |
|---|---|
| `slot` | the number of a worker's slot; a slot's old and new worker count together |
| `listener` | its address, with the real port where the configuration has port 0 |
| `state` | of the server: {", ".join(f"`{state}`" for state in SERVER_STATES)}; of a process: \
{", ".join(f"`{state}`" for state in PROCESS_STATES)} |
"""


def metrics() -> str:
    """Return the page as Markdown."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield _HEAD
    found = list(StatusCollector(_DOCUMENT).collect())
    for title, kinds in (("Counters", {"counter"}), ("Gauges", {"gauge", "info"})):
        yield f"## {title}\n"
        yield "| metric | labels | |"
        yield "|---|---|---|"
        yield from (_row(metric) for metric in found if metric.type in kinds)
        yield ""
    yield f"## Labels\n\n{_LABELS}"
    yield "Alerts that use them are in `deploy/prometheus/preforkmx.rules.yml`."


def _row(metric: Metric) -> str:
    (name,) = {sample.name for sample in metric.samples}
    labels = ", ".join(f"`{label}`" for label in metric.samples[0].labels)
    return f"| `{name}` | {labels} | {metric.documentation} |"


if __name__ == "__main__":
    sys.stdout.write(metrics())
