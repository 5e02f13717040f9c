"""What was delivered of messages that are to come again: LMTP's answers are one for each
recipient, SMTP's are one for all.

docs/explanation/delivery.md has the whole scheme, and why it loses nothing.
"""

from __future__ import annotations

import time
from hashlib import blake2b
from typing import TYPE_CHECKING, Protocol

from preforkmx.state.marks import GROUP_SIZE, MARK_SIZE, MAX_MARKS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

REMEMBER_SECONDS = 6 * 86_400.0
"""For how long: a day more than senders try (RFC 5321 section 4.5.4.1)."""
MAX_KEYS = 100_000
"""Keys that a process holds; the oldest give way, and their copies could be doubled."""
MAX_KEYS_A_CALL = MAX_MARKS
"""Of a message with more than half as many recipients the memory is asked in several calls."""
_DIGEST = 32


class DeliveredMemory(Protocol):
    """Remembers keys, over all workers that may see a message again.

    Every :class:`~preforkmx.state.decisions.Store` is one. Keys are 20 octets, of which the first
    four are the sender's, so that a store may keep those together that are asked for together; a
    call has at most :data:`MAX_KEYS_A_CALL`. Every operation may raise
    :class:`~preforkmx.errors.StoreUnavailable`.
    """

    async def remember(self, keys: Collection[bytes], seconds: float) -> None:
        """Know `keys` for so long from now on, also those that are known already."""

    async def known(self, keys: Collection[bytes]) -> Collection[bytes]:
        """Return those of `keys` that are known."""

    async def forget(self, keys: Collection[bytes]) -> None:
        """Know `keys` no more."""


class LocalDelivered:
    """A :class:`DeliveredMemory` of one process: enough for one worker, or a test.

    :param clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[bytes, float] = {}

    async def remember(self, keys: Collection[bytes], seconds: float) -> None:
        until = self._clock() + seconds
        for key in keys:
            # The oldest stand first.
            self._until.pop(key, None)
            self._until[key] = until
        while len(self._until) > MAX_KEYS:
            del self._until[next(iter(self._until))]

    async def known(self, keys: Collection[bytes]) -> frozenset[bytes]:
        now = self._clock()
        return frozenset(key for key in keys if self._until.get(key, 0.0) > now)

    async def forget(self, keys: Collection[bytes]) -> None:
        for key in keys:
            self._until.pop(key, None)


class Fingerprint:
    """The hash of a message as it was received, while it passes."""

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=_DIGEST)
        self._whole = False

    def update(self, octets: bytes) -> None:
        """Take the next piece, or ``b""``: that was all."""
        self._hash.update(octets)
        self._whole = not octets

    def digest(self) -> bytes:
        """Return the hash; ``b""`` where the message did not pass to its end.

        It did not where a handler has put another message in its place: two of them must not be
        taken for one.
        """
        return self._hash.digest() if self._whole else b""


def pair_key(sender: str, recipient: str) -> bytes:
    """Return the key that says: of a message from `sender`, `recipient` has a copy."""
    return _key(sender, b"pair", recipient.encode())


def copy_key(sender: str, recipient: str, digest: bytes) -> bytes:
    """Return the key that says: `recipient` has a copy of this message from `sender`."""
    return _key(sender, b"copy", recipient.encode(), digest)


def _key(sender: str, *parts: bytes) -> bytes:
    octets = sender.encode()
    hashed = blake2b(digest_size=MARK_SIZE - GROUP_SIZE)
    for part in (octets, *parts):
        hashed.update(len(part).to_bytes(4, "big"))
        hashed.update(part)
    return blake2b(octets, digest_size=GROUP_SIZE).digest() + hashed.digest()
