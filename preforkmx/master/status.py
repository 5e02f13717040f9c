"""The status document, as ``preforkmx status --json`` prints it."""

from __future__ import annotations

import datetime as dt
import os
from typing import TYPE_CHECKING, Any

from preforkmx._version import __version__
from preforkmx.workers.heartbeat import BEAT_SECONDS

if TYPE_CHECKING:
    from preforkmx.master.child import Child
    from preforkmx.master.holdings import Holdings
    from preforkmx.master.pool import Pool

Status = dict[str, Any]


def status_document(
    pool: Pool, holdings: Holdings, *, state: str, started: str, now: float
) -> Status:
    """Return the document.

    :param state: ``"ready"``, ``"reloading"`` or ``"draining"``.
    :param started: when the master started: RFC 3339, UTC.
    :param now: by the master's clock.
    """
    return {
        "state": state,
        "hostname": pool.plan.hostname,
        "version": __version__,
        "pid": os.getpid(),
        "generation": pool.generation,
        "started": started,
        "listeners": _listeners(holdings),
        "served": sum(slot.served for slot in pool.slots),
        "workers": _workers(pool, now),
        "totals": {**holdings.totals.as_dict(), "worker_crashes": pool.crashes},
        "store": _store(pool),
        "admin": _admin(pool, holdings),
    }


def _listeners(holdings: Holdings) -> list[Status]:
    listeners = holdings.listeners
    return [
        {
            "address": listener.address,
            "protocol": listener.protocol,
            "tls": listener.tls,
            "proxy_protocol": listener.proxy_protocol,
            "queued": queued,
            "dropped": dropped,
        }
        for listener, queued, dropped in zip(
            listeners.listeners, listeners.queued(), listeners.dropped(), strict=True
        )
    ]


def _workers(pool: Pool, now: float) -> list[Status]:
    """Return every worker; a slot whose worker has crashed and is not yet replaced is "gone"."""
    workers: list[Status] = []
    for slot in pool.slots:
        children = [child for child in slot if child.alive]
        workers += [{"slot": slot.index, **_worker(child, now)} for child in children]
        if slot.holder is None and slot.successor is None and pool.refills:
            workers.append({"slot": slot.index, **_NOBODY, "generation": pool.generation})
    for slot in pool.former:
        workers += [{"slot": slot.index, **_worker(child, now)} for child in slot if child.alive]
    return workers


_NOBODY: Status = {
    "pid": None,
    "state": "gone",
    "generation": 0,
    "sessions": 0,
    "in_data": 0,
    "loop_lag_ms": 0,
    "hung": False,
    "messages": 0,
    "started": None,
}


def _worker(child: Child, now: float) -> Status:
    reading = child.reading()
    # A loop that stands still beats no more: its last beat may have been in time.
    overdue_ms = round((child.silent_seconds(now) - BEAT_SECONDS) * 1000)
    return {
        "pid": child.pid,
        "state": child.state,
        "generation": child.generation,
        "sessions": reading.sessions if reading else 0,
        "in_data": reading.in_data if reading else 0,
        "loop_lag_ms": max(reading.loop_lag_ms, overdue_ms) if reading else 0,
        "hung": child.hung,
        "messages": reading.messages if reading else 0,
        "started": _time(child.started),
    }


def _time(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds")


def _admin(pool: Pool, holdings: Holdings) -> Status:
    holder = pool.admin.holder
    return {
        "address": holdings.admin.address,
        "state": "gone" if holder is None else holder.state,
    }


def _store(pool: Pool) -> Status:
    """Return where the shared state is, and whether the workers reach it.

    ``process`` is the state of the store process, None where there is none. ``away`` counts the
    workers that the configured store does not answer; the state is "away" then.
    """
    readings = [child.reading() for child in pool.workers() if child.alive]
    away = sum(reading.store_away for reading in readings if reading)
    process = None
    if pool.store is not None:
        process = "gone" if pool.store.holder is None else pool.store.holder.state
    url = pool.plan.state_url
    own = process is not None and url.startswith("embedded:")
    state = "away" if away else process if own else "ready"
    return {"url": url, "state": state, "away": away, "process": process}
