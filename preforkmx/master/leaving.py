"""Leaving: the final drain, and the fast stop.

====================================  =====================================================
when                                  what
====================================  =====================================================
at once                               the lame duck: health checks are refused, clients are
                                      served as before (not with ``preforkmx stop``)
+ lame_duck_seconds                   a filter drops the SYNs of new connections; the files
                                      of unix sockets are removed
the queues are empty twice, 500 ms    what was queued has been greeted: every process closes
apart, 1 s to 10 s after the filter   every listener; idle sessions get 421
+ drain_seconds                       sessions in a transaction get 421, what still arrives
                                      is aborted without a 250 (each worker does this)
+ 5 s                                 each worker aborts what is left, and exits
+ 2 s                                 who is still there is killed
then                                  the admin process and the store process stop
====================================  =====================================================

A fast stop begins in the last third: sessions are aborted, and who is not gone 2 s later is
killed.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from preforkmx.master.hiring import KILL_SECONDS
from preforkmx.master.procedure import Steps, Wait
from preforkmx.master.queues import emptied
from preforkmx.master.resizing import warn_of_left
from preforkmx.workers.worker import ABORT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from preforkmx.master.holdings import Holdings
    from preforkmx.master.pool import Pool

HELPER_SECONDS = 5.0
"""What the store process gets to write its last changes, and the admin process its answers."""
GIVE_UP_SECONDS = 5.0
"""From SIGKILL to going without those that the kernel cannot end."""

_logger = logging.getLogger("preforkmx.master")


class Drain:
    """The final drain. It begins when this is made.

    :param lame_duck_seconds: how long clients are served, and health checks refused, before it
        begins in earnest; 0: it does at once.
    """

    def __init__(
        self,
        pool: Pool,
        holdings: Holdings,
        clock: Callable[[], float],
        *,
        lame_duck_seconds: float = 0.0,
    ) -> None:
        self._pool = pool
        self._holdings = holdings
        self._clock = clock
        self._lame_until = clock() + lame_duck_seconds
        # At once: before the first step the pool is reconciled, and a worker of a reload that is
        # broken off would take over.
        pool.leaving = True

    def cut_short(self) -> None:
        """End the lame duck now, if it is not over: nobody waits for a load balancer."""
        self._lame_until = min(self._lame_until, self._clock())

    def steps(self) -> Steps:
        """Go through it."""
        pool, holdings, clock = self._pool, self._holdings, self._clock
        yield from self._lame_duck()
        seconds = pool.plan.drain_seconds
        _logger.info("draining: no new connections, %g s for the open ones", seconds)
        holdings.listeners.shut()
        pool.hurry()
        left = yield from emptied(self._waiting, clock)
        if left:
            warn_of_left(left)
        pool.refills = False
        # Here first, in the workers after it: the last of them accepts what came in between.
        holdings.listeners.close()
        limit = seconds + ABORT_SECONDS + KILL_SECONDS
        for child in pool.workers():
            child.drain(seconds)
            child.kill_by(clock() + limit)
        yield Wait(pool.idle, seconds=limit + GIVE_UP_SECONDS)
        yield from _stop_helpers(pool, clock, HELPER_SECONDS)

    def _lame_duck(self) -> Steps:
        left = self._lame_until - self._clock()
        if left <= 0:
            return
        _logger.info("lame duck: health checks are refused, clients are served for %g s", left)
        self._pool.become_lame_duck()
        yield Wait(lambda: self._clock() >= self._lame_until, seconds=left)

    def _waiting(self) -> int:
        listeners = self._holdings.listeners
        return listeners.waiting(listeners.ports, ())


def fast_stop(pool: Pool, holdings: Holdings, clock: Callable[[], float]) -> Steps:
    """End all processes as quickly as they can be."""
    _logger.info("stopping: sessions are aborted")
    pool.refills = False
    holdings.listeners.close()
    for child in pool.workers():
        child.stop()
        child.kill_by(clock() + KILL_SECONDS)
    yield Wait(pool.idle, seconds=KILL_SECONDS + GIVE_UP_SECONDS)
    yield from _stop_helpers(pool, clock, KILL_SECONDS)


def _stop_helpers(pool: Pool, clock: Callable[[], float], seconds: float) -> Steps:
    """Stop the processes that serve no mail, the store after the workers that used it."""
    places = pool.helpers()
    for child in (child for place in places for child in place):
        child.stop()
        child.kill_by(clock() + seconds)
    # A place loses its process when that is reaped: what is left is there still.
    yield Wait(lambda: not any(map(len, places)), seconds=seconds + GIVE_UP_SECONDS)
