"""Workers whose master was killed while they hang: the port must not stay a black hole."""

from __future__ import annotations

import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.integration.processes import dead
from tests.integration.sites import Client, Site, start
from tests.integration.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.integration

__all__ = ["start"]

HANG_SECONDS = 5.0
MARGIN = 10.0


def refused(port: int) -> bool:
    """Whether the port refuses; one that nobody serves takes the connection."""
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        # The worker's end resets whom it had queued.
        pass
    return False


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_worker_that_hangs_when_its_master_is_killed_ends_and_a_restart_serves(
    start: Callable[..., Site],
    loop: str,
) -> None:
    site = start(count=1, loop=loop, hang_seconds=HANG_SECONDS).wait_ready()
    [worker] = site.workers().values()
    with Client(site.port) as client:
        assert client.reply().startswith("220 ")
        assert client.say("HELO client.example.net").startswith("250 ")
        client.socket.sendall(b"MAIL FROM:<hang@example.net>\r\n")
        until(lambda: site.status()["workers"][0]["loop_lag_ms"] > 500, "the hang")
        site.signal(signal.SIGKILL)
        assert site.wait() == -signal.SIGKILL
        killed = time.monotonic()
        assert not refused(site.port), "the worker has closed its socket before"
        until(lambda: refused(site.port), "the end of the worker", seconds=HANG_SECONDS + MARGIN)
        assert time.monotonic() - killed < HANG_SECONDS + MARGIN
        until(lambda: dead(worker))
        assert client.reply() == ""
    assert "in misbehave" in site.log(), "the stack"
    again = start(count=1, loop=loop, listeners=[f"127.0.0.1:{site.port}"]).wait_ready()
    with Client(again.port) as client:
        assert client.deliver().startswith("250 ")
