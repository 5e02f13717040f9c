"""Re-execution in place: another program becomes the master, in the same process.

``execve(2)`` keeps the process id, the children, and every descriptor without close-on-exec.
What the new program has to know of them is a document (:mod:`preforkmx.master.handover`) in a
memfd, whose number stands in the environment. A try comes first: the same command line as a
child, which is to read the document and the configuration, and to say that it could go on.

==================================  =====================================================
``PREFORKMX_TAKE_OVER``             the program is
==================================  =====================================================
``check CHANNEL MEMFD``             the try: :class:`Trial`
``serve MEMFD``                     the master from now on: :func:`take_handover`
==================================  =====================================================

A version that does not know the variable refuses it as a key that the configuration does not
have, so the try fails.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from preforkmx.master.admin_port import AdminPort, changes, refuse_own
from preforkmx.master.document import render
from preforkmx.master.errors import StartRefused
from preforkmx.master.handover import Handover, read_handover
from preforkmx.master.hiring import check_plan
from preforkmx.master.listeners import listener_problems
from preforkmx.master.open_files import raise_open_files
from preforkmx.master.plan import StorePlan, restart_problems
from preforkmx.workers.channel import Channel
from preforkmx.workers.loops import loop_factory
from preforkmx.workers.privileges import drop
from preforkmx.workers.process import EXIT_ASKED, EXIT_BOOT, describe, die_with_parent, set_title

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, MutableMapping

    from preforkmx.master.plan import Plan

VARIABLE = "PREFORKMX_TAKE_OVER"
ADOPTION_SECONDS = 60
"""From the execution to the new master's first turn. While it starts it takes no signal: one
that cannot start, against its try, is ended by SIGALRM, and its workers drain."""
OUTPUT_OCTETS = 256 * 1024
"""Of what a try writes to its standard output and error."""
OUTPUT_LINES = 20
"""The last ones of it are the reason, where it did not give one itself."""

_LARGEST_HANDOVER = 64 << 20


@dataclass(frozen=True, slots=True)
class Program:
    """What is executed."""

    path: str
    arguments: tuple[str, ...]

    @classmethod
    def running(cls) -> Program:
        """Return this program as it was started, with the interpreter's own options."""
        # By its path: the first argument may be a name that was looked for in PATH.
        return cls(sys.executable, (sys.executable, *sys.orig_argv[1:]))

    def execute(self, environ: Mapping[str, str]) -> NoReturn:
        """Become it.

        :raises OSError: it cannot be executed; the text has its path.
        """
        try:
            os.execve(self.path, self.arguments, environ)  # noqa: S606 - no shell is wanted
        except OSError as error:
            raise OSError(
                error.errno, f"{self.path or 'the interpreter'} cannot be run: {error.strerror}"
            ) from error


@contextmanager
def all_signals_blocked() -> Iterator[tuple[int, ...]]:
    """Block every signal but SIGALRM, and give which ones were blocked before.

    What comes meanwhile waits in the kernel, also over an execution.
    """
    blocked = signal.valid_signals() - {signal.SIGALRM}
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        yield tuple(sorted(int(number) for number in earlier))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def execute(program: Program, handover: Handover, environ: Mapping[str, str]) -> NoReturn:
    """Become a program that goes on as the master; signals are blocked.

    :param environ: of this process, with what it took from it at its start.
    :raises OSError: it cannot be executed; everything is as it was.
    """
    descriptors = list(handover.descriptors())
    memory = _in_memory(handover)
    try:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        os.set_inheritable(memory, True)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(ADOPTION_SECONDS)
        program.execute({**environ, VARIABLE: f"serve {memory}"})
    finally:
        signal.alarm(0)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        os.close(memory)


def _in_memory(handover: Handover) -> int:
    memory = os.memfd_create("preforkmx-handover", os.MFD_CLOEXEC)
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(render(handover))
    except BaseException:
        os.close(memory)
        raise
    return memory


def _from_memory(memory: int) -> bytes:
    octets = os.pread(memory, _LARGEST_HANDOVER, 0)
    while len(octets) < _LARGEST_HANDOVER and (
        more := os.pread(memory, _LARGEST_HANDOVER - len(octets), len(octets))
    ):
        octets += more
    os.close(memory)
    return octets


# The new program's side.


def take_handover(environ: MutableMapping[str, str]) -> Handover | Trial | None:
    """Return what an earlier program in this process left, or the try that this one is.

    Call this first: until then the descriptors would go to every program that is started.

    :param environ: the variable is removed from it.
    :return: None when this is an ordinary start.
    :raises StartRefused: it cannot be read.
    """
    word, *numbers = environ.pop(VARIABLE, "").split() or [""]
    if not word:
        return None
    if not all(number.isdecimal() for number in numbers) or (word, len(numbers)) not in (
        ("check", 2),
        ("serve", 1),
    ):
        raise StartRefused(f"{VARIABLE} is for preforkmx itself")
    descriptors = [int(number) for number in numbers]
    try:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        octets = _from_memory(descriptors[-1])
        if word == "check":
            return Trial(Channel(socket.socket(fileno=descriptors[0])), octets)
        handover = read_handover(octets)
        for descriptor in handover.descriptors():
            os.set_inheritable(descriptor, False)
    except OSError as error:
        raise StartRefused(f"the running master cannot be taken over from: {error}") from error
    if handover.pid != os.getpid():
        raise StartRefused("the state of another process is left in the environment")
    return handover


def adopted() -> None:
    """Note that the new master takes signals, and turns."""
    signal.alarm(0)


def unblock_signals(handover: Handover, taken: tuple[signal.Signals, ...]) -> None:
    """Restore the signal mask from before the execution, save for those that are taken."""
    earlier = set(handover.mask) - set(taken)
    signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def plan_of_workers(plan: Plan, handover: Handover) -> Plan:
    """Return `plan` for the slots and sockets that there are: a reload brings all of `plan`.

    With it a worker that crashes before that reload is replaced.
    """
    holdings, store = handover.holdings, handover.holdings.store
    return replace(
        plan,
        listeners=holdings.listeners,
        count=len(handover.pool.slots),
        store=None if store is None else StorePlan(Path(store.path), Path(store.database)),
        admin_address="" if holdings.admin is None else holdings.admin.wanted,
        identity=handover.identity,
    )


class Trial:
    """The try: this process is a child of the master, and does what the master is going to do.

    :param channel: to the master, which hears ``ready`` or ``failed``.
    :param octets: the handover.
    """

    def __init__(self, channel: Channel, octets: bytes) -> None:
        self._channel = channel
        self._octets = octets

    def run(self, read: Callable[[], tuple[Plan, Path]]) -> int:
        """Try, and return the exit status.

        :param read: reads the configuration: the plan, and the control socket's path.
        """
        set_title("upgrade check")
        try:
            handover = read_handover(self._octets)
            plan, control = read()
            problems = _problems(handover, plan, control)
            drop(plan.identity)
            die_with_parent(signal.SIGKILL)
            if not problems:
                check_plan(plan)
        except Exception as error:
            problems = [str(error)] if isinstance(error, StartRefused) else describe(error)
        if problems:
            self._channel.post_failure(problems)
        else:
            self._channel.post("ready")
        self._channel.close()
        return EXIT_BOOT if problems else EXIT_ASKED


def _problems(handover: Handover, plan: Plan, control: Path) -> list[str]:
    problems = restart_problems(plan_of_workers(plan, handover), plan)
    if str(control) != handover.holdings.control.path:
        problems.append("a change of admin.control takes a restart")
    loop_factory(plan.loop)
    # Before the privileges are dropped, as the reload that follows opens them in the master.
    problems += listener_problems(plan.listeners, handover.holdings.ports)
    admin = handover.holdings.admin
    if changes(plan.admin_address, admin):
        try:
            refuse_own(plan.admin_address, admin)
            AdminPort(plan.admin_address).close()
        except StartRefused as refusal:
            problems.append(str(refusal))
    files = raise_open_files(plan.max_sessions, plan.count, len(plan.listeners))
    return problems if files is None else [*problems, files]


# The old program's side of the try.


class Output:
    """What a try writes: a memory of bounded size in the place of its standard output and error."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("preforkmx-output", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._fd, OUTPUT_OCTETS)
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)

    def connect(self) -> None:
        """Let this process write there: in the child."""
        for stream in (1, 2):
            os.dup2(self._fd, stream)

    def lines(self) -> list[str]:
        """Return the last lines that were written."""
        # The children share the place where the next octet goes.
        count = os.lseek(self._fd, 0, os.SEEK_CUR)
        text = os.pread(self._fd, count, 0).decode("utf-8", "replace")
        return [line for line in text.splitlines() if line.strip()][-OUTPUT_LINES:]

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)


def become_trial(
    program: Program,
    handover: Handover,
    environ: Mapping[str, str],
    output: Output,
    channel: Channel,
) -> int:
    """Be the try, in a child of the master's; return the exit status if that cannot be."""
    try:
        die_with_parent(signal.SIGKILL)
        memory = _in_memory(handover)
        output.connect()
        for descriptor in (channel.fileno(), memory):
            os.set_inheritable(descriptor, True)
        program.execute({**environ, VARIABLE: f"check {channel.fileno()} {memory}"})
    except OSError as error:
        channel.post_failure([error.strerror or str(error)])
    return EXIT_BOOT
