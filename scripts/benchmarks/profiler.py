"""Where a worker's time goes: py-spy, while it is under load."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_RATE = 500
_SHOWN = 25


def py_spy() -> str | None:
    """Return the path of py-spy, beside this Python or on the path; None without it."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")


@contextmanager
def profiling(pid: int, raw: Path) -> Iterator[None]:
    """Record the stacks of a process, 500 times a second, into a file in the raw format."""
    command = py_spy()
    if command is None:
        raise RuntimeError("py-spy is not installed")
    recorder = subprocess.Popen(
        [
            *(command, "record", "--pid", str(pid), "--format", "raw", "--output", str(raw)),
            *("--rate", str(_RATE), "--duration", "120", "--nonblocking"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        # An interrupt ends the recording and writes the file.
        recorder.send_signal(2)
        try:
            recorder.wait(20)
        except subprocess.TimeoutExpired:
            recorder.kill()
            recorder.wait()


def summary(raw: Path) -> str:
    """Return the functions with the most samples: their own, and with what they call."""
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    total = 0
    for line in raw.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        if not count.isdigit():
            continue
        frames = [frame.rpartition(":")[0] or frame for frame in stack.split(";")]
        own[frames[-1]] += int(count)
        for frame in set(frames):
            whole[frame] += int(count)
        total += int(count)
    if not total:
        return "no samples"
    lines = [f"{total} samples\n  own   with what it calls"]
    lines += [
        f"{100 * count / total:5.1f} % {100 * whole[frame] / total:5.1f} %  {frame}"
        for frame, count in own.most_common(_SHOWN)
    ]
    return "\n".join(lines)
