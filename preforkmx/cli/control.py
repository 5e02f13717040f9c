"""The client's end of the control socket: one JSON object a line each way."""

from __future__ import annotations

import json
import os
import select
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from preforkmx.errors import PreforkmxError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

ANSWER_SECONDS = 10.0
"""How long an answer that is ready at once may take."""
RELOAD_SECONDS = 3600.0
"""How long a reload may take: each slot's worker imports the site's code."""
LARGEST_ANSWER = 16 << 20
"""Octets of an answer; the status of a thousand workers is far below."""
EXIT_SECONDS = 5.0
"""How long a master that has closed its connections may take to exit."""
_PEER_CREDENTIALS = struct.Struct("3i")


class NotRunning(PreforkmxError):
    """Nobody answers on the control socket."""


class ControlError(PreforkmxError):
    """The control socket cannot be used, or what came from it is no answer."""


class Control:
    """A connection to a running master.

    :param path: the control socket.
    :raises NotRunning: there is no server.
    :raises ControlError: it may not be asked.
    """

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(ANSWER_SECONDS)
        try:
            self._socket.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            self._socket.close()
            raise NotRunning(f"not running: nobody answers on {path}") from None
        except OSError as error:
            self._socket.close()
            raise ControlError(f"{path} cannot be used: {error.strerror or error}") from None
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def ask(self, command: str, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
        """Send a command and return its answer.

        :raises NotRunning: the server ended before it answered.
        :raises ControlError: there was no answer within `seconds`, or none that can be read.
        """
        self._socket.settimeout(seconds)
        try:
            self._socket.sendall(json.dumps({"command": command}).encode() + b"\n")
            line = self._line()
        except TimeoutError:
            raise ControlError(f"no answer on {self._path} within {seconds:g} s") from None
        except OSError:
            raise NotRunning("the server ended before it answered") from None
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise ControlError(f"what came from {self._path} is no answer")
        return answer

    def _line(self) -> bytes:
        octets = b""
        while not octets.endswith(b"\n"):
            more = self._socket.recv(65536)
            if not more:
                raise ConnectionResetError
            octets += more
            if len(octets) > LARGEST_ANSWER:
                raise ControlError(f"what came from {self._path} is no answer")
        return octets

    def wait_for_exit(self) -> bool:
        """Wait until the master is gone.

        It keeps the connection open for as long as it drains, which its configuration bounds;
        so this has no deadline of its own. After that it is given 5 s to exit.

        :return: False when it was still there after that. A master that cannot be seen from here
            (in another PID namespace) is gone when its connection is.
        """
        process = self._master()
        try:
            self._socket.settimeout(None)
            with suppress(OSError):
                while self._socket.recv(4096):
                    pass
            if process is None:
                return True
            waiting = select.poll()
            waiting.register(process, select.POLLIN)
            return bool(waiting.poll(EXIT_SECONDS * 1000))
        finally:
            if process is not None:
                os.close(process)

    def _master(self) -> int | None:
        """Return a descriptor of the master's process, None where it cannot be seen from here."""
        size = _PEER_CREDENTIALS.size
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        # In our own PID namespace; 0 from outside of it.
        pid = _PEER_CREDENTIALS.unpack(credentials)[0]
        try:
            return os.pidfd_open(pid) if pid > 0 else None
        except OSError:
            return None
