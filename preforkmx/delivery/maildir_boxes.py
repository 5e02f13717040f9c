"""The mailboxes below one path: made when they are first needed, and durable then.

Everything here blocks: it is called in the delivery's threads.
"""

# Paths are text here, pathlib would double what a delivery costs; "/tmp" is a Maildir's own.
# ruff: noqa: PTH102, PTH108, PTH120, S108

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress

STALE = 36 * 3600.0
"""Seconds after which a file in ``tmp/`` is nobody's: the Maildir format's own number."""

#: Mailboxes that are remembered as durable; one that is forgotten costs three fsyncs.
_MAX_KNOWN = 16_384
#: Files that one look at a ``tmp/`` considers.
_MAX_SWEPT = 1_000


def sync_directory(path: str) -> None:
    """Bring the entries of a directory to stable storage."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Mailboxes:
    """Mailboxes ``<path>/<domain>/<local part>/{tmp,new,cur}``.

    Another process may have made a directory a moment ago and not have synced it yet, so a
    mailbox that this process sees for the first time is synced up to `path`, whoever made it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._known: dict[str, None] = {}
        self._lock = threading.Lock()

    def directory(self, mailbox: str) -> str:
        """Return the directory of `mailbox` (``domain/local``)."""
        return f"{self._path}/{mailbox}"

    def prepare(self, mailbox: str) -> None:
        """Make the mailbox if it is not there, and its directories durable up to `path`.

        :raises OSError: when that fails; what was made stays, and is synced by the next try.
        """
        with self._lock:
            if mailbox in self._known:
                return
        directory = self.directory(mailbox)
        domain = os.path.dirname(directory)
        for made in (domain, directory, *(f"{directory}/{name}" for name in _SUBDIRECTORIES)):
            with suppress(FileExistsError):
                os.mkdir(made, 0o700)
        # From the leaves up: an entry is durable before the name that leads to it.
        for changed in (directory, domain, self._path):
            sync_directory(changed)
        _sweep(f"{directory}/tmp")
        with self._lock:
            self._known[mailbox] = None
            if len(self._known) > _MAX_KNOWN:
                del self._known[next(iter(self._known))]

    def forget(self, mailbox: str) -> None:
        """Look at the mailbox anew next time: something about it failed."""
        with self._lock:
            self._known.pop(mailbox, None)


_SUBDIRECTORIES = ("tmp", "new", "cur")


def _sweep(directory: str) -> None:
    """Remove what a crash left in a ``tmp/`` more than :data:`STALE` seconds ago."""
    limit = time.time() - STALE
    with suppress(OSError), os.scandir(directory) as entries:
        for _, entry in zip(range(_MAX_SWEPT), entries, strict=False):
            with suppress(OSError):
                if entry.stat(follow_symlinks=False).st_mtime < limit:
                    os.unlink(entry.path)
