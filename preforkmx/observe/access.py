"""The access log: one line for a refused connection, one a transaction, one a session's end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from preforkmx.observe.format import line_format, origin

if TYPE_CHECKING:
    from collections.abc import Callable

    from preforkmx.observe.format import Value

MAX_LINE = 32_768
"""The characters of one line: below the 48 KiB at which journald cuts a line in two."""

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class AccessLog:
    """Formats by hand and writes: about 5 µs for a line of twelve fields.

    ::

        who = log.render(session=ctx.session_id, peer=peer.host)     # once a session
        log.emit("transaction", who, log.render(sender=envelope.sender, size=1000))

    :param write: takes a line without its line end: :meth:`LogWriter.write
        <preforkmx.observe.writer.LogWriter.write>`, or ``list.append`` in a test.
    :param format: ``"logfmt"``, ``"json"`` or ``"console"``.
    :param worker: what every line has as ``worker``: the slot's number.
    :param clock: seconds since the epoch.
    :param level: lines of a lower level are left out.
    :param colour: colours on the console: ``LogWriter.colour``.
    """

    def __init__(
        self,
        write: Callable[[str], object],
        format: str = "logfmt",  # noqa: A002 - the word of [log] format
        *,
        worker: str = "",
        clock: Callable[[], float] = time.time,
        level: str = "info",
        colour: bool = False,
    ) -> None:
        self._write = write
        self._format = line_format(format, colour=colour)
        self._origin = origin(worker)
        self._clock = clock
        self._level = LEVELS[level]
        self._openings: dict[str, str] = {}

    def render(self, **fields: Value) -> str:
        """Return the fields as a fragment for :meth:`emit`, which may be kept and used again.

        Fields that are None are left out. A string of more than 8,192 characters is cut and
        ends with ``…``; numbers keep six decimals.

        :raises ValueError: for a name that is not ``[a-z][a-z0-9_]*``, or ``time``, ``level``.
        """
        return self._format.fragment(fields)

    def emit(self, event: str, *fragments: str, level: str = "info") -> None:
        """Write one line: time, level, event, worker, then the fragments in their order.

        :param event: one of a closed set of names.
        :param fragments: what :meth:`render` of this log returned. Those that would make the
            line longer than :data:`MAX_LINE` characters are left out, and ``omitted`` counts
            them.
        """
        if LEVELS[level] < self._level:
            return
        opening = self._openings.get(event)
        if opening is None:
            opening = self._format.opening("event", event, self._origin)
            self._openings[event] = opening
        rest = "".join((opening, *fragments))
        if len(rest) > MAX_LINE:
            rest = self._shortened(opening, fragments)
        self._write(self._format.line(self._clock(), level, rest))

    def _shortened(self, opening: str, fragments: tuple[str, ...]) -> str:
        kept = [opening]
        room = MAX_LINE - len(opening)
        for fragment in fragments:
            if len(fragment) <= room:
                kept.append(fragment)
                room -= len(fragment)
        kept.append(self._format.fragment({"omitted": len(fragments) + 1 - len(kept)}))
        return "".join(kept)
