"""Work that is handed to threads in batches.

A hand-over to a thread and back costs about 60 µs of CPU, and threads that run at the same time
wait for each other at every step (there is one interpreter lock). So what comes while enough
threads are busy is handed over together; a single item leaves at once.

How many are enough depends on the disk. Where a sync takes 0.3 ms, one or two threads with full
batches do the most, at half the CPU; where it takes 4 ms it takes many, because each waits for
most of its time. So the time that an item takes is measured, and sets the number.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

Item = TypeVar("Item")

#: Seconds of an item's time for which one more batch runs: about what an item takes where the
#: interpreter, and not the disk, is what there is too little of.
_STEP = 0.0008
#: The weight of a batch in the average: what the last dozen took.
_WEIGHT = 0.125


class Batches(Generic[Item]):
    """Hands items to an executor, in batches when there are many.

    :param work: runs in a thread; returns one outcome for each item, None or what went wrong.
    :param size: the items of a batch at most.
    :param limit: batches that run at the same time at most. As long as fewer than
        :attr:`eager` run, one starts with what there is; beyond that only a full one does.
    :param clock: seconds.

    What waits is bounded by its callers: each waits for its own item.
    """

    def __init__(
        self,
        executor: Executor,
        work: Callable[[Sequence[Item]], Sequence[Exception | None]],
        *,
        size: int,
        limit: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._executor = executor
        self._work = work
        self._size = size
        self._limit = limit
        self._clock = clock
        self._pace = 0.0
        self._waiting: list[tuple[Item, asyncio.Future[None]]] = []
        self._running = 0
        self._called = False
        self._loop = asyncio.get_running_loop()

    @property
    def eager(self) -> int:
        """The batches that run before an item waits for a full one: 1 to the limit.

        An item that takes 0.8 ms, steps that are shared counted as one more item, leaves
        room for one batch beside the first; ten times that for ten.
        """
        return min(self._limit, 1 + int(self._pace / _STEP))

    async def run(self, item: Item) -> None:
        """Wait until the item's batch is done.

        :raises Exception: what went wrong with this item.

        Cancelling takes an item that still waits out of the queue; one whose batch has begun
        is worked on to its end.
        """
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((item, future))
        if not self._called:
            # Once an iteration of the loop: whoever comes in the same one comes along.
            self._called = True
            self._loop.call_soon(self._dispatch)
        await future

    def _dispatch(self) -> None:
        self._called = False
        self._waiting = [entry for entry in self._waiting if not entry[1].done()]
        while self._waiting and self._running < self._limit:
            if self._running >= self.eager and len(self._waiting) < self._size:
                return
            batch, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
            self._running += 1
            # Before the thread has it, and may be done.
            began = self._clock()
            job = self._loop.run_in_executor(
                self._executor, self._work, [item for item, _ in batch]
            )
            futures = [future for _, future in batch]
            job.add_done_callback(partial(self._done, futures, began))

    def _done(
        self,
        futures: list[asyncio.Future[None]],
        began: float,
        job: asyncio.Future[Sequence[Exception | None]],
    ) -> None:
        self._running -= 1
        pace = (self._clock() - began) / (len(futures) + 1)
        self._pace += (pace - self._pace) * _WEIGHT
        failure = job.exception()
        outcomes = [failure] * len(futures) if failure is not None else job.result()
        for future, outcome in zip(futures, outcomes, strict=True):
            if not future.done():
                if outcome is None:
                    future.set_result(None)
                else:
                    future.set_exception(outcome)
        self._dispatch()
