"""Changeover: the sockets between one generation and the next.

==========  ================================================================================
step        what
==========  ================================================================================
problems    new addresses are probed; nothing has changed
prepare     new ports are opened and let nobody in; the sockets of new slots are made
undo        … are closed again: the sockets are as they were
open        new ports let clients in, changed options are taken over. From here on there is
            no way back
part        ports that are named no more let nobody in; from slots that go connections are
            led away by who steers
finish      once their queues are empty: they are closed, in whatever process
==========  ================================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.master.errors import StartRefused
from preforkmx.master.ports import match

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from preforkmx.master.listeners import ListenerSockets
    from preforkmx.master.ports import Port
    from preforkmx.session.listener import Listener


class Changeover:
    """What one reload does to the sockets.

    :param listeners: those of the new generation.
    :param count: its worker slots.
    """

    def __init__(self, sockets: ListenerSockets, listeners: Sequence[Listener], count: int) -> None:
        self._sockets = sockets
        self._listeners = tuple(listeners)
        self._count = count
        self._earlier_count = sockets.count
        self._added: list[Port] = []
        self._parting: list[Port] = []

    @property
    def ports(self) -> int:
        """How many ports the master has open while it is under way."""
        added = match(self._listeners, self._sockets.ports).count(None)
        return len(self._sockets.ports) + added

    def problems(self) -> list[str]:
        """Return why the new listeners cannot be opened."""
        return self._sockets.problems(self._listeners)

    def prepare(self, away: Collection[int] = ()) -> None:
        """Open what is new.

        :param away: the slots that connections are steered past.
        :raises StartRefused: it cannot be; nothing has changed.
        """
        sockets = self._sockets
        # Once more: a checker has run since they were asked for.
        for problem in self.problems():
            raise StartRefused(problem)
        found = match(self._listeners, sockets.ports)
        self._parting = [port for port in sockets.ports if port not in found]
        staying = [port for port in sockets.ports if port in found]
        missing = [
            listener for listener, port in zip(self._listeners, found, strict=True) if port is None
        ]
        try:
            while sockets.count < self._count:
                # Those that were made before this one are no slots of the pool yet.
                sockets.grow(staying, {*away, *range(self._earlier_count, sockets.count)})
            self._added = sockets.add(missing, self._count)
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Close what was opened."""
        for port in self._added:
            self._sockets.remove(port)
        self._added = []
        while self._sockets.count > self._earlier_count:
            self._sockets.shrink()

    def open(self) -> None:
        """Let the clients of the new generation in."""
        self._sockets.serve(self._listeners)

    def part(self) -> bool:
        """Let nobody in where nobody will serve; return whether there is such a place."""
        for port in self._parting:
            port.shut()
        return bool(self._parting) or self._count < self._earlier_count

    def waiting(self) -> int:
        """Return how many connections wait in what is to be closed."""
        return self._sockets.waiting(self._parting, range(self._count, self._earlier_count))

    def finish(self) -> None:
        """Close it."""
        for port in self._parting:
            self._sockets.remove(port)
        while self._sockets.count > self._count:
            self._sockets.shrink()
