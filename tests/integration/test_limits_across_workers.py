"""Limits and greylisting hold over all workers, and through the store process's own crash."""

from __future__ import annotations

import os
import re
import signal
import smtplib
import socket
import subprocess
import time

import pytest

from tests.integration.mx import serving

pytestmark = pytest.mark.integration


def greeting(port):
    """Connect, read the first reply, and leave."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        reply = client.recv(512)
        return int(reply[:3])


def store_pid(mx):
    """Return the process id of the store process, from the process list."""
    children = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(mx.process.pid)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (line,) = [line for line in children.splitlines() if "preforkmx: store" in line]
    return int(line.split()[0])


def workers_that_refused(mx):
    """Return which workers refused somebody: each names itself in its log lines."""
    lines = [line for line in mx.log.splitlines() if "event=refused" in line]
    return {match for line in lines for match in re.findall(r' worker="?([^" ]+)', line)}


RATE = """
[[middleware]]
use = "rate_limit"
connections = "60/min"
burst = 10
"""


def test_a_rate_limit_holds_exactly_over_four_workers(tmp_path):
    """200 quick connections, burst 10, 60/min: 10 are admitted, and what refilled meanwhile."""
    with serving(tmp_path, RATE, workers=4) as mx:
        began = time.monotonic()
        codes = [greeting(mx.ports[0]) for _ in range(200)]
        refilled = time.monotonic() - began
        admitted = codes.count(220)
        assert set(codes) == {220, 421}
        assert 10 <= admitted <= 10 + int(refilled) + 1
        # The kernel spread them, so it was no single worker's limit. The end writes the log out.
        assert mx.stop() == 0
        assert len(workers_that_refused(mx)) == 4


def test_limits_go_on_locally_while_the_store_is_away_and_come_back(tmp_path):
    """kill -9 of the store process: nobody waits, nobody gets a 5xx, and it is replaced."""
    with serving(tmp_path, RATE, workers=2) as mx:
        old = store_pid(mx)
        os.kill(old, signal.SIGKILL)
        codes = [greeting(mx.ports[0]) for _ in range(50)]
        assert set(codes) <= {220, 421}
        # Twice the burst at most: once from the store before, once as local shares.
        assert 1 <= codes.count(220) <= 20 + 2
        assert store_pid(mx) != old
        assert mx.stop() == 0


def test_greylisting_holds_over_all_workers_and_a_restart(tmp_path):
    """A triplet that one worker deferred is known to the others, and to the next start."""
    toml = """
    [[middleware]]
    use = "greylist"
    delay = "1s"
    exempt_private = false
    """

    def attempt(port):
        with smtplib.SMTP("127.0.0.1", port) as client:
            client.ehlo("client.example")
            client.mail("sender@example.org")
            code, text = client.rcpt("box@example.com")
            return code, text.decode()

    with serving(tmp_path, toml, workers=4) as mx:
        codes = [attempt(mx.ports[0]) for _ in range(8)]
        assert {code for code, _ in codes} == {451}
        assert "Greylisted" in codes[0][1]
        time.sleep(1.1)  # the delay itself, on the server's clock
        assert {attempt(mx.ports[0])[0] for _ in range(8)} == {250}
        assert mx.stop() == 0
    with serving(tmp_path, toml, workers=4) as mx:
        assert attempt(mx.ports[0])[0] == 250
