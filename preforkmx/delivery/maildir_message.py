"""One message on its way into its mailboxes, and several of them together.

Everything here blocks: it is called in the delivery's threads. The order of the steps is the
promise (docs/reference/maildir.md): nothing appears in ``new/`` before the whole message is on
stable storage, every step that can want for space comes before the first rename, and a step
that fails takes back what the steps before it did.
"""

# Paths are text here, pathlib would double what a delivery costs; "/tmp" is a Maildir's own.
# ruff: noqa: PTH104, S108

from __future__ import annotations

import errno
import logging
import os
import threading
from typing import TYPE_CHECKING

from preforkmx.delivery.maildir_boxes import Mailboxes, sync_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

#: What os.link says where a file cannot have this second name: another file system, too many
#: names, or a file system without hard links.
_NO_LINK = frozenset({errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP})
_COPY_CHUNK = 1 << 20


class Abandoned(Exception):
    """The message is not wanted any more; its files are gone."""


class StagedMessage:
    """A message that is written into ``tmp/`` of its mailboxes and then renamed into ``new/``.

    :param mailboxes: where mailboxes are.
    :param targets: the message's mailboxes, each ``domain/local`` and each once.
    :param name: the name of its files, never used before.

    Any thread may call the methods, in the order in which they stand here. :meth:`discard`
    fits anywhere before :meth:`finish`, and waits for a method that is running.
    """

    def __init__(self, mailboxes: Mailboxes, targets: Sequence[str], name: str) -> None:
        self._mailboxes = mailboxes
        self._targets = targets
        self._name = name
        self._lock = threading.Lock()
        self._descriptor = -1
        self._opened = False
        self._finished = False
        #: Mailboxes that have a file in tmp/, and in new/.
        self._in_tmp: list[str] = []
        self._in_new: list[str] = []
        self.abandoned = False
        """Set it, from any thread, and the message is not delivered, unless it already is."""

    @property
    def new_directories(self) -> list[str]:
        """The directories that :meth:`rename` changes."""
        return [f"{self._mailboxes.directory(target)}/new" for target in self._targets]

    def write(self, octets: bytes | bytearray) -> None:
        """Write `octets` behind what was written; the first call makes the file."""
        with self._lock:
            self._check()
            if not self._opened:
                self._open()
            _write_all(self._descriptor, octets)

    def sync(self) -> None:
        """Bring the file's content to stable storage."""
        with self._lock:
            self._check()
            os.fsync(self._descriptor)
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def link(self) -> None:
        """Give the file its names in the other mailboxes' ``tmp/``."""
        with self._lock:
            self._check()
            first, *others = self._targets
            for target in others:
                self._mailboxes.prepare(target)
                self._in_tmp.append(target)
                try:
                    os.link(self._tmp(first), self._tmp(target))
                except OSError as error:
                    if error.errno not in _NO_LINK:
                        raise
                    _copy(self._tmp(first), self._tmp(target))

    def rename(self) -> None:
        """Let the message appear in every ``new/``."""
        with self._lock:
            self._check()
            for target in self._targets:
                os.rename(self._tmp(target), self._new(target))
                self._in_new.append(target)
                self._in_tmp.remove(target)

    def finish(self) -> None:
        """It is delivered, and every directory is synced: nothing is taken back any more."""
        with self._lock:
            self._check()
            self._finished = True

    def discard(self) -> None:
        """Remove every file of a message that will not be delivered. Never raises."""
        with self._lock:
            self.abandoned = True
            if self._finished:
                return
            if self._descriptor >= 0:
                descriptor, self._descriptor = self._descriptor, -1
                _attempt(os.close, descriptor)
            for target in self._in_tmp:
                _attempt(os.unlink, self._tmp(target))
            for target in self._in_new:
                _attempt(os.unlink, self._new(target))
            self._in_tmp.clear()
            self._in_new.clear()
            for target in self._targets:
                self._mailboxes.forget(target)

    def _check(self) -> None:
        if self.abandoned:
            raise Abandoned

    def _open(self) -> None:
        first = self._targets[0]
        self._mailboxes.prepare(first)
        try:
            self._create(first)
        except FileNotFoundError:
            # Somebody removed the mailbox while the server was running.
            self._mailboxes.forget(first)
            self._mailboxes.prepare(first)
            self._create(first)

    def _create(self, target: str) -> None:
        self._descriptor = os.open(
            self._tmp(target), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )
        self._opened = True
        self._in_tmp.append(target)

    def _tmp(self, target: str) -> str:
        return f"{self._mailboxes.directory(target)}/tmp/{self._name}"

    def _new(self, target: str) -> str:
        return f"{self._mailboxes.directory(target)}/new/{self._name}"


def deliver_together(
    batch: Sequence[tuple[StagedMessage, bytes | bytearray]],
) -> list[Exception | None]:
    """Deliver each message, with its last octets; one's failure is no other's.

    The messages go through each step together, so that they share what the disk does for
    them: the files are synced one after another when all of them are written, and a directory
    is synced once for all messages that were renamed into it.

    :returns: for each message None when it is durable, else what went wrong; then nothing of
        it is left.
    """
    failures: dict[StagedMessage, Exception] = {}

    def each(step: Callable[[StagedMessage], None]) -> None:
        for message, _ in batch:
            if message not in failures:
                try:
                    step(message)
                except Exception as error:
                    failures[message] = error
                    message.discard()

    rests = dict(batch)
    each(lambda message: message.write(rests[message]))
    each(StagedMessage.sync)
    each(StagedMessage.link)
    each(StagedMessage.rename)

    changed: dict[str, list[StagedMessage]] = {}
    for message, _ in batch:
        if message not in failures:
            for directory in message.new_directories:
                changed.setdefault(directory, []).append(message)
    for directory, messages in changed.items():
        try:
            sync_directory(directory)
        except Exception as error:
            for message in messages:
                if failures.setdefault(message, error) is error:
                    message.discard()
    each(StagedMessage.finish)
    return [failures.get(message) for message, _ in batch]


def _write_all(descriptor: int, octets: bytes | bytearray) -> None:
    written = os.write(descriptor, octets)
    while written < len(octets):
        # A write may take less than it was given; when the disk is full the next one says so.
        written += os.write(descriptor, memoryview(octets)[written:])


def _copy(source: str, target: str) -> None:
    """Write a second, durable file where a second name is not possible."""
    reader = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            while octets := os.read(reader, _COPY_CHUNK):
                _write_all(writer, octets)
            os.fsync(writer)
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _attempt(remove: Callable[[int], None] | Callable[[str], None], what: int | str) -> None:
    try:
        remove(what)  # type: ignore[arg-type]
    except FileNotFoundError:
        pass
    except OSError:
        logger.warning("%s cannot be cleared away", what, exc_info=True)
