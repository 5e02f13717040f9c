"""The master's loop: wait for descriptors, call who watches them."""

from __future__ import annotations

import selectors
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import FileDescriptorLike

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE


class Reactor:
    """A selector whose descriptors each have one function to call."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def watch(
        self, descriptor: FileDescriptorLike, call: Callable[[], object], events: int = READ
    ) -> None:
        """Call `call` whenever one of `events` is there; replaces an earlier watch."""
        try:
            self._selector.modify(descriptor, events, call)
        except KeyError:
            self._selector.register(descriptor, events, call)

    def forget(self, descriptor: FileDescriptorLike) -> None:
        """Watch no longer; do this before the descriptor is closed."""
        try:
            self._selector.unregister(descriptor)
        except KeyError:
            return

    def turn(self, timeout: float) -> None:
        """Wait for at most `timeout` seconds, and call whoever has something."""
        for key, _ in self._selector.select(max(0.0, timeout)):
            # A call before this one may have closed the descriptor, or changed the watch: what
            # is still there shows again in the next turn.
            if self._selector.get_map().get(key.fd) is key:
                key.data()

    def close(self) -> None:
        """Close the selector's own descriptor; in a child the parent's watches stay."""
        self._selector.close()
