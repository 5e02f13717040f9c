"""The log of one process: the writer, the access log, and the logging module on top of both.

::

    writer = LogWriter()
    configure_logging(writer, format="logfmt", level="info", process="worker 2")
    access_log = AccessLog(writer.write, "logfmt", worker="2", colour=writer.colour)
    writer.start()
"""

from __future__ import annotations

import logging
import time
import traceback
from typing import TYPE_CHECKING

from preforkmx.observe.access import LEVELS, MAX_LINE, AccessLog
from preforkmx.observe.format import FormatName, Value, line_format, origin
from preforkmx.observe.writer import LogWriter

if TYPE_CHECKING:
    from preforkmx.observe.format import LineFormat

__all__ = [
    "LEVELS",
    "MAX_LINE",
    "AccessLog",
    "FormatName",
    "LogWriter",
    "RecordHandler",
    "Value",
    "configure_logging",
]


def _level_name(number: int) -> str:
    if number >= logging.ERROR:
        return "error"
    if number >= logging.WARNING:
        return "warning"
    return "info" if number >= logging.INFO else "debug"


class RecordHandler(logging.Handler):
    """Writes the logging module's records in the format of the access log.

    A record's fields are ``message``, the process, ``session`` where the record has one,
    ``logger``, and ``stack`` for an exception.
    """

    def __init__(self, writer: LogWriter, line: LineFormat, process: str) -> None:
        super().__init__()
        self._writer = writer
        self._line = line
        self._origin = origin(process)

    def createLock(self) -> None:  # noqa: N802 - logging's name
        """Make no lock: the writer has its own, and this one could be held over a fork."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Emit the record if it passes; logging's own handle() insists on a lock from 3.13 on."""
        passed: object = self.filter(record)
        if passed:
            # From 3.12 on a filter may return a record to emit instead.
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return bool(passed)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception as error:
            # The arguments do not fit the text: say what was meant instead of nothing.
            message = f"{record.msg} (not formatted: {type(error).__name__})"
        session = getattr(record, "session", None)
        fields = {
            **self._origin,
            "session": str(session) if session else None,
            "logger": record.name,
        }
        rest = self._line.opening("message", message, fields)
        if record.exc_info and record.exc_info[1] is not None:
            rest += self._line.stack("".join(traceback.format_exception(record.exc_info[1])))
        elif record.stack_info:
            rest += self._line.stack(record.stack_info)
        self._writer.write(self._line.line(record.created, _level_name(record.levelno), rest))


def configure_logging(writer: LogWriter, *, format: str, level: str, process: str) -> None:  # noqa: A002
    """Let the root logger, and Python's warnings, write to `writer`; other handlers go.

    :param format: ``"logfmt"``, ``"json"`` or ``"console"``.
    :param level: ``"debug"``, ``"info"``, ``"warning"`` or ``"error"``.
    :param process: which process this is: ``"master"``, ``"store"``, ``"worker 2"``.
    :raises ValueError: for a format or a level that does not exist.
    """
    if level not in LEVELS:
        raise ValueError(f"{level!r} is no log level: {', '.join(LEVELS)}")
    line = line_format(format, colour=writer.colour)
    handler = RecordHandler(writer, line, process)
    root = logging.getLogger()
    for other in root.handlers[:]:
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(LEVELS[level])
    logging.captureWarnings(True)

    def report(count: int) -> str:
        dropped = line.opening("event", "log_dropped", {**origin(process), "lines": count})
        return line.line(time.time(), "warning", dropped)

    writer.report_drops_as(report)
