"""What every forked process does first, whatever it becomes: signals, title, faulthandler."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING

import setproctitle

from preforkmx.errors import BootError, ConfigError
from preforkmx.observe.log import LogWriter, configure_logging

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

EXIT_ASKED = 0
"""The process ended because it was asked to."""
EXIT_CRASHED = 1
"""It ended by an exception that nobody expected."""
EXIT_BOOT = 3
"""It could not start; the reasons went over the channel."""

_PR_SET_PDEATHSIG = 1
_KEYBOARD_AND_TERMINAL = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)


def fork(run: Callable[[], int]) -> int:
    """Fork; in the child call `run`, and exit with the status that it returns.

    Signals are masked around the fork. The child gets default handlers and no wake-up
    descriptor before the first signal can reach it, so none of its signals is ever taken for
    one of the parent's. The child never returns from here, and runs none of the parent's
    ``finally`` or ``atexit``.

    :return: the child's process id, in the parent.
    :raises OSError: no process could be made.
    """
    # What exists now is kept out of the collector's way: a collection in the child would
    # otherwise touch, and so copy, every page that it shares with the parent.
    gc.freeze()
    # What is buffered would otherwise be written by the child as well.
    _flush()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _run_child(run, mask)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        gc.unfreeze()
    return pid


def _run_child(run: Callable[[], int], mask: set[signal.Signals | int]) -> None:
    status = EXIT_CRASHED
    try:
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        # Control-C and a hang-up reach the whole process group: only the master acts on them.
        # A handler and not SIG_IGN, which the programs that a site starts would inherit.
        for number in _KEYBOARD_AND_TERMINAL:
            signal.signal(number, _take_no_notice)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        status = run()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else EXIT_CRASHED
    except BaseException:
        traceback.print_exc()
    finally:
        _flush()
        os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # None without a terminal; a reader may be gone, or the file be closed.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()


def _take_no_notice(_number: int, _frame: FrameType | None) -> None:
    """Be a signal handler that does nothing."""


def settle(title: str, *, log_format: str, log_level: str, log_name: str) -> LogWriter:
    """Make this process one of its own: title, stack dumps, log.

    :param title: what follows ``preforkmx: `` in the process list.
    :param log_name: what the log calls this process: ``"worker 2"``.
    :return: the log writer, its thread running.
    """
    set_title(title)
    # SIGABRT prints the stack of every thread, even of a loop that hangs in C, and ends the
    # process (faulthandler.register does not take this signal, enable does).
    faulthandler.enable(file=2, all_threads=True)
    writer = LogWriter()
    configure_logging(writer, format=log_format, level=log_level, process=log_name)
    writer.start()
    return writer


def die_with_parent(number: signal.Signals) -> None:
    """Let the kernel send this process a signal when its parent dies (``prctl(2)``).

    It is a second way to learn that; the first is end-of-file on the channel.

    :raises OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number), zero, zero, zero) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def set_title(text: str) -> None:
    """Let ``ps`` show ``preforkmx: `` and `text`."""
    setproctitle.setproctitle(f"preforkmx: {text}")


def describe(error: BaseException) -> list[str]:
    """Return why something could not start, as texts for the operator.

    What is not one of this program's own messages is given with the line that raised it.
    """
    if isinstance(error, ConfigError):
        return list(error.problems)
    if isinstance(error, BootError):
        return [str(error)]
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    frames = traceback.extract_tb(error.__traceback__)
    if frames:
        text += f" ({frames[-1].filename}:{frames[-1].lineno})"
    return [text]
