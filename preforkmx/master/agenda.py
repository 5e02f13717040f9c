"""Agenda: what was asked of the master and is not begun, and who waits for the answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.master.plan import MOST_SLOTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from preforkmx.master.control import ControlConnection


class Agenda:
    """Reloads and upgrades, of which any number that are asked for are one, and slots.

    A request has a connection where it came over the control socket, and none where it was a
    signal.
    """

    def __init__(self) -> None:
        self._reloads: list[ControlConnection] | None = None
        self._upgrades: list[ControlConnection] | None = None
        self._slots = 0
        """How many slots more there shall be than there are, or fewer."""
        self._closed: list[str] = []

    def want_reload(self, connections: Iterable[ControlConnection] = ()) -> None:
        """Want a reload that begins after this moment, also if one is under way: that one may
        have read its files already."""
        if self._refused(connections):
            return
        # What the configuration says counts, and not what was asked for before.
        self._slots = 0
        self._reloads = [*(self._reloads or ()), *connections]

    def want_upgrade(self, connections: Iterable[ControlConnection] = ()) -> None:
        """Want an upgrade."""
        if not self._refused(connections):
            self._upgrades = [*(self._upgrades or ()), *connections]

    def want_slots(self, more: int) -> None:
        """Want so many slots more; fewer with a negative number."""
        if not self._closed:
            self._slots = max(-MOST_SLOTS, min(self._slots + more, MOST_SLOTS))

    def take_reload(self) -> list[ControlConnection] | None:
        """Return who waits for a reload that is to begin now; None: it is not wanted."""
        waiting, self._reloads = self._reloads, None
        return waiting

    def take_upgrade(self) -> list[ControlConnection] | None:
        """Return who waits for an upgrade that is to begin now; None: it is not wanted."""
        waiting, self._upgrades = self._upgrades, None
        return waiting

    def take_slot(self) -> int:
        """Return 1 when a slot is to come now, -1 when one is to go, else 0."""
        step = (self._slots > 0) - (self._slots < 0)
        self._slots -= step
        return step

    def close(self, problem: str) -> None:
        """Refuse whatever is wanted, and from now on whatever is asked for."""
        waiting = [*(self._reloads or ()), *(self._upgrades or ())]
        self._reloads = self._upgrades = None
        self._slots = 0
        self._closed = [problem]
        self._refused(waiting)

    def _refused(self, connections: Iterable[ControlConnection]) -> bool:
        if not self._closed:
            return False
        for connection in connections:
            connection.answer({"ok": False, "problems": self._closed})
        return True
