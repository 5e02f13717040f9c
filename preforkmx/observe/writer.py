"""Where log lines go: a bounded buffer, and a thread that writes it to a file descriptor.

Whoever reads a process's stderr may stop reading, and then a write blocks. So no event loop
writes there: it appends to a buffer, and a daemon thread writes. While the reader is stuck
the buffer fills, lines are dropped and counted, and one line says how many as soon as there
is room again.
"""

from __future__ import annotations

import os
import select
import stat
import threading
import time
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds that the thread waits after the first line for more to write with it: under load
#: 10 wake-ups a second, and none while nothing is logged.
_NAP = 0.1
#: Seconds that one wait for room in the descriptor takes at most.
_PATIENCE = 0.25
#: What Linux writes to a pipe in one piece, so that the lines of several processes never mix
#: (``pipe(7)``, PIPE_BUF); also the room that a poll of a pipe promises.
_PIPE_CHUNK = 4096
_CHUNK = 65536


def _plain_report(count: int) -> str:
    return f"{count} log lines were dropped: the log could not be written"


class LogWriter:
    """Writes lines to a descriptor without holding up the one who logs.

    Before :meth:`start` and after :meth:`close` a line is written at once, in the caller's
    thread; a reader that is stuck costs the caller 0.25 s once, and the lines wait in the
    buffer until it reads again. Between the two a daemon thread writes, at most 20 ms later.

    A process that forks: the child's copy begins with an empty buffer and without a thread,
    so nothing is written twice; the child calls :meth:`start` again, or makes a writer of its
    own.

    :param fd: the descriptor; it is the caller's, and stays open.
    :param limit: how much is kept while it cannot be written, in characters; what comes then
        is dropped and counted.
    """

    def __init__(self, fd: int = 2, *, limit: int = 4 * 1024 * 1024) -> None:
        self._fd = fd
        self._limit = limit
        self._report: Callable[[int], str] = _plain_report
        self._reset()
        _writers.add(self)

    def _reset(self) -> None:
        """Begin with nothing: no line, no thread, and locks that nobody holds."""
        # The buffer, under _lock. _size also counts the piece that is being written.
        self._lock = threading.Lock()
        self._lines: list[str] = []
        self._size = 0
        self._accepted = 0
        self._dropped_since_report = 0
        self._dropped = 0
        # The piece that is being written, under _writing.
        self._writing = threading.Lock()
        self._piece = b""
        self._offset = 0
        self._piece_size = 0
        self._piece_lines = 0
        self._piece_reports = 0
        self._broken = False
        self._stuck = False
        # The thread.
        self._thread: threading.Thread | None = None
        self._work = threading.Event()
        self._hurry = threading.Event()
        self._closing = False
        self._progress = threading.Condition()
        self._finished = 0

    @property
    def dropped(self) -> int:
        """Lines that this process has dropped."""
        return self._dropped

    @property
    def colour(self) -> bool:
        """Whether the descriptor is a terminal that shows colours (``NO_COLOR`` is heeded)."""
        try:
            terminal = os.isatty(self._fd)
        except OSError:
            return False
        return terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"

    def report_drops_as(self, line: Callable[[int], str]) -> None:
        """Let `line` make the line that says how many were dropped, in the log's own format."""
        self._report = line

    def start(self) -> None:
        """Start the thread that writes. A second call does nothing."""
        if self._thread is not None:
            return
        self._closing = False
        self._hurry.clear()
        self._thread = threading.Thread(target=self._run, name="preforkmx-log", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Take one line, without its line end; drop it when the buffer is full."""
        size = len(line) + 1
        with self._lock:
            if self._size + size > self._limit:
                self._dropped += 1
                self._dropped_since_report += 1
                return
            self._lines.append(line)
            self._size += size
            self._accepted += 1
        if self._thread is None:
            self._write_all()
        elif not self._work.is_set():
            self._work.set()

    def flush(self, timeout: float = 1.0) -> bool:
        """Wait until every line so far is written, for at most `timeout` seconds.

        :return: whether they are.
        """
        if self._thread is None:
            return self._write_all()
        with self._lock:
            target = self._accepted
        self._hurry.set()
        self._work.set()
        with self._progress:
            done = self._progress.wait_for(lambda: self._finished >= target, timeout)
        self._hurry.clear()
        return done

    def close(self, timeout: float = 1.0) -> None:
        """Write what there is and end the thread, in at most about `timeout` seconds."""
        thread = self._thread
        if thread is None:
            self._write_all()
            return
        deadline = time.monotonic() + timeout
        self.flush(timeout)
        self._closing = True
        self._hurry.set()
        self._work.set()
        thread.join(max(_PATIENCE, deadline - time.monotonic()))
        self._thread = None
        self._write_all()

    def _run(self) -> None:
        while not self._closing:
            self._work.wait()
            if not self._hurry.is_set():
                self._hurry.wait(_NAP)
            self._work.clear()
            with self._writing:
                while self._next_piece():
                    if not self._write_piece() and self._closing:
                        break

    def _write_all(self) -> bool:
        """Write in the caller's thread; False when that is not possible now."""
        if not self._writing.acquire(timeout=_PATIENCE):
            return False
        try:
            while self._next_piece():
                if not self._write_piece():
                    return False
            return True
        finally:
            self._writing.release()

    # What follows is called with _writing held.

    def _next_piece(self) -> bool:
        """Take the buffered lines, unless a piece is still unwritten; False: there is none."""
        if self._piece:
            return True
        with self._lock:
            if not self._lines and (self._broken or not self._dropped_since_report):
                return False
            lines, self._lines = self._lines, []
            self._piece_reports, self._dropped_since_report = self._dropped_since_report, 0
            self._piece_size = self._size
        self._piece_lines = len(lines)
        if self._piece_reports:
            # What was dropped came after these lines and before any that come now.
            lines.append(self._report(self._piece_reports))
        # backslashreplace: a lone surrogate must not end the log.
        self._piece = ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")
        return True

    def _write_piece(self) -> bool:
        """Write the piece to its end; False: the reader does not read, the rest is kept."""
        whole_lines = self._is_pipe()
        lost = 0
        while self._offset < len(self._piece):
            if not self._wait_for_room():
                return False
            try:
                count = os.write(self._fd, self._chunk(whole_lines=whole_lines))
            except BlockingIOError:
                self._stuck = True
                return False
            except OSError:
                # No reader, or a full disk: these lines are lost, and are reported when a
                # later one can be written.
                lost = self._piece.count(b"\n", self._offset)
                break
            self._offset += count
        self._broken = lost > 0
        self._piece, self._offset = b"", 0
        with self._lock:
            self._size -= self._piece_size
            if lost:
                # The report, the piece's last line, is no loss of its own.
                lost -= bool(self._piece_reports)
                self._dropped += lost
                self._dropped_since_report += lost + self._piece_reports
        with self._progress:
            self._finished += self._piece_lines
            self._progress.notify_all()
        return True

    def _chunk(self, *, whole_lines: bool) -> memoryview:
        """Return what one write may take of the piece: from a pipe's point of view, atomic."""
        start, end = self._offset, min(len(self._piece), self._offset + _CHUNK)
        if whole_lines and end - start > _PIPE_CHUNK:
            end = self._piece.rfind(b"\n", start, start + _PIPE_CHUNK) + 1
            if end <= start:
                end = start + _PIPE_CHUNK
        return memoryview(self._piece)[start:end]

    def _wait_for_room(self) -> bool:
        """Wait until the descriptor takes octets, for a bounded time."""
        # Somebody who logs in a thread of their own waits for a stuck reader only once.
        patience = 0.0 if self._stuck and self._thread is None else _PATIENCE
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        self._stuck = not poll.poll(patience * 1000)
        return not self._stuck

    def _is_pipe(self) -> bool:
        try:
            return stat.S_ISFIFO(os.fstat(self._fd).st_mode)
        except OSError:
            return False


_writers: weakref.WeakSet[LogWriter] = weakref.WeakSet()


def _reset_writers() -> None:
    for writer in _writers:
        writer._reset()  # noqa: SLF001 - this module's own class


os.register_at_fork(after_in_child=_reset_writers)
