"""How a worker's process ends by what nobody expected. It is forked by a process of its own."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os
from preforkmx.server import Server
from preforkmx.workers.channel import Channel
from preforkmx.workers.heartbeat import HeartbeatMemory
from preforkmx.workers.process import EXIT_CRASHED, fork
from preforkmx.workers.worker import WorkerSetup, run_worker

def no_loop():
    raise RuntimeError("no loop to be had")

ours, theirs = Channel.pair()
setup = WorkerSetup(
    slot=0,
    count=1,
    generation=1,
    sockets=[],
    channel=theirs,
    cell=HeartbeatMemory(1).cells[0],
    loop_factory=no_loop,
    build_server=lambda seat: Server(hostname="mx.example.com"),
    drain_seconds=60.0,
    log_format="logfmt",
    log_level="info",
    master_pid=os.getpid(),
)
pid = fork(lambda: run_worker(setup))
theirs.close()
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == EXIT_CRASHED
(message,) = ours.receive()
assert message["type"] == "failed", message
(problem,) = message["problems"]
assert problem.startswith("RuntimeError: no loop to be had ("), problem
"""


def test_the_master_is_told_what_nobody_expected() -> None:
    """A reload that fails by it says so, and not only "exit status 1"."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "an exception that nobody expected" in done.stderr
