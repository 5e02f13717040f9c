"""A worker that hangs when its master is gone. Each test forks in a process of its own."""

from __future__ import annotations

import subprocess
import sys

OPENING = """
import os, signal, sys, time
from preforkmx.workers import last_watch
from preforkmx.workers.channel import Channel
from preforkmx.workers.heartbeat import HeartbeatMemory, Vitals
from preforkmx.workers.last_watch import LastWatch
from preforkmx.workers.process import fork, settle

last_watch.LOOK_SECONDS = 0.05
ours, theirs = Channel.pair()
memory = HeartbeatMemory(1)
(cell,) = memory.cells

def child(live):
    def run():
        ours.close()
        settle("worker", log_format="logfmt", log_level="info", log_name="worker")
        watch = LastWatch(theirs, cell, 0.3)
        cell.write(Vitals(), 0)
        watch.start()
        live(watch)
        return 7
    pid = fork(run)
    theirs.close()
    return pid

def beat(watch):
    for _ in range(100):
        time.sleep(0.02)
        cell.write(Vitals(), 0)

def hang(watch):
    time.sleep(20)

def end(watch):
    watch.stop()
    time.sleep(1)

def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def run(script: str) -> str:
    """Run a script that forks, and return what it and its children printed."""
    done = subprocess.run(
        [sys.executable, "-c", OPENING + script],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_loop_that_hangs_when_the_master_is_gone_is_dumped_and_ends() -> None:
    output = run("""
pid = child(hang)
ours.close()
began = time.monotonic()
assert wait(pid) == -signal.SIGABRT
assert 0.25 < time.monotonic() - began < 10
""")
    assert "in hang" in output, "the stack of the thread that hangs"


def test_while_the_master_lives_it_is_the_masters_to_judge() -> None:
    run("""
pid = child(hang)
time.sleep(1.5)
assert os.waitpid(pid, os.WNOHANG) == (0, 0)
os.kill(pid, signal.SIGKILL)
wait(pid)
""")


def test_a_loop_that_turns_is_left_to_drain() -> None:
    run("""
pid = child(beat)
ours.close()
assert wait(pid) == 7
""")


def test_the_end_of_the_loop_is_no_hang() -> None:
    run("""
pid = child(end)
ours.close()
assert wait(pid) == 7
""")


def test_a_process_that_was_frozen_has_its_chance_when_it_comes_back() -> None:
    run("""
pid = child(beat)
ours.close()
time.sleep(0.5)
os.kill(pid, signal.SIGSTOP)
time.sleep(1)
os.kill(pid, signal.SIGCONT)
assert wait(pid) == 7
""")
