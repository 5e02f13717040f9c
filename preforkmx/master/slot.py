"""Slot: a place that one process holds, with those on the way in and out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.master.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Iterator

    from preforkmx.master.child import Child


class Slot:
    """A worker's slot, or the store's place.

    :param index: the worker slot's number; None for the store.
    """

    def __init__(self, index: int | None) -> None:
        self.index = index
        self.holder: Child | None = None
        """Who serves the place."""
        self.successor: Child | None = None
        """Who is to take over: forked, and maybe serving beside the holder already."""
        self.retired: list[Child] = []
        """Who has been told to go, and still has sessions."""
        self.backoff = Backoff()
        self.refill_at: float | None = None
        """When an empty place gets a new holder, by the master's clock."""

    def __iter__(self) -> Iterator[Child]:
        yield from self.retired
        if self.holder is not None:
            yield self.holder
        if self.successor is not None:
            yield self.successor

    def retire_holder(self, seconds: float) -> None:
        """Tell the holder, if there is one, to go."""
        if self.holder is not None:
            self.holder.retire(seconds)
            self.retired.append(self.holder)
            self.holder = None

    def promote(self, seconds: float) -> None:
        """Let the successor take over from the holder, which retires."""
        self.retire_holder(seconds)
        self.holder, self.successor = self.successor, None
        self.refill_at = None

    def dismiss_successor(self, seconds: float) -> None:
        """Tell the successor to go: it retires if it serves, and is killed if it does not."""
        child, self.successor = self.successor, None
        if child is None:
            return
        if child.state == "ready":
            child.retire(seconds)
        else:
            child.kill()
        self.retired.append(child)
