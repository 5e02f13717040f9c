"""The control socket, with real clients and a reactor that is turned by hand."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from preforkmx.master.control import CONNECTIONS, IDLE_SECONDS, ControlConnection, ControlServer
from preforkmx.master.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Desk:
    """A control server whose commands the test answers."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "control.sock"
        self.now = 0.0
        self.reactor = Reactor()
        self.open: list[ControlConnection] = []
        self.commands: list[str] = []
        self.server = ControlServer(self.path, self.reactor, self.handle, lambda: self.now)
        self.clients = ExitStack()

    def handle(self, connection: ControlConnection, command: str) -> None:
        """Answer "echo" at once, keep everything else open."""
        self.commands.append(command)
        if command == "echo":
            connection.answer({"number": len(self.commands)})
        elif command == "hold":
            connection.answer({"ok": True}, hold=True)
        elif command == "large":
            connection.answer({"text": "x" * 5_000_000})
        else:
            self.open.append(connection)

    def client(self) -> socket.socket:
        """Connect."""
        sock = self.clients.enter_context(socket.socket(socket.AF_UNIX))
        sock.settimeout(0.05)
        sock.connect(str(self.path))
        return sock

    def turn(self, count: int = 4) -> None:
        """Let the server do what there is to do."""
        for _ in range(count):
            self.reactor.turn(0)

    def ask(self, sock: socket.socket, octets: bytes) -> list[Any]:
        """Send octets, let the server work, return the answers."""
        sock.sendall(octets)
        self.turn()
        return answers(sock)


def answers(sock: socket.socket) -> list[Any]:
    """Return the answers that are here; None at the end stands for end-of-file."""
    octets, ended = b"", False
    try:
        while piece := sock.recv(65536):
            octets += piece
        ended = True
    except TimeoutError:
        pass
    return [json.loads(line) for line in octets.splitlines()] + ([None] if ended else [])


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    desk.server.listen()
    yield desk
    desk.clients.close()
    desk.server.unlink()
    desk.server.close()
    desk.reactor.close()


def test_a_request_is_a_line_and_so_is_the_answer(desk: Desk) -> None:
    client = desk.client()
    assert desk.ask(client, b'{"command": "echo"}\n') == [{"number": 1}]
    assert desk.ask(client, b'{"command": "echo"}\n') == [{"number": 2}]


def test_a_request_in_pieces_is_taken_when_it_is_whole(desk: Desk) -> None:
    client = desk.client()
    assert desk.ask(client, b'{"comm') == []
    assert desk.ask(client, b'and": "echo"}\n') == [{"number": 1}]


def test_many_requests_in_one_piece_are_answered_one_after_the_other(desk: Desk) -> None:
    client = desk.client()
    requests = b'{"command":"echo"}\n' * 200
    assert desk.ask(client, requests) == [{"number": n} for n in range(1, 201)]


def test_a_client_that_has_said_all_still_gets_its_answer(desk: Desk) -> None:
    client = desk.client()
    client.sendall(b'{"command": "later"}\n')
    client.shutdown(socket.SHUT_WR)
    desk.turn()
    assert answers(client) == []
    desk.open[0].answer({"ok": True})
    desk.turn()
    assert answers(client) == [{"ok": True}, None]


def test_the_next_request_waits_for_the_answer_to_the_one_before(desk: Desk) -> None:
    client = desk.client()
    assert desk.ask(client, b'{"command": "later"}\n{"command": "echo"}\n') == []
    assert desk.commands == ["later"]
    desk.open[0].answer({"ok": True})
    desk.turn()
    assert answers(client) == [{"ok": True}, {"number": 2}]


@pytest.mark.parametrize(
    "request_line",
    [
        b"status\n",
        b"[]\n",
        b'{"command": 7}\n',
        b"{}\n",
        b"\xff\xfe\n",
        b"[" * 4000 + b"\n",
        b'{"command": "echo"\n',
        b"\n",
    ],
)
def test_what_is_no_request_is_a_problem_and_no_more(desk: Desk, request_line: bytes) -> None:
    client = desk.client()
    (answer,) = desk.ask(client, request_line)
    assert answer["ok"] is False
    assert desk.ask(client, b'{"command": "echo"}\n') == [{"number": 1}]


@pytest.mark.parametrize("octets", [b"x" * 4097, b"x" * 8000 + b"\n", b" " * 100_000])
def test_a_request_that_is_too_long_is_answered_and_ends_the_connection(
    desk: Desk, octets: bytes
) -> None:
    client = desk.client()
    client.setblocking(False)
    client.send(octets)
    client.settimeout(0.05)
    desk.turn(40)
    answer, end = answers_or_reset(client)
    assert answer is None or answer["ok"] is False
    assert end is None


def answers_or_reset(sock: socket.socket) -> list[Any]:
    """Return the answer and the end; a client that goes on writing may find neither."""
    try:
        return answers(sock)
    except ConnectionResetError:
        return [None, None]


def test_at_most_32_connections_are_served_and_the_others_wait(desk: Desk) -> None:
    clients = [desk.client() for _ in range(CONNECTIONS)]
    desk.turn(CONNECTIONS)
    last = desk.client()
    assert desk.ask(last, b'{"command": "echo"}\n') == []
    clients[0].close()
    assert desk.ask(last, b"") == [{"number": 1}]


def test_a_client_that_is_silent_is_dropped_after_a_while(desk: Desk) -> None:
    client = desk.client()
    desk.turn()
    desk.now += IDLE_SECONDS
    desk.server.expire()
    assert answers(client) == []
    desk.now += 0.1
    desk.server.expire()
    assert answers(client) == [None]


def test_a_client_that_does_not_read_holds_nobody_up_and_is_dropped(desk: Desk) -> None:
    lazy, other = desk.client(), desk.client()
    lazy.sendall(b'{"command": "large"}\n')
    desk.turn()
    assert desk.ask(other, b'{"command": "echo"}\n') == [{"number": 2}]
    desk.now += IDLE_SECONDS + 1
    other.sendall(b'{"command": "echo"}\n')
    desk.turn()
    desk.server.expire()
    desk.turn()
    assert len(lazy.recv(10)) == 10, "what was sent is still there"
    assert answers(other) == [{"number": 3}]
    with pytest.raises(json.JSONDecodeError):
        answers(lazy)


def test_a_slow_reader_gets_the_whole_answer(desk: Desk) -> None:
    client = desk.client()
    client.sendall(b'{"command": "large"}\n')
    octets = b""
    while not octets.endswith(b"\n"):
        desk.turn()
        octets += client.recv(1 << 20)
    assert json.loads(octets) == {"text": "x" * 5_000_000}


def test_who_waits_for_an_answer_or_for_the_end_is_not_dropped(desk: Desk) -> None:
    waiting, held = desk.client(), desk.client()
    assert desk.ask(waiting, b'{"command": "later"}\n') == []
    assert desk.ask(held, b'{"command": "hold"}\n') == [{"ok": True}]
    desk.now += 10 * IDLE_SECONDS
    desk.server.expire()
    desk.turn()
    desk.open[0].answer({"ok": True})
    assert answers(waiting) == [{"ok": True}]
    assert answers(held) == []
    desk.server.unlink()
    desk.server.close()
    assert answers(held) == [None]


def test_clients_that_left_before_their_answer_leave_their_place_to_others(desk: Desk) -> None:
    for _ in range(CONNECTIONS):
        client = desk.client()
        desk.ask(client, b'{"command": "later"}\n')
        client.close()
    last = desk.client()
    assert desk.ask(last, b'{"command": "echo"}\n') == []
    desk.server.expire()
    assert desk.ask(last, b"") == [{"number": CONNECTIONS + 1}]
    assert desk.server.waiting() == []
    for connection in desk.open:
        connection.answer({"ok": True})


def test_a_client_that_has_said_all_and_waits_is_none_that_left(desk: Desk) -> None:
    client = desk.client()
    client.sendall(b'{"command": "later"}\n')
    client.shutdown(socket.SHUT_WR)
    desk.turn()
    desk.server.expire()
    desk.open[0].answer({"ok": True})
    desk.turn()
    assert answers(client) == [{"ok": True}, None]


def test_the_patience_with_a_client_begins_with_its_answer(desk: Desk) -> None:
    client = desk.client()
    desk.ask(client, b'{"command": "later"}\n')
    desk.now += 10 * IDLE_SECONDS
    desk.open[0].answer({"ok": True})
    desk.server.expire()
    assert answers(client) == [{"ok": True}]
    assert desk.ask(client, b'{"command": "echo"}\n') == [{"number": 2}]


def test_a_client_that_went_away_gets_no_answer_and_does_no_harm(desk: Desk) -> None:
    client = desk.client()
    desk.ask(client, b'{"command": "later"}\n')
    client.close()
    desk.turn()
    desk.open[0].answer({"ok": True})
    desk.turn()
    assert desk.ask(desk.client(), b'{"command": "echo"}\n') == [{"number": 2}]


def test_out_of_descriptors_it_rests_for_a_second_and_does_not_spin(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: socket.socket) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "accept", fail)
        client = desk.client()
        for _ in range(20):
            desk.turn()
            desk.server.expire()
    assert caplog.text.count("Too many open files") == 1
    desk.now += 1.0
    desk.server.expire()
    assert desk.ask(client, b'{"command": "echo"}\n') == [{"number": 1}]


def test_before_it_listens_a_client_is_refused_as_if_nobody_were_here(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    with pytest.raises(ConnectionRefusedError):
        desk.client()
    desk.clients.close()
    desk.server.unlink()
    desk.reactor.close()
    assert not desk.path.exists()


def test_the_socket_of_a_master_that_was_killed_is_noticed_and_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control.sock"))
    desk = Desk(tmp_path)
    assert desk.server.replaced_dead
    assert desk.path.stat().st_mode & 0o777 == 0o600
    desk.server.unlink()
    desk.reactor.close()
