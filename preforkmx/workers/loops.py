"""The event loop of a process: which one, and how it ends in bounded time."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Literal

from preforkmx.errors import BootError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

LoopName = Literal["auto", "uvloop", "asyncio"]

_CLEANUP_SECONDS = 1.0

_logger = logging.getLogger("preforkmx.workers")


def loop_factory(name: LoopName) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the loop; call that after the fork.

    The master calls this before it forks, so that the workers share the module's memory.

    :param name: ``"auto"`` is uvloop where it is installed, else asyncio.
    :raises BootError: uvloop was asked for and is not installed.
    """
    if name == "asyncio":
        return asyncio.new_event_loop
    try:
        import uvloop  # noqa: PLC0415 - optional: it is not there for every platform
    except ImportError as error:
        if name == "auto":
            return asyncio.new_event_loop
        raise BootError("workers.loop is uvloop, and uvloop is not installed") from error
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def run(
    factory: Callable[[], asyncio.AbstractEventLoop], main: Callable[[], Coroutine[None, None, int]]
) -> int:
    """Run `main` in a new loop and return what it returns.

    Tasks that are left are cancelled and get a second to end. Threads of the default executor
    are not waited for: the process exits, and nothing that they do has been acknowledged.
    """
    loop = factory()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main())
    finally:
        loop.run_until_complete(_clean_up())
        loop.close()


async def _clean_up() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    if tasks:
        _, pending = await asyncio.wait(tasks, timeout=_CLEANUP_SECONDS)
        if pending:
            _logger.warning("%d tasks did not end when they were cancelled", len(pending))
    try:
        async with asyncio.timeout(_CLEANUP_SECONDS):
            await asyncio.get_running_loop().shutdown_asyncgens()
    except TimeoutError:
        _logger.warning("an asynchronous generator did not end")
