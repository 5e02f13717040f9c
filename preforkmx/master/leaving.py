"""Leaving: the final drain, and the fast stop.

====================================  =====================================================
when                                  what
====================================  =====================================================
at once                               a filter drops the SYNs of new connections; the files
                                      of unix sockets are removed
the queues are empty twice, 500 ms    what was queued has been greeted: every process closes
apart, 1 s to 10 s after the filter   every listener; idle sessions get 421
+ drain_seconds                       sessions in a transaction get 421, what still arrives
                                      is aborted without a 250 (each worker does this)
+ 5 s                                 each worker aborts what is left, and exits
+ 2 s                                 who is still there is killed
then                                  the store process stops
====================================  =====================================================

A fast stop begins in the last third: sessions are aborted, and who is not gone 2 s later is
killed.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from preforkmx.master.hiring import KILL_SECONDS
from preforkmx.master.procedure import Steps, Wait
from preforkmx.workers.worker import ABORT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from preforkmx.master.holdings import Holdings
    from preforkmx.master.pool import Pool

LOOK_SECONDS = 0.5
"""Between two looks at the queues. With looks 25 ms apart clients 200 ms away were reset."""
SHORTEST_FILTER_SECONDS = 1.0
LONGEST_FILTER_SECONDS = 10.0
"""A worker that does not accept must not hold up the drain of the others."""
STORE_SECONDS = 5.0
"""What the store process gets to write its last changes."""
GIVE_UP_SECONDS = 5.0
"""From SIGKILL to going without those that the kernel cannot end."""

_logger = logging.getLogger("preforkmx.master")


def drain(pool: Pool, holdings: Holdings, clock: Callable[[], float]) -> Steps:
    """Drain all workers, then stop the store process."""
    _logger.info("draining: no new connections, %g s for the open ones", pool.plan.drain_seconds)
    holdings.listeners.shut()
    yield from _empty_queues(holdings, clock)
    pool.refills = False
    # Here first, in the workers after it: the last of them accepts what came in between.
    holdings.listeners.close()
    seconds = pool.plan.drain_seconds
    for child in pool.workers():
        child.drain(seconds)
        child.kill_by(clock() + seconds + ABORT_SECONDS + KILL_SECONDS)
    limit = seconds + ABORT_SECONDS + KILL_SECONDS + GIVE_UP_SECONDS
    yield Wait(pool.idle, seconds=limit)
    yield from _stop_store(pool, clock, STORE_SECONDS)


def _empty_queues(holdings: Holdings, clock: Callable[[], float]) -> Steps:
    began = clock()
    empty = 0
    while True:
        yield Wait(seconds=LOOK_SECONDS)
        waited = clock() - began
        # A unix socket does not say: each worker empties it before it closes it.
        queued = sum(length or 0 for length in holdings.listeners.queued())
        empty = 0 if queued else empty + 1
        if empty >= 2 and waited >= SHORTEST_FILTER_SECONDS:
            return
        if waited >= LONGEST_FILTER_SECONDS:
            _logger.warning("%d connections were queued and not accepted for 10 s", queued)
            return


def fast_stop(pool: Pool, holdings: Holdings, clock: Callable[[], float]) -> Steps:
    """End all processes as quickly as they can be."""
    _logger.info("stopping: sessions are aborted")
    pool.refills = False
    holdings.listeners.close()
    for child in pool.workers():
        child.stop()
        child.kill_by(clock() + KILL_SECONDS)
    yield Wait(pool.idle, seconds=KILL_SECONDS + GIVE_UP_SECONDS)
    yield from _stop_store(pool, clock, KILL_SECONDS)


def _stop_store(pool: Pool, clock: Callable[[], float], seconds: float) -> Steps:
    if pool.store is None:
        return
    for child in pool.store:
        child.stop()
        child.kill_by(clock() + seconds)
    store = pool.store
    yield Wait(lambda: store.holder is None, seconds=seconds + GIVE_UP_SECONDS)
