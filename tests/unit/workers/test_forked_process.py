"""What a forked process does first. Each test forks in a process of its own: pytest's has
threads, and its signal handlers are not ours."""

from __future__ import annotations

import subprocess
import sys

import pytest

from preforkmx.errors import BootError, ConfigError
from preforkmx.workers.process import describe

OPENING = """
import os, signal, sys, time
from preforkmx.workers.process import fork

def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def run(script: str) -> str:
    """Run a script that forks, and return what it and its children printed."""
    done = subprocess.run(
        [sys.executable, "-c", OPENING + script],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_child_exits_with_what_its_function_returns() -> None:
    run("assert wait(fork(lambda: 42)) == 42")


def test_an_exception_in_the_child_is_printed_and_is_a_crash() -> None:
    output = run("""
def fail():
    raise ValueError("no such slot")
assert wait(fork(fail)) == 1
""")
    assert "ValueError: no such slot" in output


def test_sys_exit_in_the_child_is_its_exit_status() -> None:
    run("assert wait(fork(lambda: sys.exit(5))) == 5")
    run("assert wait(fork(lambda: sys.exit('text'))) == 1")


def test_the_child_runs_none_of_the_parents_finally_or_atexit() -> None:
    output = run("""
import atexit
atexit.register(lambda: print("atexit", flush=True))
pid = 0
try:
    pid = fork(lambda: 0)
finally:
    print("finally", flush=True)
assert wait(pid) == 0
""")
    assert output.split() == ["finally", "atexit"]


def test_what_the_parent_has_buffered_is_written_once() -> None:
    output = run("""
print("a line", end="")
assert wait(fork(lambda: 0)) == 0
""")
    assert output == "a line"


def test_the_parents_handlers_and_wake_up_descriptor_are_not_the_childs() -> None:
    run("""
reader, writer = os.pipe()
os.set_blocking(writer, False)
os.set_blocking(reader, False)
signal.set_wakeup_fd(writer)
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.signal(signal.SIGTERM, lambda *_: None)

def child():
    assert signal.set_wakeup_fd(-1) == -1
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
    return 0

assert wait(fork(child)) == -signal.SIGTERM
try:
    os.read(reader, 1)
except BlockingIOError:
    pass
else:
    raise AssertionError("the child's signal reached the parent")
""")


@pytest.mark.parametrize("name", ["SIGINT", "SIGQUIT", "SIGHUP"])
def test_what_a_terminal_sends_to_the_whole_group_does_not_end_a_child(name: str) -> None:
    run(f"""
def child():
    os.kill(os.getpid(), signal.{name})
    time.sleep(0.05)
    return 9
assert wait(fork(child)) == 9
""")


def test_programs_that_a_child_starts_do_not_inherit_ignored_signals() -> None:
    run("""
import subprocess
def child():
    ignored = subprocess.run(["grep", "SigIgn", "/proc/self/status"], capture_output=True)
    mask = int(ignored.stdout.split()[1], 16)
    return 1 if mask & (1 << (signal.SIGINT - 1)) else 0
assert wait(fork(child)) == 0
""")


def test_a_signal_that_comes_during_the_fork_is_not_lost_on_the_parent() -> None:
    run("""
seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
pid = fork(lambda: 0)
os.kill(os.getpid(), signal.SIGUSR1)
assert seen == [1]
assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
assert wait(pid) == 0
""")


def test_sigabrt_prints_the_stack_of_a_settled_process() -> None:
    output = run("""
from preforkmx.workers.process import settle
def hang_here():
    os.kill(os.getpid(), signal.SIGABRT)
def child():
    settle("test", log_format="logfmt", log_level="info", log_name="test")
    hang_here()
    return 0
assert wait(fork(child)) == -signal.SIGABRT
""")
    assert "hang_here" in output


def test_a_settled_process_has_its_title_and_its_log() -> None:
    output = run("""
import logging
from pathlib import Path
from preforkmx.workers.process import settle
def child():
    log = settle("worker 7 booting", log_format="logfmt", log_level="info", log_name="worker 7")
    title = Path("/proc/self/cmdline").read_bytes().rstrip(bytes(1))
    assert title == b"preforkmx: worker 7 booting", title
    logging.getLogger("site").warning("a word")
    log.close()
    return 0
assert wait(fork(child)) == 0
""")
    assert 'message="a word"' in output
    assert "7" in output


def test_a_child_learns_that_its_parent_has_died() -> None:
    output = run("""
from preforkmx.workers.process import die_with_parent
reader, writer = os.pipe()
def parent():
    def child():
        die_with_parent(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda *_: os.write(writer, b"told"))
        os.write(writer, b"here")
        time.sleep(10)
        return 0
    fork(child)
    assert os.read(reader, 4) == b"here"
    return 0
assert wait(fork(parent)) == 0
assert os.read(reader, 4) == b"told"
""")
    assert output == ""


def test_reasons_are_told_as_they_were_meant() -> None:
    assert describe(ConfigError(["a", "b"])) == ["a", "b"]
    assert describe(BootError("no such database")) == ["no such database"]


def test_what_is_no_message_of_ours_is_told_with_its_place() -> None:
    try:
        raise KeyError("spam")
    except KeyError as error:
        (text,) = describe(error)
    assert text.startswith("KeyError: 'spam' (")
    assert "test_forked_process.py:" in text
    assert describe(KeyboardInterrupt()) == ["KeyboardInterrupt"]
