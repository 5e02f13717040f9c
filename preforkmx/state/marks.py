"""Marks: keys that are known for a time, whatever they stand for.

LMTP deliveries remember with them who has a copy of a message that is to come again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection

#: The octets of a key.
MARK_SIZE: Final = 20
#: How many of them, from the first on, marks of one question have in common that are to be kept
#: together: on one node of a cluster, say.
GROUP_SIZE: Final = 4
#: The most keys of one question.
MAX_MARKS: Final = 4096


class Marks(Protocol):
    """Remembers keys, over all workers.

    Keys have :data:`MARK_SIZE` octets, and a question at most :data:`MAX_MARKS` of them. Keys
    that begin with the same :data:`GROUP_SIZE` octets are asked for together, so a question
    whose keys do costs least. Every operation answers, or raises
    :class:`~preforkmx.errors.StoreUnavailable`, within the store's deadline; one that raised may
    have been done all the same, or for some of the keys.

    All raise ValueError for keys that are none, or too many.
    """

    async def remember(self, keys: Collection[bytes], seconds: float) -> None:
        """Know `keys` for so long from now on, also those that are known already."""
        ...

    async def known(self, keys: Collection[bytes]) -> frozenset[bytes]:
        """Return those of `keys` that are known."""
        ...

    async def forget(self, keys: Collection[bytes]) -> None:
        """Know `keys` no more."""
        ...
