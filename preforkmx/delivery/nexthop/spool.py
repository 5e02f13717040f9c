"""A message that has to be read to its end before it goes on."""

from __future__ import annotations

import asyncio
import tempfile
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

IN_MEMORY = 262144
"""Octets of a message that are kept in memory; a larger one goes into a file without a name."""
READ = 65536


class Spool:
    """Takes a message piece by piece, and gives it again. :meth:`close` it in any case.

    It is bounded by what bounds the message: the server's limit of its size.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._file: IO[bytes] | None = None

    async def add(self, octets: bytes) -> None:
        """Take the next piece.

        :raises OSError: the file system of temporary files has no room for it.
        """
        self._pieces.append(octets)
        self._size += len(octets)
        if self._size > IN_MEMORY:
            await asyncio.to_thread(self._write_out)

    def _write_out(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - close() does
        self._file.write(b"".join(self._pieces))
        self._pieces.clear()
        self._size = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Give the message again, from its beginning."""
        if self._file is not None:
            if self._pieces:
                await asyncio.to_thread(self._write_out)
            self._file.seek(0)
            while octets := await asyncio.to_thread(self._file.read, READ):
                yield octets
            return
        for piece in self._pieces:
            yield piece

    def close(self) -> None:
        """Forget the message."""
        self._pieces.clear()
        if self._file is not None:
            self._file.close()
