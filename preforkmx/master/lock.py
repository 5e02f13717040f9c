"""The lock beside the control socket: one master a configuration."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Self

from preforkmx.master.errors import StartRefused

if TYPE_CHECKING:
    from pathlib import Path


class MasterLock:
    """``flock(2)`` on ``<control>.lock``, held for life.

    The kernel lets go of it when the last copy of the descriptor is closed, so children close
    theirs. The file stays: to unlink it would let a second master lock another file of the
    same name.

    :raises StartRefused: another master holds it, or the file cannot be made.
    """

    def __init__(self, control: Path) -> None:
        path = control.with_name(f"{control.name}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartRefused(f"{path} cannot be made: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise StartRefused(
                f"another preforkmx runs with the control socket {control}"
                + (f" (process {holder})" if holder else "")
            ) from None
        except OSError as error:
            os.close(self._fd)
            raise StartRefused(f"{path} cannot be locked: {error.strerror}") from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    @classmethod
    def taken_over(cls, fd: int) -> Self:
        """Return the lock that an earlier program in this process took."""
        lock = cls.__new__(cls)
        lock._fd = fd
        return lock

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def close(self) -> None:
        """Close the descriptor; in the master this lets go of the lock."""
        os.close(self._fd)
