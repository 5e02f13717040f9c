"""The control socket: how ``preforkmx status``, ``reload``, ``upgrade``, ``drain`` get here.

One JSON object a line, ``{"command": …}``, one JSON line in return. Nothing here waits for a
client: a request has at most 4096 octets, there are at most 32 connections (more wait in the
socket's queue), a client that is silent or does not read is dropped after 30 s, and requests
are answered one after the other.
"""

from __future__ import annotations

import json
import logging
import select
import socket
from typing import TYPE_CHECKING, Any, Self

from preforkmx.master.handover import ConnectionState, ControlState
from preforkmx.master.reactor import READ, WRITE
from preforkmx.master.sockets import bind_unix

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from preforkmx.master.reactor import Reactor

REQUEST_OCTETS = 4096
CONNECTIONS = 32
IDLE_SECONDS = 30.0
REST_SECONDS = 1.0
"""How long no connection is accepted after one could not be."""

Answer = dict[str, Any]

_logger = logging.getLogger("preforkmx.master")


class ControlConnection:
    """One client. It has one request at a time; the next one is read after the answer."""

    def __init__(self, server: ControlServer, sock: socket.socket) -> None:
        self._server = server
        self._socket = sock
        self._input = b""
        self._output = b""
        self._busy = False
        self._last = False
        self._moving = False
        self.active = server.clock()
        """When it last moved, by the clock."""
        self.held = False
        """Kept open although it is silent: the answer, or the end of this process, is due."""
        self._watch()

    def hand_over(self) -> ConnectionState:
        """Return what another program in this process needs to serve this client."""
        return ConnectionState(
            socket=self._socket.fileno(),
            input=self._input.decode("latin-1"),
            output=self._output.decode("latin-1"),
            busy=self._busy,
            last=self._last,
            held=self.held,
            active=self.active,
        )

    @classmethod
    def taken_over(cls, server: ControlServer, state: ConnectionState) -> Self:
        """Return the client of an earlier program in this process."""
        connection = cls(server, socket.socket(fileno=state.socket))
        connection._input = state.input.encode("latin-1")
        connection._output = state.output.encode("latin-1")
        connection._busy, connection._last = state.busy, state.last
        connection.held, connection.active = state.held, state.active
        connection._watch()
        return connection

    @property
    def waits(self) -> bool:
        """Whether the answer to its request is due."""
        return self._busy

    def answer(self, answer: Answer, *, hold: bool = False) -> None:
        """Send the answer to the request that is open.

        :param hold: keep the connection after it, until this process exits.
        """
        self._busy = False
        self.held = hold
        # It could not move while it waited for this.
        self.active = self._server.clock()
        self._output += _line(answer)
        self._move()

    def _ready(self) -> None:
        self.active = self._server.clock()
        if self._output:
            self._move()
            return
        try:
            octets = self._socket.recv(REQUEST_OCTETS)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        # End-of-file: the client may only have said all it has to say, and wait for answers.
        self._last = not octets
        self._input += octets
        self._move()

    def _move(self) -> None:
        """Go on with what there is: send answers, take requests."""
        if self._moving:
            # A request was answered at once: the loop below goes on.
            return
        self._moving = True
        while self._send() and not self._busy and self._take_request():
            pass
        self._moving = False
        if self._socket.fileno() >= 0:
            self._watch()

    def _send(self) -> bool:
        """Send; whether everything is sent."""
        while self._output:
            try:
                count = self._socket.send(self._output)
            except BlockingIOError:
                return False
            except OSError:
                self.close()
                return False
            self._output = self._output[count:]
        return True

    def _take_request(self) -> bool:
        """Take the next request, if it is there whole; whether there may be more to do."""
        line, end, rest = self._input.partition(b"\n")
        if len(line) > REQUEST_OCTETS:
            self._input = b""
            self._last = True
            problem = f"a request has at most {REQUEST_OCTETS} octets"
            self._output = _line({"ok": False, "problems": [problem]})
            return True
        if not end:
            if self._last and not self.held:
                self.close()
            return False
        self._input = rest
        self._busy = True
        self.held = True
        self._server.handle(self, line)
        return True

    def _watch(self) -> None:
        if self._output:
            self._server.reactor.watch(self._socket, self._ready, WRITE)
        elif self._last or self._busy:
            # Nothing is wanted of a client before its answer; and one that has ended would
            # show as readable for ever.
            self._server.reactor.forget(self._socket)
        else:
            self._server.reactor.watch(self._socket, self._ready, READ)

    @property
    def left(self) -> bool:
        """Whether the client has closed its side for good: it reads no answer any more.

        One that has only said all it has to say does not count.
        """
        poll = select.poll()
        poll.register(self._socket, 0)
        return any(event & select.POLLHUP for _, event in poll.poll(0))

    def close(self) -> None:
        """Close the connection."""
        if self._socket.fileno() < 0:
            return
        self._server.reactor.forget(self._socket)
        self._socket.close()
        self._server.closed(self)

    def leave(self) -> None:
        """Close the descriptor only: in a child."""
        self._socket.close()


def _line(answer: Answer) -> bytes:
    return json.dumps(answer).encode() + b"\n"


class ControlServer:
    """The control socket and its connections.

    :param path: the socket's path. It is made with mode 0600, and a dead one is replaced: the
        caller holds the lock.
    :param handle: called with the connection and the command's name; it answers at once or
        later, exactly once, with :meth:`ControlConnection.answer`.
    :param clock: seconds that only grow.
    :param taken_over: the socket and the clients of an earlier program in this process.
    :raises StartRefused: the socket cannot be made.
    """

    def __init__(
        self,
        path: Path,
        reactor: Reactor,
        handle: Callable[[ControlConnection, str], None],
        clock: Callable[[], float],
        taken_over: ControlState | None = None,
    ) -> None:
        self._path = path
        self.reactor = reactor
        self._handle = handle
        self.clock = clock
        self._connections: list[ControlConnection] = []
        self._listening = False
        self._rest_until = 0.0
        self.replaced_dead = taken_over is None and path.is_socket()
        """Whether an earlier master left its socket behind: it was killed."""
        if taken_over is None:
            self._socket = bind_unix(path)
            return
        self._socket = socket.socket(fileno=taken_over.socket)
        self._connections += [
            ControlConnection.taken_over(self, state) for state in taken_over.connections
        ]
        self._listening = True
        self._watch()

    def hand_over(self) -> ControlState:
        """Return what another program in this process needs to serve the socket; it listens."""
        return ControlState(
            path=str(self._path),
            socket=self._socket.fileno(),
            connections=tuple(connection.hand_over() for connection in self._connections),
        )

    def waiting(self) -> list[ControlConnection]:
        """Return the clients whose answer is due."""
        return [connection for connection in self._connections if connection.waits]

    def listen(self) -> None:
        """Answer from now on; before this a client is refused, as if nobody were here."""
        self._socket.listen(CONNECTIONS)
        self._listening = True
        self._watch()

    def _watch(self) -> None:
        room = len(self._connections) < CONNECTIONS
        if self._listening and room and self.clock() >= self._rest_until:
            self.reactor.watch(self._socket, self._accept)
        else:
            self.reactor.forget(self._socket)

    def _accept(self) -> None:
        try:
            sock, _ = self._socket.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Out of descriptors: the socket stays readable, and asking again would spin.
            _logger.warning("a control connection could not be accepted: %s", error)
            self._rest_until = self.clock() + REST_SECONDS
            self._watch()
            return
        sock.setblocking(False)
        self._connections.append(ControlConnection(self, sock))
        self._watch()

    def handle(self, connection: ControlConnection, line: bytes) -> None:
        """Take one request line."""
        command = _command(line)
        if command is None:
            problem = 'a request is one line of JSON, {"command": NAME}'
            connection.answer({"ok": False, "problems": [problem]})
        else:
            self._handle(connection, command)

    def closed(self, connection: ControlConnection) -> None:
        """Take note that a connection is gone."""
        if connection in self._connections:
            self._connections.remove(connection)
            if self._listening:
                self._watch()

    def expire(self) -> None:
        """Drop clients that are silent, do not read, or have left before their answer was there;
        call this at least once a second."""
        before = self.clock() - IDLE_SECONDS
        for connection in self._connections[:]:
            if connection.left if connection.held else connection.active < before:
                connection.close()
        if self._listening:
            self._watch()

    def unlink(self) -> None:
        """Take no more connections and remove the path; those that are open stay so."""
        self._listening = False
        if self._socket.fileno() < 0:
            return
        self.reactor.forget(self._socket)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the connections: their clients learn that this process is done."""
        for connection in self._connections[:]:
            connection.close()

    def leave(self) -> None:
        """Close every descriptor and leave the path: in a child."""
        self._socket.close()
        for connection in self._connections:
            connection.leave()


def _command(line: bytes) -> str | None:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(request, dict):
        return None
    command = request.get("command")
    return command if isinstance(command, str) else None
