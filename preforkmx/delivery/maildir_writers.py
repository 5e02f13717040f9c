"""The loop's side of a Maildir delivery: what stays in memory, and what a thread is given."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from preforkmx.delivery.batches import Batches
from preforkmx.delivery.maildir_boxes import Mailboxes
from preforkmx.delivery.maildir_message import StagedMessage, deliver_together
from preforkmx.delivery.maildir_name import MessageNames

if TYPE_CHECKING:
    from collections.abc import Sequence

WHOLE = 256 * 1024
"""Octets up to which a message is kept in memory and written by one job of a thread."""
MEMORY = 64 * 1024 * 1024
"""Octets of messages that one process keeps in memory; beyond, every chunk is written at once."""

#: Messages that share a batch at most.
_BATCH = 8


class Writers:
    """The threads that write the messages of one process, and the memory that these may take.

    :param path: where the Maildirs are.
    :param hostname: stands in the files' names.
    :param threads: jobs that run at the same time at most.
    """

    def __init__(self, path: str, hostname: str, threads: int) -> None:
        self.held = 0
        """Octets of messages in memory."""
        self._mailboxes = Mailboxes(path)
        self._names = MessageNames(hostname)
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="preforkmx-maildir")
        self._batches = Batches(self._executor, deliver_together, size=_BATCH, limit=threads)
        self._loop = asyncio.get_running_loop()

    def stage(self, targets: Sequence[str], header: bytes) -> ArrivingMessage:
        """Begin a message for the mailboxes `targets`; nothing touches the disk yet."""
        message = StagedMessage(self._mailboxes, targets, self._names.next())
        return ArrivingMessage(self, message, header)

    def write(self, message: StagedMessage, octets: bytearray) -> asyncio.Future[None]:
        """Write `octets` in a thread."""
        return self._loop.run_in_executor(self._executor, message.write, octets)

    async def deliver(self, message: StagedMessage, rest: bytearray) -> None:
        """Write `rest` and deliver the message, in a thread, maybe together with others."""
        await self._batches.run((message, rest))

    def discard(self, message: StagedMessage) -> None:
        """Remove the message's files, in a thread and without waiting for it."""
        self._executor.submit(message.discard)

    async def close(self) -> None:
        """Wait for what is still running, and end the threads."""
        await asyncio.to_thread(self._executor.shutdown)


class ArrivingMessage:
    """A message that is read from its client: in memory while it is small, else in a file.

    At most two pieces of :data:`WHOLE` octets of it are in memory: one that is being written,
    and one that is being read.
    """

    def __init__(self, writers: Writers, message: StagedMessage, header: bytes) -> None:
        self._writers = writers
        self._message = message
        self._buffer = bytearray(header)
        self._writing: asyncio.Future[None] | None = None
        self._in_writing = 0
        self._on_disk = False
        writers.held += len(header)

    def add(self, chunk: bytes) -> bool:
        """Take a chunk; True asks for :meth:`write_out` before the next one."""
        self._buffer += chunk
        self._writers.held += len(chunk)
        return len(self._buffer) > WHOLE or self._writers.held > MEMORY

    async def write_out(self) -> None:
        """Give what is in memory to a thread, when it is done with the piece before.

        :raises OSError: when this piece or the one before cannot be written.
        """
        await self._written()
        octets, self._buffer = self._buffer, bytearray()
        self._on_disk = True
        self._in_writing = len(octets)
        self._writing = self._writers.write(self._message, octets)
        if self._writers.held > MEMORY:
            await self._written()

    async def deliver(self) -> None:
        """Return when the message, which is complete now, is durable in every mailbox.

        :raises OSError: when it cannot be; nothing of it is left then.
        """
        await self._written()
        await self._writers.deliver(self._message, self._buffer)

    def abandon(self) -> None:
        """The message will not be delivered: remove what there is of it."""
        # A batch that has it already sees this before it renames, and once more at its end.
        self._message.abandoned = True
        if self._writing is not None:
            self._writing.add_done_callback(_look_at)
        if self._on_disk:
            self._writers.discard(self._message)

    def release(self) -> None:
        """The message's memory is free again."""
        self._writers.held -= len(self._buffer) + self._in_writing
        self._buffer = bytearray()
        self._in_writing = 0

    async def _written(self) -> None:
        if self._writing is not None:
            await self._writing
            self._writing = None
            self._writers.held -= self._in_writing
            self._in_writing = 0


def _look_at(writing: asyncio.Future[None]) -> None:
    """Take note of an exception that nobody needs any more."""
    if not writing.cancelled():
        writing.exception()
