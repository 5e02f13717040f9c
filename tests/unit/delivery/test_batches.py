from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from preforkmx.delivery.batches import Batches


class Work:
    """Records its batches; holds each until it is let go."""

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[list[object]] = []
        self.gate = threading.Semaphore(0 if held else 1_000_000)
        self.began = threading.Semaphore(0)
        self.fail = False

    def __call__(self, items):
        self.batches.append(list(items))
        self.began.release()
        assert self.gate.acquire(timeout=20)
        if self.fail:
            raise ZeroDivisionError
        return [item if isinstance(item, Exception) else None for item in items]

    def let_go(self, count: int = 1) -> None:
        self.gate.release(count)


def with_batches(test, work, **options):
    options = {"size": 3, "limit": 2, "clock": lambda: 0.0, **options}

    async def run():
        with ThreadPoolExecutor(4) as executor:
            return await test(Batches(executor, work, **options))

    return asyncio.run(run())


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def begun(work: Work, count: int) -> None:
    """Wait until the threads have begun `count` batches."""
    while len(work.batches) < count:
        assert await asyncio.to_thread(work.began.acquire, timeout=20)


def test_a_single_item_leaves_at_once():
    work = Work()

    async def test(batches):
        await batches.run("a")
        await batches.run("b")

    with_batches(test, work)
    assert work.batches == [["a"], ["b"]]


def test_items_of_one_turn_of_the_loop_leave_together():
    work = Work()

    async def test(batches):
        await asyncio.gather(*map(batches.run, "abc"))

    with_batches(test, work)
    assert work.batches == [["a", "b", "c"]]


def test_while_batches_run_items_wait_for_a_full_one_or_a_free_thread():
    work = Work(held=True)

    async def test(batches):
        tasks = [asyncio.create_task(batches.run("a"))]
        await turns()
        for item in "bcdefg":
            tasks.append(asyncio.create_task(batches.run(item)))
            await turns()
        await begun(work, 2)
        # a runs; b, c and d were a full batch; e, f and g are, but two run already.
        assert work.batches == [["a"], ["b", "c", "d"]]
        work.let_go(10)
        await asyncio.gather(*tasks)

    with_batches(test, work)
    assert work.batches == [["a"], ["b", "c", "d"], ["e", "f", "g"]]


def test_an_items_failure_is_its_own():
    async def test(batches):
        return await asyncio.gather(
            batches.run("a"),
            batches.run(OSError("full")),
            batches.run("b"),
            return_exceptions=True,
        )

    first, second, third = with_batches(test, Work())
    assert first is None
    assert isinstance(second, OSError)
    assert third is None


def test_a_failure_of_the_work_itself_is_everybodys_and_the_next_batch_runs():
    work = Work()

    async def test(batches):
        work.fail = True
        outcomes = await asyncio.gather(*map(batches.run, "ab"), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ZeroDivisionError] * 2
        work.fail = False
        await batches.run("c")

    with_batches(test, work)


def test_a_cancelled_item_that_waits_is_never_begun():
    work = Work(held=True)

    async def test(batches):
        first = asyncio.create_task(batches.run("a"))
        await turns()
        second = asyncio.create_task(batches.run("b"))
        third = asyncio.create_task(batches.run("c"))
        await turns()
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        work.let_go(10)
        await asyncio.gather(first, third)

    with_batches(test, work)
    assert work.batches == [["a"], ["c"]]


def test_a_cancelled_item_that_has_begun_disturbs_nobody():
    work = Work(held=True)

    async def test(batches):
        tasks = [asyncio.create_task(batches.run(item)) for item in "ab"]
        await turns()
        tasks[0].cancel()
        work.let_go(10)
        await tasks[1]
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        await batches.run("c")

    with_batches(test, work)
    assert work.batches == [["a", "b"], ["c"]]


class Paced(Work):
    """Work whose items take `pace` seconds each, on a clock of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.pace = 0.0

    def __call__(self, items):
        self.now += self.pace * (len(items) + 1)
        return super().__call__(items)

    async def settle(self, batches, pace: float) -> int:
        self.pace = pace
        for _ in range(100):
            await batches.run("a")
        return batches.eager


def test_the_longer_an_item_takes_the_more_batches_run_beside_each_other():
    work = Paced()

    async def test(batches):
        assert batches.eager == 1
        assert await work.settle(batches, 0.0081) == 11
        assert await work.settle(batches, 0.0006) == 1
        assert await work.settle(batches, 1.0) == 16
        assert await work.settle(batches, 0.0) == 1

    with_batches(test, work, limit=16, clock=lambda: work.now)


def test_an_item_that_comes_while_slow_batches_run_leaves_at_once():
    work = Paced()

    async def test(batches):
        await work.settle(batches, 0.01)
        work.batches.clear()
        work.gate = threading.Semaphore(0)
        tasks = []
        for item in "bcd":
            tasks.append(asyncio.create_task(batches.run(item)))
            await turns()
        await begun(work, 3)
        work.let_go(3)
        await asyncio.gather(*tasks)

    with_batches(test, work, limit=4, clock=lambda: work.now)
    assert sorted(work.batches) == [["b"], ["c"], ["d"]]
