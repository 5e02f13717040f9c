from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from preforkmx.cli import control
from preforkmx.cli.control import Control, ControlError, NotRunning


@contextmanager
def answering(path, answer):
    """Listen on `path`; hand the first connection and its request line to `answer`."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(1)

    def serve():
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as lines:
            answer(connection, lines.readline())

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        thread.join(10)
        listener.close()
        assert not thread.is_alive()


def test_a_command_is_one_json_line_and_so_is_its_answer(tmp_path):
    requests = []

    def answer(connection, line):
        requests.append(json.loads(line))
        connection.sendall(b'{"ok": true, ')
        connection.sendall(b'"generation": 4}\n')

    with answering(tmp_path / "s", answer), Control(tmp_path / "s") as server:
        assert server.ask("reload") == {"ok": True, "generation": 4}
    assert requests == [{"command": "reload"}]


def test_without_a_socket_nobody_runs(tmp_path):
    with pytest.raises(NotRunning, match=r"not running: nobody answers on .*/s$"):
        Control(tmp_path / "s")


def test_a_socket_that_was_left_behind_is_nobody(tmp_path):
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    dead.bind(str(tmp_path / "s"))
    dead.close()
    with pytest.raises(NotRunning):
        Control(tmp_path / "s")


def test_what_cannot_be_a_socket_is_an_error_and_not_nobody(tmp_path):
    with pytest.raises(ControlError, match="cannot be used"):
        Control(tmp_path / ("x" * 200))


def test_a_server_that_ends_before_its_answer_is_not_running(tmp_path):
    def answer(connection, line):
        connection.sendall(b'{"ok"')

    with (
        answering(tmp_path / "s", answer),
        Control(tmp_path / "s") as server,
        pytest.raises(NotRunning, match="ended before it answered"),
    ):
        server.ask("reload")


def test_an_answer_that_does_not_come_has_a_deadline(tmp_path):
    done = threading.Event()

    def answer(connection, line):
        done.wait(10)

    with answering(tmp_path / "s", answer), Control(tmp_path / "s") as server:
        with pytest.raises(ControlError, match=r"no answer on .* within 0\.05 s"):
            server.ask("status", seconds=0.05)
        done.set()


@pytest.mark.parametrize("answer", [b"nonsense\n", b"[1]\n", b"[" * 5000 + b"\n"])
def test_what_is_no_answer_is_refused(tmp_path, answer):
    with (
        answering(tmp_path / "s", lambda connection, line: connection.sendall(answer)),
        Control(tmp_path / "s") as server,
        pytest.raises(ControlError, match="is no answer"),
    ):
        server.ask("status")


def test_an_answer_without_an_end_is_not_read_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(control, "LARGEST_ANSWER", 1000)
    with (
        answering(tmp_path / "s", lambda connection, line: connection.sendall(b"x" * 2000)),
        Control(tmp_path / "s") as server,
        pytest.raises(ControlError, match="is no answer"),
    ):
        server.ask("status")


SERVER = """
import socket, sys
listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
listener.bind(sys.argv[1])
listener.listen(1)
print("listens", flush=True)
connection, _ = listener.accept()
connection.recv(100)
connection.sendall(b'{"ok": true}\\n')
connection.close()
"""


def test_waiting_ends_when_the_server_has_exited(tmp_path):
    path = tmp_path / "s"
    command = [sys.executable, "-c", SERVER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"listens\n"
        with Control(path) as server:
            server.ask("stop")
            assert server.wait_for_exit() is True
        assert process.poll() == 0


def test_a_server_that_does_not_exit_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(control, "EXIT_SECONDS", 0.1)
    path = tmp_path / "s"
    command = [sys.executable, "-c", SERVER + "sys.stdin.read()", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"listens\n"
        with Control(path) as server:
            server.ask("stop")
            assert server.wait_for_exit() is False
        assert process.poll() is None
