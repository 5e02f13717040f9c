"""Heartbeats in shared memory."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

from preforkmx.workers.heartbeat import BEAT_SECONDS, Heart, HeartbeatMemory, Vitals

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


def test_a_cell_begins_empty_and_holds_what_was_written() -> None:
    with closing(HeartbeatMemory(3)) as memory:
        cell = memory.cells[1]
        assert cell.read() == (0, 0, 0, 0, 0, 0)
        cell.write(Vitals(sessions=5, in_data=2, messages=70), 12)
        cell.write(Vitals(sessions=6, in_data=1, messages=71), 3)
        reading = cell.read()
        assert reading.beat == 2
        assert (reading.sessions, reading.in_data, reading.messages) == (6, 1, 71)
        assert reading.loop_lag_ms == 3


def test_cells_do_not_touch_each_other() -> None:
    with closing(HeartbeatMemory(3)) as memory:
        memory.cells[1].write(Vitals(2**63, 2**63, 2**63), 2**63)
        assert memory.cells[0].read() == (0, 0, 0, 0, 0, 0)
        assert memory.cells[2].read() == (0, 0, 0, 0, 0, 0)
        memory.cells[1].reset()
        assert memory.cells[1].read() == (0, 0, 0, 0, 0, 0)


def test_another_process_sees_what_a_forked_one_writes() -> None:
    script = """
import os
from preforkmx.workers.heartbeat import HeartbeatMemory, Vitals
memory = HeartbeatMemory(2)
pid = os.fork()
if pid == 0:
    memory.leave()
    memory.cells[1].write(Vitals(1, 2, 3), 4)
    os._exit(0)
os.waitpid(pid, 0)
assert memory.cells[1].read() == (1, 1, 2, 4, 3, 0), memory.cells[1].read()
memory.close()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=20)


def test_it_is_the_loop_that_beats_and_its_lag_that_is_measured(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    with closing(HeartbeatMemory(1)) as memory:
        (cell,) = memory.cells

        async def scenario() -> None:
            Heart(asyncio.get_running_loop(), cell, lambda: Vitals(sessions=9)).start()
            assert cell.read().beat == 1
            assert cell.read().sessions == 9
            await asyncio.sleep(BEAT_SECONDS * 1.5)
            assert cell.read().beat == 2
            # A loop that is blocked does not beat, and tells afterwards how late it was.
            time.sleep(BEAT_SECONDS * 2)  # noqa: ASYNC251
            assert cell.read().beat == 2
            await asyncio.sleep(0.01)
            assert cell.read().beat == 3
            assert cell.read().loop_lag_ms >= BEAT_SECONDS * 1000

        run(scenario())
