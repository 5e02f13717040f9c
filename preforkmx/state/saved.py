"""What of the state outlives a restart, and what of it has to be written down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preforkmx.state.expiring import ExpiringMap


@dataclass(slots=True)
class Changes:
    """What has to be saved.

    :param keys: for each of :attr:`Saved.tables` the keys that were written or dropped.
    :param everything: `keys` is all there is; whatever else was saved before is to go.
    """

    keys: tuple[set[bytes], ...]
    everything: bool = False

    def __bool__(self) -> bool:
        return self.everything or any(self.keys)


class Saved:
    """The tables that a database follows, and their journals.

    :param tables: in the order of the database's; they keep journals.
    """

    __slots__ = ("_everything", "tables")

    def __init__(self, tables: tuple[ExpiringMap[bytes, Any], ...]) -> None:
        #: In the order in which they are saved.
        self.tables = tables
        self._everything = False

    def take_changes(self) -> Changes:
        """Return what changed since the last call, and begin a new journal."""
        journals = tuple(table.take_journal() for table in self.tables)
        if not self._everything:
            return Changes(journals)
        self._everything = False
        return Changes(tuple(set(table.entries) for table in self.tables), everything=True)

    def give_back(self, changes: Changes) -> None:
        """`changes` could not be saved: the next :meth:`take_changes` has them again.

        While nothing can be saved the journals would grow with every entry that comes and
        goes. Before that they are thrown away for a note to save everything.
        """
        for table, keys in zip(self.tables, changes.keys, strict=True):
            table.give_back(keys)
        if changes.everything or any(table.journal_is_long for table in self.tables):
            self._everything = True
