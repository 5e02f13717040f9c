"""Delivery into Maildirs: durable before the 250.

What is written where, in which order, and what a crash can leave behind is described in
docs/reference/maildir.md.
"""

# Paths are text here, as in maildir_boxes.py.
# ruff: noqa: PTH102, PTH112, PTH120

from __future__ import annotations

import errno
import os
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from preforkmx.delivery.maildir_boxes import sync_directory
from preforkmx.delivery.maildir_path import mailbox_path
from preforkmx.delivery.maildir_writers import Writers
from preforkmx.delivery.trace import trace
from preforkmx.errors import BootError, SMTPError
from preforkmx.middleware.base import Middleware

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path
    from typing import Any

    from preforkmx.context import Context
    from preforkmx.model import Envelope, Peer

EXTENSIONS = frozenset({"BINARYMIME", "SMTPUTF8"})
"""What a Maildir can promise: octets are stored as they came, and UTF-8 in addresses is kept.
It sends no notifications (DSN), and marks no message for those that read it (REQUIRETLS)."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def maildir(path: Path, *, hostname: str, threads: int = 16) -> Middleware:
    """Deliver each message to ``<path>/<domain>/<local part>/new/`` of its recipients.

    :param path: where the Maildirs are; made at boot if it is not there.
    :param hostname: this server's name: in Received, in the files' names, and the domain of
        recipients that have none.
    :param threads: jobs of one process that may write and sync at the same time.

    A full file system or quota is answered with 452 4.3.1, any other failure of the file
    system with 451 4.3.0 (and logged with its stack): the sender keeps the message.
    """
    delivery = MaildirDelivery(path, hostname=hostname, threads=threads)
    return Middleware(
        handler=delivery.handle,
        lifespan=delivery.lifespan,
        name="maildir",
        extensions=EXTENSIONS,
    )


class MaildirDelivery:
    """The handler of :func:`maildir`, and its threads while a worker runs.

    :param clock: seconds since the epoch, for the date in Received.
    """

    def __init__(
        self,
        path: Path,
        *,
        hostname: str,
        threads: int = 16,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = str(path.absolute())
        self._hostname = hostname
        self._threads = threads
        self._clock = clock
        self._writers: Writers | None = None

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Make the path where it is missing, and have the threads until the worker stops.

        :raises BootError: when mailboxes cannot be made below the path.
        """
        try:
            _make_durable(self._path)
        except OSError as error:
            raise BootError(f"mail cannot be stored in {self._path}: {error.strerror}") from error
        if not os.access(self._path, os.W_OK | os.X_OK):
            raise BootError(f"mail cannot be stored in {self._path}: it cannot be written")
        self._writers = writers = Writers(self._path, self._hostname, self._threads)
        try:
            yield
        finally:
            self._writers = None
            await writers.close()

    async def handle(self, ctx: Context, peer: Peer, envelope: Envelope) -> None:
        """Deliver `envelope`; a return means that it is on stable storage.

        :raises SMTPError: 452 4.3.1 and 451 4.3.0, as :func:`maildir` says.
        :raises MessageAborted: the message's own; nothing of it is left then.
        """
        writers = self._writers
        if writers is None:
            raise RuntimeError("the lifespan of this delivery was not entered")
        recipients = envelope.recipients
        targets = list(
            dict.fromkeys([mailbox_path(recipient, self._hostname) for recipient in recipients])
        )
        header = trace(
            peer,
            envelope.sender,
            recipients[0] if len(targets) == 1 else None,
            transaction=envelope.id,
            hostname=self._hostname,
            now=self._clock(),
            smtputf8=envelope.smtputf8,
        )
        arriving = writers.stage(targets, header)
        try:
            async for chunk in envelope.data:
                if arriving.add(chunk):
                    await self._answering(ctx, arriving.write_out())
            await self._answering(ctx, arriving.deliver())
        except BaseException:
            arriving.abandon()
            raise
        finally:
            arriving.release()

    async def _answering(self, ctx: Context, step: Coroutine[Any, Any, None]) -> None:
        """Await a step of the disk's; when it fails the client gets the reply that fits."""
        try:
            await step
        except OSError as error:
            if error.errno in _FULL:
                ctx.logger.error("no room for a message in %s: %s", self._path, error.strerror)
                raise SMTPError(452, "Insufficient system storage", enhanced=(4, 3, 1)) from error
            ctx.logger.exception("a message cannot be stored in %s", self._path)
            raise SMTPError(
                451, "The message cannot be stored at the moment", enhanced=(4, 3, 0)
            ) from error


def _make_durable(path: str) -> None:
    """Make `path` and what is missing above it, so that it outlives a crash."""
    parent = os.path.dirname(path)
    if parent != path and not os.path.isdir(parent):
        _make_durable(parent)
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    # Also when it was there: another worker may have made it a moment ago. Whoever made it
    # may read its parent, and has synced it, or is a worker as we are.
    with suppress(PermissionError):
        sync_directory(parent)
