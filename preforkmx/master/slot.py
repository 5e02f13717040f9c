"""Slot: a place that one process holds, with those on the way in and out.

Usually there is the holder alone. A successor boots beside it in a reload or because the
holder asked to be replaced; a stand-in boots because the holder's loop is silent. Either takes
the holder's place once it is ready, and the holder retires.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from preforkmx.master.backoff import Backoff
from preforkmx.master.handover import SlotState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from preforkmx.master.child import Child


PROCESSES = 3
"""In a worker's slot at most: two as in a reload, and a stand-in."""


Kind = Literal["worker", "store", "admin"]


class Slot:
    """A worker's slot, or the place of the store process or of the admin process.

    :param index: the worker slot's number; None for the others.
    :param kind: what process holds it.
    """

    def __init__(self, index: int | None, kind: Kind = "worker") -> None:
        self.index = index
        self.kind = kind
        self.holder: Child | None = None
        """Who serves the place."""
        self.successor: Child | None = None
        """Who is to take over: forked, and maybe serving beside the holder already."""
        self.stand_in: Child | None = None
        """Who is to take over from a holder whose loop is silent, and is booting."""
        self.retired: list[Child] = []
        """Who has been told to go, and still has sessions."""
        self.backoff = Backoff()
        self.refill_at: float | None = None
        """When an empty place gets a new holder, or a silent one its next stand-in, by the
        master's clock."""
        self.leaving = False
        """Whether the slot itself is to go: no connection shall begin in it."""

    def hand_over(self) -> SlotState:
        """Return what another program in this process needs to have this place."""
        return SlotState(
            index=self.index,
            holder=_pid(self.holder),
            successor=_pid(self.successor),
            stand_in=_pid(self.stand_in),
            retired=tuple(child.pid for child in self.retired if child.alive),
            crashes=self.backoff.crashes,
            refill_at=self.refill_at,
            leaving=self.leaving,
        )

    @classmethod
    def taken_over(
        cls, state: SlotState, children: Mapping[int, Child], kind: Kind = "worker"
    ) -> Self:
        """Return the place of an earlier program in this process.

        :param children: by their process ids.
        """

        def child(pid: int | None) -> Child | None:
            return None if pid is None else children[pid]

        slot = cls(state.index, kind)
        slot.holder = child(state.holder)
        slot.successor = child(state.successor)
        slot.stand_in = child(state.stand_in)
        slot.retired = [children[pid] for pid in state.retired]
        slot.backoff = Backoff(state.crashes)
        slot.refill_at = state.refill_at
        slot.leaving = state.leaving
        return slot

    def __iter__(self) -> Iterator[Child]:
        yield from self.retired
        if self.holder is not None:
            yield self.holder
        if self.stand_in is not None:
            yield self.stand_in
        if self.successor is not None:
            yield self.successor

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def served(self) -> bool:
        """Whether somebody greets who connects: a process that is ready, and whose loop turns."""
        return any(child.state == "ready" and not child.hung for child in self)

    def retire_holder(self, seconds: float) -> None:
        """Tell the holder, if there is one, to go; one that still boots is killed.

        Nobody would notice that a boot never ends, once it is not the boot that is waited for.
        """
        if self.holder is not None:
            if self.holder.state == "booting":
                self.holder.kill()
            else:
                self.holder.retire(seconds)
            self.retired.append(self.holder)
            self.holder = None

    def promote(self, seconds: float) -> None:
        """Let the successor take over from the holder, which retires."""
        self.retire_holder(seconds)
        self._dismiss(self.stand_in, seconds)
        self.holder, self.successor, self.stand_in = self.successor, None, None
        self.refill_at = None

    def promote_stand_in(self, seconds: float) -> None:
        """Let the stand-in take over; the silent holder retires when its loop returns."""
        self.retire_holder(seconds)
        self.holder, self.stand_in = self.stand_in, None
        self.refill_at = None

    def close_ranks(self, *, reloading: bool) -> bool:
        """Give the place of a holder that is gone to who is to take it anyway, ready or not.

        :param reloading: the successor is a reload's, and stays where it is.
        :return: whether there is somebody.
        """
        if self.stand_in is not None and self.stand_in.alive:
            self.holder, self.stand_in = self.stand_in, None
        elif not reloading and self.successor is not None and self.successor.alive:
            self.holder, self.successor = self.successor, None
        return self.holder is not None

    def dismiss_successor(self, seconds: float) -> None:
        """Tell the successor to go: it retires if it serves, and is killed if it does not."""
        child, self.successor = self.successor, None
        self._dismiss(child, seconds)

    def give_up(self, seconds: float) -> None:
        """Tell everybody to go, and be filled no more."""
        self.retire_holder(seconds)
        self.dismiss_successor(seconds)
        self._dismiss(self.stand_in, seconds)
        self.stand_in = self.refill_at = None

    def _dismiss(self, child: Child | None, seconds: float) -> None:
        if child is None:
            return
        if child.state == "ready":
            child.retire(seconds)
        else:
            child.kill()
        self.retired.append(child)


def _pid(child: Child | None) -> int | None:
    return child.pid if child is not None and child.alive else None
