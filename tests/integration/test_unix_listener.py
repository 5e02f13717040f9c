"""SMTP over a unix socket, with real processes: two workers read one socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Self

import pytest

from tests.integration.mx import COMMAND, Generator, serving, stored_numbers

pytestmark = pytest.mark.integration

WAIT_SECONDS = 30.0


@pytest.fixture
def path():
    """A path that is short enough for a socket's address; its folder is not there yet."""
    with tempfile.TemporaryDirectory(prefix="preforkmx-") as folder:
        yield Path(folder) / "run" / "smtp.sock"


def toml(path: Path) -> str:
    # A long drain, so that only a drain that ends by itself is quick.
    return f"""
[workers]
count = 2
drain_seconds = 30

[[listener]]
address = "unix:{path}"
"""


class Client:
    """One session, with Python's own socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(WAIT_SECONDS)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def reply(self) -> str:
        """Return the last line of the next reply; "" when the server closed."""
        while True:
            line = self._file.readline().decode()
            if line[3:4] != "-":
                return line.rstrip("\r\n")

    def say(self, line: str) -> str:
        self._socket.sendall(line.encode() + b"\r\n")
        return self.reply()

    def send(self, number: str) -> None:
        assert self.say("EHLO client.example").startswith("250 ")
        assert self.say("MAIL FROM:<sender@example.org>").startswith("250 ")
        assert self.say("RCPT TO:<box@example.com>").startswith("250 ")
        assert self.say("DATA").startswith("354 ")
        assert self.say(f"Subject: {number}\r\n\r\nmessage {number}\r\n.").startswith("250 ")


def eventually(mx, condition):
    """Wait until `condition`, asked of the status, holds; return what it gave."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        found = condition(mx.status())
        if found:
            return found
        assert time.monotonic() < deadline, mx.log
        # The command itself takes longer than any pause would.


def sessions_of_workers(status):
    return {worker["pid"]: worker["sessions"] for worker in status["workers"]}


def test_a_message_is_delivered_over_a_unix_socket(tmp_path, path):
    with serving(tmp_path, toml(path)) as mx:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        [listener] = mx.status()["listeners"]
        assert listener == {
            "address": f"unix:{path}",
            "protocol": "smtp",
            "tls": "starttls",
            "proxy_protocol": False,
            "queued": None,
            "dropped": None,
        }
        with Client(path) as client:
            assert client.reply().startswith("220 mx.example.com")
            client.send("000001")
            assert client.say("QUIT").startswith("221 ")
        assert stored_numbers(mx) == ["000001"]
        assert mx.stop() == 0
        assert not path.exists()


def test_both_workers_serve_and_the_other_goes_on_when_one_is_killed(tmp_path, path):
    with serving(tmp_path, toml(path)) as mx, contextlib.ExitStack() as clients:

        def greeted(count):
            for _ in range(count):
                client = clients.enter_context(Client(path))
                assert client.reply().startswith("220 ")

        # The kernel wakes both; which one is first is chance, so a few rounds may be needed.
        deadline = time.monotonic() + WAIT_SECONDS
        while min(sessions_of_workers(mx.status()).values()) == 0:
            assert time.monotonic() < deadline, mx.status()
            greeted(20)
        victim = mx.pids()[0]
        os.kill(victim, signal.SIGKILL)
        greeted(20)
        eventually(
            mx,
            lambda status: (
                victim not in (pids := sessions_of_workers(status))
                and len(pids) == 2
                and all(worker["state"] == "ready" for worker in status["workers"])
            ),
        )
        greeted(20)


def test_what_is_queued_when_every_worker_is_killed_is_greeted_by_the_next(tmp_path, path):
    """Nobody's socket is closed: the master has it."""
    with serving(tmp_path, toml(path)) as mx, contextlib.ExitStack() as clients:
        pids = mx.pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        queued = [clients.enter_context(Client(path)) for _ in range(30)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for client in queued:
            assert client.reply().startswith("220 ")


def test_a_worker_that_stands_still_holds_up_nobody(tmp_path, path):
    """The other one reads the same socket."""
    with serving(tmp_path, toml(path)) as mx, contextlib.ExitStack() as clients:
        stopped = mx.pids()[0]
        os.kill(stopped, signal.SIGSTOP)
        try:
            for _ in range(30):
                client = clients.enter_context(Client(path))
                assert client.reply().startswith("220 ")
        finally:
            os.kill(stopped, signal.SIGCONT)


def under_load(path, during, **options):
    async def main():
        generator = Generator(path, **options)
        running = asyncio.create_task(generator.run())
        await generator.acknowledged(50)
        await during(generator)
        generator.stopping.set()
        await asyncio.wait_for(running, 60)
        return generator.load

    return asyncio.run(main())


def assert_nothing_lost(mx, load):
    stored = Counter(stored_numbers(mx))
    assert [number for number in load.acknowledged if stored[number] != 1] == []


def test_reloads_under_load_fail_no_transaction(tmp_path, path):
    with serving(tmp_path, toml(path)) as mx:
        before = mx.pids()

        async def during(generator):
            for _ in range(3):
                answer = await asyncio.to_thread(mx.run, "reload")
                assert answer.returncode == 0, answer.stderr
                await generator.acknowledged(50)

        load = under_load(path, during)
        assert set(before).isdisjoint(mx.pids())
        assert path.is_socket()
        assert (load.refused, load.resets, load.lost, load.busy) == (0, 0, 0, 0)
        assert_nothing_lost(mx, load)


def test_kill_9_of_each_worker_under_load_loses_no_acknowledged_message(tmp_path, path):
    with serving(tmp_path, toml(path)) as mx:

        async def during(generator):
            for pid in mx.pids():
                os.kill(pid, signal.SIGKILL)
                await generator.acknowledged(50)

        load = under_load(path, during)
        assert load.refused == 0
        assert_nothing_lost(mx, load)


def test_a_drain_under_load_resets_nobody_loses_nothing_and_removes_the_file(tmp_path, path):
    with serving(tmp_path, toml(path)) as mx:

        async def during(_generator):
            mx.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(mx.process.wait, 60) == 0

        load = under_load(path, during, sessions=20, messages=3)
        assert (load.resets, load.lost) == (0, 0)
        assert_nothing_lost(mx, load)
        assert not path.exists()


def test_a_drain_greets_what_is_queued_and_finishes_a_transaction(tmp_path, path):
    with serving(tmp_path, toml(path)) as mx, contextlib.ExitStack() as clients:
        busy = clients.enter_context(Client(path))
        assert busy.reply().startswith("220 ")
        assert busy.say("EHLO client.example").startswith("250 ")
        assert busy.say("MAIL FROM:<sender@example.org>").startswith("250 ")
        pids = mx.pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        queued = [clients.enter_context(Client(path)) for _ in range(30)]
        mx.process.send_signal(signal.SIGTERM)
        eventually(mx, lambda status: status["state"] == "draining" and not path.exists())
        with pytest.raises(FileNotFoundError):
            Client(path)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        for client in queued:
            assert client.reply().startswith(("220 ", "421 "))
        assert busy.say("RCPT TO:<box@example.com>").startswith("250 ")
        assert busy.say("DATA").startswith("354 ")
        assert busy.say("message 000001\r\n.").startswith("250 ")
        assert busy.reply().startswith("421 ")
        assert mx.process.wait(60) == 0
        assert stored_numbers(mx) == ["000001"]


def start_beside(mx, directory):
    """Start a second server with the same listener and its own control socket."""
    directory.mkdir()
    config = directory / "preforkmx.toml"
    config.write_text(mx.config.read_text().replace(str(mx.directory), str(directory)))
    return subprocess.run(
        [*COMMAND, "serve", "-c", str(config)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_second_instance_on_a_live_path_refuses_to_start(tmp_path, path):
    with serving(tmp_path / "first", toml(path)) as mx:
        answer = start_beside(mx, tmp_path / "second")
        assert answer.returncode == 1
        assert f"unix:{path} is taken: another process listens there" in answer.stderr
        with Client(path) as client:
            assert client.reply().startswith("220 ")


def test_the_file_of_a_master_that_was_killed_is_replaced_by_the_next(tmp_path, path):
    with serving(tmp_path / "first", toml(path)) as mx:
        workers = [os.pidfd_open(pid) for pid in mx.pids()]
        os.kill(mx.process.pid, signal.SIGKILL)
        mx.process.wait(10)
        assert path.is_socket()
        # The workers see the end of the master, close their copies, and end.
        for worker in workers:
            readable, _, _ = select.select([worker], [], [], WAIT_SECONDS)
            assert readable, mx.log
            os.close(worker)
    with pytest.raises(ConnectionRefusedError):
        Client(path)
    with serving(tmp_path / "second", toml(path)), Client(path) as client:
        assert client.reply().startswith("220 ")
