"""Unix listeners: one socket, which the workers of all slots accept from.

There is no group to steer, no segment to filter and no queue to look at. What takes their
place: a path that is unlinked finds no new client, and what its socket has queued is accepted
until there is nothing left. A worker that was killed loses nothing that is queued, since the
master and the other workers have the same socket; a worker that retires stops reading and
closes its copy.
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Self

from preforkmx.master.errors import StartRefused
from preforkmx.master.sockets import bind_unix

if TYPE_CHECKING:
    from pathlib import Path

MODE = 0o666
"""The sockets' mode: mail servers and proxies run as users of their own. Who may connect is
said by the folder, as a port of loopback cannot say it."""

_logger = logging.getLogger("preforkmx.master")


class UnixSocket:
    """A unix socket that listens, and its file.

    :param mode: the file's; 0 lets nobody but root in before :meth:`admit`.
    :raises StartRefused: somebody listens there, or the path cannot be bound.
    """

    def __init__(self, path: Path, backlog: int, mode: int = MODE) -> None:
        refuse_live(path)
        self._path = path
        self.socket = bind_unix(path, mode)
        try:
            self.file = _identity(path)
            """Device and inode of the file."""
            self.socket.listen(backlog)
        except OSError as error:
            self.socket.close()
            path.unlink(missing_ok=True)
            raise StartRefused(f"unix:{path} cannot be listened on: {error.strerror}") from error

    @classmethod
    def taken_over(cls, path: Path, fd: int, file: tuple[int, int]) -> Self:
        """Return the socket of an earlier program in this process.

        :param file: device and inode.
        """
        made = cls.__new__(cls)
        made._path = path
        made.socket = socket.socket(fileno=fd)
        made.file = file
        return made

    def admit(self) -> None:
        """Let everybody connect who may enter the folder."""
        try:
            if _identity(self._path) == self.file:
                self._path.chmod(MODE)
        except OSError as error:
            _logger.warning("clients cannot be let in at unix:%s: %s", self._path, error.strerror)

    def unlink(self) -> None:
        """Remove the file, unless it is gone, or another server's by now."""
        try:
            if _identity(self._path) == self.file:
                self._path.unlink()
        except OSError:
            # Gone, or its folder is: there is nothing that a client could find.
            return


def refuse_live(path: Path) -> None:
    """Let pass a path where nothing is, or a socket on which nobody listens any more.

    :raises StartRefused: somebody listens there, or it cannot be told, or it is no socket.
    """
    try:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise StartRefused(f"unix:{path} cannot be bound: {error.strerror}") from error
    with client:
        client.setblocking(False)
        try:
            client.connect(str(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            if path.is_socket():
                return
            raise StartRefused(f"unix:{path} is taken: a file that is no socket is there") from None
        except BlockingIOError:
            # Its queue is full, so somebody listens.
            pass
        except OSError as error:
            raise StartRefused(f"unix:{path} cannot be bound: {error.strerror or error}") from error
    raise StartRefused(f"unix:{path} is taken: another process listens there")


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino
