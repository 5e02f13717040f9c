"""What surrounds an execution: signals, descriptors, the environment, and what a try writes."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from preforkmx.master.document import render
from preforkmx.master.errors import StartRefused
from preforkmx.master.handover import (
    FORMAT,
    ControlState,
    Handover,
    HoldingsState,
    PoolState,
    SlotState,
)
from preforkmx.master.reexec import (
    OUTPUT_LINES,
    OUTPUT_OCTETS,
    VARIABLE,
    Output,
    Program,
    Trial,
    all_signals_blocked,
    execute,
    take_handover,
)

PLACE = SlotState(
    index=None,
    holder=None,
    successor=None,
    stand_in=None,
    retired=(),
    crashes=0,
    refill_at=None,
    leaving=False,
)


def handover(descriptor: int, pid: int | None = None) -> Handover:
    """Return a state in which everything is the same descriptor."""
    return Handover(
        format=FORMAT,
        version="1",
        pid=os.getpid() if pid is None else pid,
        started="2024-05-01T12:00:00+00:00",
        reloads=1,
        identity=None,
        holdings=HoldingsState(
            lock=descriptor,
            control=ControlState(path="/control.sock", socket=descriptor, connections=()),
            listeners=(),
            slots=0,
            ports=(),
            admin=None,
            store=None,
            lifeline=(descriptor, descriptor),
            memory=descriptor,
            children=(),
            totals=(),
        ),
        pool=PoolState(generation=1, crashes=0, slots=(), former=(), store=None, admin=PLACE),
        signals=(),
        mask=(),
    )


def open_descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_an_execution_that_fails_leaves_everything_as_it_was() -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with socket.socket() as sock:
        before = open_descriptors()
        with (
            pytest.raises(OSError, match="/nowhere/python cannot be run: No such file"),
            all_signals_blocked(),
        ):
            execute(Program("/nowhere/python", ("python",)), handover(sock.fileno()), {})
        assert not sock.get_inheritable()
        assert open_descriptors() == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    assert signal.alarm(0) == 0


def test_what_comes_while_signals_are_blocked_is_not_lost() -> None:
    came = []
    earlier = signal.signal(signal.SIGUSR2, lambda number, _frame: came.append(number))
    try:
        with all_signals_blocked() as mask:
            # To this thread: the master has one, the tests' process has others that take signals.
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
            assert signal.SIGUSR2 in signal.sigpending()
            assert came == []
            assert signal.SIGUSR2 not in mask
        assert came == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, earlier)


def memory(octets: bytes) -> int:
    descriptor = os.memfd_create("test", 0)
    os.write(descriptor, octets)
    os.set_inheritable(descriptor, True)
    return descriptor


def test_the_handover_is_taken_out_of_the_environment_and_nothing_stays_inheritable() -> None:
    with socket.socket() as sock:
        sock.set_inheritable(True)
        state = handover(sock.fileno())
        before = open_descriptors()
        environ = {VARIABLE: f"serve {memory(render(state))}", "OTHER": "1"}
        assert take_handover(environ) == state
        assert environ == {"OTHER": "1"}
        assert not sock.get_inheritable()
        assert open_descriptors() == before


def test_a_try_gets_its_channel() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        channel = theirs.detach()
        environ = {VARIABLE: f"check {channel} {memory(b'{}')}"}
        trial = take_handover(environ)
        assert isinstance(trial, Trial)
        assert not os.get_inheritable(channel)
        # A state that cannot be read is told over the channel.
        assert trial.run(lambda: pytest.fail("the configuration is not read")) == 3
        assert b"this program reads" in ours.recv(4096)


def test_an_ordinary_start_takes_nothing() -> None:
    assert take_handover({}) is None


@pytest.mark.parametrize("value", ["serve", "serve x", "check 3", "1", "serve -1", "serve 99999"])
def test_a_variable_that_somebody_else_set_is_refused(value: str) -> None:
    with pytest.raises(StartRefused):
        take_handover({VARIABLE: value})


def test_the_state_of_another_process_is_refused() -> None:
    with socket.socket() as sock, pytest.raises(StartRefused, match="another process"):
        take_handover({VARIABLE: f"serve {memory(render(handover(sock.fileno(), pid=1)))}"})


def test_the_last_lines_of_a_try_are_its_reason_and_its_output_is_bounded() -> None:
    output = Output()
    try:
        pid = os.fork()
        if pid == 0:
            output.connect()
            os.write(1, b"\n".join(b"line %d" % number for number in range(100)) + b"\n\n")
            os.write(2, b"the reason\n")
            os._exit(0)
        os.waitpid(pid, 0)
        lines = output.lines()
        assert len(lines) == OUTPUT_LINES
        assert lines[-2:] == ["line 99", "the reason"]
        pid = os.fork()
        if pid == 0:
            output.connect()
            try:
                while True:
                    os.write(1, b"x" * 65536)
            except OSError:
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert sum(map(len, output.lines())) <= OUTPUT_OCTETS
    finally:
        output.close()


def test_the_program_is_executed_by_its_path_with_the_options_of_its_interpreter() -> None:
    program = Program.running()
    assert program.arguments[0] == program.path
    assert Path(program.path).is_absolute()
