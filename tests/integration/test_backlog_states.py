"""What ``ss -ltn`` shows while workers hang, after an upgrade, and in a drain, the last one too."""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.integration.mx import serving
from tests.integration.processes import backlogs, children, title
from tests.integration.waiting import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

BACKLOG = 77
CONFIGURATION = f"""
[workers]
count = 2
lame_duck_seconds = 0.5
[[listener]]
address = "127.0.0.1:0"
backlog = {BACKLOG}
"""


@contextmanager
def watched(port: int) -> Iterator[set[tuple[int, ...]]]:
    """Look again and again, and return everything that was seen."""
    seen: set[tuple[int, ...]] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.05):
            seen.add(tuple(backlogs(port)))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def test_the_backlog_is_the_configured_one_with_a_stand_in_after_an_upgrade_and_in_a_drain(
    tmp_path,
):
    """Two sockets with it, at every look until the port closes, and then none."""
    with serving(tmp_path, CONFIGURATION) as mx:
        [port] = mx.ports
        with watched(port) as seen:
            hung = mx.pids()[0]
            os.kill(hung, signal.SIGSTOP)
            try:
                until(
                    lambda: any("stand-in ready" in title(pid) for pid in children(mx.process.pid)),
                    mx,
                )
                assert backlogs(port) == [BACKLOG, BACKLOG]
            finally:
                os.kill(hung, signal.SIGCONT)
            assert mx.command("upgrade")["ok"], mx.log
            assert backlogs(port) == [BACKLOG, BACKLOG]
            # It holds up the drain once every listener is closed.
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as sender:
                for command in (b"EHLO x\r\n", b"MAIL FROM:<a@example.org>\r\n", b""):
                    assert sender.recv(1000).startswith(b"2")
                    sender.sendall(command)
                mx.process.send_signal(signal.SIGTERM)
                until(lambda: mx.status()["state"] == "draining", mx)
                assert backlogs(port) == [BACKLOG, BACKLOG]
                until(lambda: backlogs(port) == [], mx)
                assert mx.status()["state"] == "draining"
                # Neither a worker nor the master opens it again.
                sender.sendall(b"QUIT\r\n")
                assert sender.recv(1000).startswith(b"221 ")
            assert mx.process.wait(PATIENCE) == 0
        # A look may come between the two closes.
        assert (BACKLOG, BACKLOG) in seen
        assert seen <= {(BACKLOG, BACKLOG), (BACKLOG,), ()}
