"""The backlog that is configured is the one that the kernel has, whatever happens (``ss``)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, suppress

import pytest

from tests.integration.mx import MX, program, serving

pytestmark = pytest.mark.integration

PATIENCE = 20.0


def until(condition, mx: MX):
    """Wait for what nothing tells of."""
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < deadline, mx.log
        time.sleep(0.02)
    return result


def backlogs(port: int) -> list[int]:
    """Return the backlog of every socket that listens on a port, as ss shows it."""
    shown = subprocess.run(
        [program("ss"), "-H", "-l", "-t", "-n", f"sport = :{port}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [int(line.split()[2]) for line in shown.splitlines()]


def test_every_slot_has_the_configured_backlog_in_every_state(tmp_path):
    with serving(tmp_path, '[[listener]]\naddress = "127.0.0.1:0"\nbacklog = 77\n') as mx:
        [port] = mx.ports
        assert backlogs(port) == [77, 77]
        # Not asyncio's 100, and not what a worker that was killed leaves behind.
        pid = mx.pids()[0]
        os.kill(pid, signal.SIGKILL)
        until(lambda: pid not in mx.pids() and None not in mx.pids(), mx)
        assert backlogs(port) == [77, 77]
        assert mx.command("reload")["ok"]
        assert backlogs(port) == [77, 77]
        mx.process.send_signal(signal.SIGTTIN)
        until(lambda: "there are 3 workers" in mx.log, mx)
        assert backlogs(port) == [77, 77, 77]
        mx.process.send_signal(signal.SIGTTOU)
        until(lambda: "there are 2 workers" in mx.log, mx)
        assert backlogs(port) == [77, 77]
        first = mx.config.read_text()
        mx.config.write_text(first.replace("backlog = 77", "backlog = 55"))
        assert mx.command("reload")["ok"]
        assert backlogs(port) == [55, 55]
        mx.config.write_text(first.replace("count = 2", "count = 0"))
        assert not mx.command("reload")["ok"]
        assert backlogs(port) == [55, 55]


def test_what_a_full_queue_drops_is_counted_in_the_status(tmp_path):
    toml = '[[listener]]\naddress = "127.0.0.1:0"\nbacklog = 2\n'
    with serving(tmp_path, toml, workers=1) as mx, ExitStack() as stack:
        [listener] = mx.status()["listeners"]
        assert (listener["queued"], listener["dropped"]) == (0, 0)
        [pid] = mx.pids()
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(8):
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                with suppress(BlockingIOError):
                    client.connect(("127.0.0.1", mx.ports[0]))
            until(lambda: mx.status()["listeners"][0]["dropped"] >= 5, mx)
            assert mx.status()["listeners"][0]["queued"] == 3
        finally:
            os.kill(pid, signal.SIGCONT)
        dropped = mx.status()["listeners"][0]["dropped"]
        # What was counted stays counted when the socket that counted it is closed.
        mx.process.send_signal(signal.SIGTTIN)
        until(lambda: "there are 2 workers" in mx.log, mx)
        mx.process.send_signal(signal.SIGTTOU)
        until(lambda: "there are 1 workers" in mx.log, mx)
        assert mx.status()["listeners"][0]["dropped"] >= dropped
