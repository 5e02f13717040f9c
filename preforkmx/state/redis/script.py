"""A Lua script, as Redis is asked to run it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from hiredis import pack_command

if TYPE_CHECKING:
    from collections.abc import Sequence

Word = bytes | str | int
"""What may stand in a command."""


def pack(*words: Word) -> bytes:
    """Return a command as it is written."""
    packed: bytes = pack_command(words)  # type: ignore[arg-type]  # hiredis says: one word
    return packed


@dataclass(frozen=True, slots=True, eq=False)
class Script:
    """A script that is asked for by its hash, and sent whole where Redis does not know it.

    :param text: the Lua source. A script that changes between versions of this program is
        another script: both may run beside each other.
    """

    text: bytes
    sha1: bytes = field(init=False)

    def __post_init__(self) -> None:
        # The hash is Redis' name for the script; nothing depends on its strength.
        name = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha1", name.encode())

    def by_name(self, keys: Sequence[bytes], args: Sequence[Word]) -> bytes:
        """Return the command that runs it if Redis has it (EVALSHA), ready to be written."""
        # Not by pack(), which would make a second tuple of each operation's words.
        packed: bytes = pack_command((b"EVALSHA", self.sha1, len(keys), *keys, *args))  # type: ignore[arg-type]
        return packed

    def whole(self, keys: Sequence[bytes], args: Sequence[Word]) -> bytes:
        """Return the command that brings and runs it (EVAL), ready to be written."""
        return pack(b"EVAL", self.text, len(keys), *keys, *args)


@dataclass(frozen=True, slots=True, eq=False)
class Command:
    """A command of Redis' own, asked for as a script is.

    :param name: ``b"SMISMEMBER"``: its keys come first, and its arguments behind them.
    """

    name: bytes

    def by_name(self, keys: Sequence[bytes], args: Sequence[Word]) -> bytes:
        """Return it ready to be written."""
        return pack(self.name, *keys, *args)

    def whole(self, keys: Sequence[bytes], args: Sequence[Word]) -> bytes:
        """Return the same: there is nothing that Redis might not know."""
        return self.by_name(keys, args)


class Call(NamedTuple):
    """One run of a script, or of a command."""

    script: Script | Command
    keys: Sequence[bytes]
    args: Sequence[Word]

    def by_name(self) -> bytes:
        """Return the command that runs it if Redis has it."""
        return self.script.by_name(self.keys, self.args)

    def whole(self) -> bytes:
        """Return the command that brings and runs it."""
        return self.script.whole(self.keys, self.args)
