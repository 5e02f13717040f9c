"""The metrics: the master's status document in the text format of Prometheus, or OpenMetrics.

The totals live in the master, which adds up what its workers send: a counter never goes
backwards while the master lives, whatever becomes of a worker. Nothing is counted here, and
nothing is kept on disk. Labels are slots, listeners and states, never what a client sent.

Only the admin process imports this module: no worker needs the Prometheus client.
"""

from __future__ import annotations

import datetime as dt
import platform
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from preforkmx.observe.counters import HELP

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.core import Metric

Status = dict[str, Any]

SERVER_STATES = ("booting", "ready", "reloading", "draining")
PROCESS_STATES = ("booting", "ready", "draining", "gone")
WORKER_CRASHES = (
    "Processes that ended without being told to: workers, the store, the admin process."
)


def exposition(document: Status, accept: str = "") -> tuple[bytes, str]:
    """Return the metrics of a status document, and their media type.

    :param accept: the request's ``Accept``: OpenMetrics where it asks for that, else
        Prometheus' own text format.
    """
    encode, media_type = choose_encoder(accept)
    return encode(StatusCollector(document)), media_type


class StatusCollector(Collector):
    """The metrics of one status document."""

    def __init__(self, document: Status) -> None:
        self._document = document

    def collect(self) -> Iterator[Metric]:
        """Return every metric; the series of a slot come and go with it."""
        document = self._document
        yield from _counters(document["totals"])
        yield from _server(document)
        yield from _workers(document["workers"])
        yield from _listeners(document["listeners"])
        store = document["store"]
        yield _states(
            "preforkmx_store_state",
            "1 for the state of the store process, 0 for the others.",
            [] if store["process"] is None else [store["process"]],
            PROCESS_STATES,
        )
        yield GaugeMetricFamily(
            "preforkmx_store_away",
            "Workers that the configured store does not answer: they ask a nearer one.",
            value=store["away"],
        )


def _counters(totals: dict[str, int]) -> Iterator[Metric]:
    for name, help_text in {**HELP, "worker_crashes": WORKER_CRASHES}.items():
        yield CounterMetricFamily(f"preforkmx_{name}", help_text, value=totals[name])


def _server(document: Status) -> Iterator[Metric]:
    yield InfoMetricFamily(
        "preforkmx_build",
        "The version of preforkmx, and of Python.",
        value={"version": document["version"], "python": platform.python_version()},
    )
    yield _states(
        "preforkmx_state",
        "1 for the state of the server, 0 for the others.",
        [document["state"]],
        SERVER_STATES,
    )
    yield GaugeMetricFamily(
        "preforkmx_generation",
        "1 after the start; each reload that is done has a higher one.",
        value=document["generation"],
    )
    yield GaugeMetricFamily(
        "preforkmx_start_time_seconds",
        "When the master started, in seconds since 1970.",
        value=_epoch(document["started"]),
    )
    yield GaugeMetricFamily(
        "preforkmx_slots_served",
        "Slots with a worker that is ready and does not hang; with 0 nobody is greeted.",
        value=document["served"],
    )


def _workers(workers: list[Status]) -> Iterator[Metric]:
    yield _states(
        "preforkmx_workers",
        "Workers in each state; gone are those that crashed and are not replaced yet.",
        [worker["state"] for worker in workers],
        PROCESS_STATES,
    )
    slots: dict[str, list[Status]] = defaultdict(list)
    for worker in workers:
        slots[str(worker["slot"])].append(worker)
    sessions, in_data, lag, started = (
        GaugeMetricFamily(f"preforkmx_{name}", help_text, labels=["slot"])
        for name, help_text in (
            ("sessions", "Open sessions of a slot's workers."),
            ("in_data", "Sessions of them between 354 and the reply after their message."),
            (
                "loop_lag_seconds",
                "How late the event loop of a slot's worker was at its last beat, or is by now.",
            ),
            ("worker_start_time_seconds", "When a slot's newest worker was forked, since 1970."),
        )
    )
    for slot, processes in slots.items():
        sessions.add_metric([slot], sum(each["sessions"] for each in processes))
        in_data.add_metric([slot], sum(each["in_data"] for each in processes))
        lag.add_metric([slot], max(each["loop_lag_ms"] for each in processes) / 1000)
        times = [_epoch(each["started"]) for each in processes if each["started"] is not None]
        if times:
            started.add_metric([slot], max(times))
    yield from (sessions, in_data, lag, started)


def _listeners(listeners: list[Status]) -> Iterator[Metric]:
    queued = GaugeMetricFamily(
        "preforkmx_queue_length",
        "Connections that no worker has taken yet; a unix socket does not say.",
        labels=["listener"],
    )
    dropped = CounterMetricFamily(
        "preforkmx_queue_dropped",
        "Segments of new connections that the kernel threw away: the queue was full, or a drain "
        "lets nobody in.",
        labels=["listener"],
    )
    for listener in listeners:
        for family, key in ((queued, "queued"), (dropped, "dropped")):
            if listener[key] is not None:
                family.add_metric([listener["address"]], listener[key])
    yield from (queued, dropped)


def _states(
    name: str, help_text: str, states: Iterable[str], known: tuple[str, ...]
) -> GaugeMetricFamily:
    """Count states; each known one has a series, so that none appears only when it is too late."""
    counts = dict.fromkeys(known, 0)
    for state in states:
        counts[state] = counts.get(state, 0) + 1
    family = GaugeMetricFamily(name, help_text, labels=["state"])
    for state, count in counts.items():
        family.add_metric([state], count)
    return family


def _epoch(time: str) -> float:
    return dt.datetime.fromisoformat(time).timestamp()
