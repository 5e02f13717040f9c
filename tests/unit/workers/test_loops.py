"""Which loop a process runs, and how it ends."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest
import uvloop

from preforkmx.errors import BootError
from preforkmx.workers import loops
from preforkmx.workers.loops import LoopName, loop_factory


def kind(name: LoopName) -> type:
    loop = loop_factory(name)()
    loop.close()
    return type(loop)


def test_auto_is_uvloop_where_it_is_installed() -> None:
    assert kind("auto") is uvloop.Loop
    assert kind("uvloop") is uvloop.Loop
    assert issubclass(kind("asyncio"), asyncio.BaseEventLoop)


def test_without_uvloop_auto_is_asyncio_and_uvloop_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert issubclass(kind("auto"), asyncio.BaseEventLoop)
    with pytest.raises(BootError, match="not installed"):
        loop_factory("uvloop")


@pytest.mark.parametrize("name", ["asyncio", "uvloop"])
def test_tasks_that_are_left_are_cancelled(name: LoopName) -> None:
    seen = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("cancelled")

    async def main() -> int:
        task = asyncio.ensure_future(forever())
        await asyncio.sleep(0)
        assert not task.done()
        return 7

    assert loops.run(loop_factory(name), main) == 7
    assert seen == ["cancelled"]


def test_a_task_that_does_not_end_holds_nobody_up_for_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loops, "_CLEANUP_SECONDS", 0.05)
    release: list[bool] = []

    async def stubborn() -> None:
        while not release:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue

    async def main() -> int:
        release_later = asyncio.ensure_future(stubborn())
        await asyncio.sleep(0)
        assert not release_later.done()
        return 0

    factory_loop = asyncio.new_event_loop()
    before = time.monotonic()
    assert loops.run(lambda: factory_loop, main) == 0
    assert time.monotonic() - before < 10
    assert "1 tasks did not end" in caplog.text
