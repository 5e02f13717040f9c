"""A worker that has no more sessions or descriptors to give, with real processes."""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from preforkmx.protocol.proxy import V2_SIGNATURE
from tests.integration.mx import MX, serving

pytestmark = pytest.mark.integration

PATIENCE = 20.0
PROXIED = b"PROXY TCP4 192.0.2.1 198.51.100.7 40000 25\r\n"
LOCAL = V2_SIGNATURE + bytes.fromhex("20 00 0000")
LISTENERS = '[[listener]]\naddress = "127.0.0.1:0"\n'


def until(condition, mx: MX):
    """Wait for what nothing tells of."""
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < deadline, mx.log
        time.sleep(0.02)
    return result


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), PATIENCE)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def highest_descriptor(pid: int) -> int:
    return max(int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir())


def test_a_client_beyond_max_sessions_is_told_421_and_one_that_leaves_makes_room(tmp_path):
    toml = f"[workers]\ncount = 1\nmax_sessions = 5\n{LISTENERS}"
    with serving(tmp_path, toml) as mx, ExitStack() as stack:
        inside = [stack.enter_context(connect(mx.ports[0])) for _ in range(5)]
        for client in inside:
            assert client.recv(200).startswith(b"220 ")
        for _ in range(3):
            with connect(mx.ports[0]) as client:
                assert client.recv(200).startswith(b"421 ")
                assert client.recv(200) == b""
        inside[0].sendall(b"QUIT\r\n")
        assert inside[0].recv(200).startswith(b"221 ")
        inside[0].close()
        until(lambda: mx.status()["workers"][0]["sessions"] == 4, mx)
        with connect(mx.ports[0]) as client:
            assert client.recv(200).startswith(b"220 ")


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_client_beyond_max_sessions_that_speaks_first_is_told_421_and_not_reset(tmp_path, loop):
    """A PROXY header, or an early EHLO, that nobody has read is no reason to lose the 421."""
    proxied = f'{LISTENERS}proxy_protocol = true\nproxy_from = ["127.0.0.1"]\n'
    toml = f'[workers]\ncount = 1\nmax_sessions = 1\nloop = "{loop}"\n{LISTENERS}{proxied}'
    with serving(tmp_path, toml) as mx, connect(mx.ports[0]) as inside:
        assert inside.recv(200).startswith(b"220 ")
        # Stopped, so that all of it is there when the worker accepts.
        [pid] = mx.pids()
        for port, octets in zip(mx.ports, (b"EHLO early\r\n", PROXIED), strict=True):
            os.kill(pid, signal.SIGSTOP)
            with connect(port) as client:
                client.sendall(octets)
                os.kill(pid, signal.SIGCONT)
                said = b""
                # A reset is an exception here.
                while more := client.recv(200):
                    said += more
                assert said.startswith(b"421 ")
        with connect(mx.ports[1]) as check:
            check.sendall(LOCAL)
            assert check.recv(200).startswith(b"220 ")


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_worker_without_descriptors_rests_serves_who_is_there_and_recovers(tmp_path, loop):
    toml = f'[workers]\ncount = 1\nloop = "{loop}"\n{LISTENERS}'
    with serving(tmp_path, toml) as mx, ExitStack() as stack:
        [pid] = mx.pids()
        lowest, highest = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        # As if something else had eaten the descriptors: three are left.
        limit = highest_descriptor(pid) + 4
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, highest))
        clients = [stack.enter_context(connect(mx.ports[0])) for _ in range(20)]
        until(lambda: "cannot accept" in mx.log, mx)
        queued = until(lambda: mx.status()["listeners"][0]["queued"], mx)
        before = cpu_seconds(pid)
        time.sleep(2)
        assert cpu_seconds(pid) - before < 0.5
        assert mx.log.count("cannot accept") == 1
        assert mx.pids() == [pid]
        assert mx.status()["listeners"][0]["queued"] == queued
        # Who has a session is served; what needs a file is deferred and not lost.
        first = clients[0]
        assert first.recv(200).startswith(b"220 ")
        first.sendall(b"EHLO x\r\n")
        assert first.recv(1000).startswith(b"250")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, highest))
        for client in clients[1:]:
            assert client.recv(200).startswith(b"220 ")
        assert mx.pids() == [pid]


def test_a_message_that_finds_no_descriptor_is_deferred(tmp_path):
    with serving(tmp_path, LISTENERS, workers=1) as mx, connect(mx.ports[0]) as client:
        [pid] = mx.pids()
        assert client.recv(200).startswith(b"220 ")
        lowest, highest = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, highest))
        replies = client.makefile("rb")

        def say(line: bytes) -> bytes:
            client.sendall(line + b"\r\n")
            while (reply := replies.readline())[3:4] == b"-":
                pass
            return reply

        say(b"EHLO x")
        for attempt, code in (("first", b"4"), ("second", b"2")):
            say(b"MAIL FROM:<a@example.org>")
            say(b"RCPT TO:<box@example.com>")
            answer = say(b"DATA")
            if answer.startswith(b"354"):
                answer = say(b"Subject: x\r\n\r\nx\r\n.")
            assert answer.startswith(code), (attempt, mx.log)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, highest))
            if answer.startswith(b"4"):
                say(b"RSET")
        assert len(mx.delivered()) == 1
        assert mx.pids() == [pid]


def test_a_master_without_descriptors_rests_and_replaces_its_workers_later(tmp_path):
    with serving(tmp_path, LISTENERS) as mx:
        master, pids = mx.process.pid, mx.pids()
        lowest, highest = resource.prlimit(master, resource.RLIMIT_NOFILE)
        resource.prlimit(master, resource.RLIMIT_NOFILE, (3, highest))
        os.kill(pids[0], signal.SIGKILL)
        until(lambda: "no process could be forked" in mx.log, mx)
        with socket.socket(socket.AF_UNIX) as control:
            # Nor can it answer this one now.
            control.connect(str(tmp_path / "control.sock"))
            before, lines = cpu_seconds(master), mx.log.count("\n")
            time.sleep(2)
            assert cpu_seconds(master) - before < 0.5
            assert mx.log.count("\n") - lines < 20
            # The slot that has a worker is led to.
            for _ in range(10):
                with connect(mx.ports[0]) as client:
                    assert client.recv(200).startswith(b"220 ")
        resource.prlimit(master, resource.RLIMIT_NOFILE, (lowest, highest))
        until(lambda: len(set(mx.pids()) - {None, pids[0]}) == 2, mx)
