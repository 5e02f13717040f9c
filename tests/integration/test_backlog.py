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


def test_what_a_full_queue_drops_is_counted_and_stays_so_when_its_socket_is_closed(tmp_path):
    toml = '[[listener]]\naddress = "127.0.0.1:0"\nbacklog = 2\n'
    with serving(tmp_path, toml) as mx, ExitStack() as stack:

        def dropped() -> int:
            return mx.status()["listeners"][0]["dropped"]

        [listener] = mx.status()["listeners"]
        assert (listener["queued"], listener["dropped"]) == (0, 0)
        clients = []
        pids = mx.pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            # Each slot keeps three, and drops so many that none could be taken for the other's.
            for _ in range(60):
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                with suppress(BlockingIOError):
                    client.connect(("127.0.0.1", mx.ports[0]))
                clients.append(client)
            until(lambda: mx.status()["listeners"][0]["queued"] == 6, mx)
            until(lambda: dropped() >= 54, mx)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        for client in clients:
            client.close()
        before = dropped()
        mx.process.send_signal(signal.SIGTTOU)
        until(lambda: "there are 1 workers" in mx.log, mx)
        assert dropped() >= before
        # A session inside a transaction holds up the drain when every listener is closed.
        sender = stack.enter_context(socket.create_connection(("127.0.0.1", mx.ports[0]), PATIENCE))
        for command in (b"EHLO x\r\n", b"MAIL FROM:<a@example.org>\r\n", b""):
            assert sender.recv(1000).startswith(b"2")
            sender.sendall(command)
        mx.process.send_signal(signal.SIGTERM)
        until(lambda: backlogs(mx.ports[0]) == [], mx)
        assert mx.status()["state"] == "draining"
        assert dropped() >= before
