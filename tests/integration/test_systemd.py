"""systemd starts the server: what it is told, the sockets it hands over, and its unit files."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import smtplib
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.mx import COMMAND, program, running
from tests.integration.peers.programs import run
from tests.integration.processes import children, dead, title
from tests.integration.waiting import until

pytestmark = pytest.mark.integration

DEPLOY = Path(__file__).parents[2] / "deploy" / "systemd"
SITE = """
hostname = "mx.example.com"
domains = ["example.com"]
[workers]
count = 2
hang_seconds = 5
[[listener]]
address = "{address}"
[delivery]
use = "maildir"
path = "{folder}/mail"
[admin]
address = ""
control = "{folder}/control.sock"
"""
# Descriptors 3 and on are the passed sockets, as sd_listen_fds(3) says.
LAUNCHER = """
import fcntl, os, sys
given, names, *command = sys.argv[1:]
copies = [fcntl.fcntl(int(each), fcntl.F_DUPFD, 100) for each in given.split(",")]
for each in given.split(","):
    os.close(int(each))
for number, copy in enumerate(copies, 3):
    os.dup2(copy, number)
    os.close(copy)
count = str(len(copies))
os.environ.update(LISTEN_FDS=count, LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES=names)
os.execv(command[0], command)
"""


class Systemd:
    """The datagram socket that systemd has, and what came to it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.messages: list[str] = []
        self.senders: set[int] = set()

    def heard(self, beginning: str) -> list[str]:
        """Return all messages so far that begin so."""
        with contextlib.suppress(BlockingIOError):
            while True:
                text, ancillary, _, _ = self._socket.recvmsg(4096, 256)
                self.messages.append(text.decode())
                (_, _, credentials), *_ = ancillary
                self.senders.add(int.from_bytes(credentials[:4], sys.byteorder))
        return [message for message in self.messages if message.startswith(beginning)]

    def hear(self, beginning: str, *, seconds: float = 20) -> None:
        """Wait until one came."""
        until(lambda: self.heard(beginning), beginning, seconds=seconds)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path):
    systemd = Systemd(tmp_path)
    yield systemd
    systemd.close()


@contextlib.contextmanager
def serving(folder, address, *, passed=(), names="", ready=True, **environ):
    """Serve with `passed` sockets as descriptors 3 and on, as systemd would."""
    config = folder / "preforkmx.toml"
    config.write_text(SITE.format(folder=folder, address=address))
    command = [*COMMAND, "serve", "-c", config]
    if passed:
        numbers = ",".join(str(sock.fileno()) for sock in passed)
        command = [sys.executable, "-c", LAUNCHER, numbers, names, *command]
    given = [sock.fileno() for sock in passed]
    with running(config, command, ready=ready, env={**os.environ, **environ}, pass_fds=given) as mx:
        yield mx


def deliver(port):
    with smtplib.SMTP("127.0.0.1", port, timeout=20, local_hostname="client.example") as client:
        client.sendmail("a@example.org", "box@example.com", "Subject: x\n\nhello\n")


# Notifications.


def test_start_reload_signs_of_life_and_stop_are_told_by_the_master_alone(tmp_path, systemd):
    with serving(
        tmp_path,
        "127.0.0.1:0",
        NOTIFY_SOCKET=str(systemd.path),
        WATCHDOG_USEC="1000000",
    ) as mx:
        assert f"READY=1\nMAINPID={mx.process.pid}" in systemd.heard("READY=1")
        systemd.hear("EXTEND_TIMEOUT_USEC=")
        assert systemd.messages.index(systemd.heard("EXTEND")[0]) < systemd.messages.index(
            systemd.heard("READY=1")[0]
        )
        systemd.hear("WATCHDOG=1")
        systemd.hear("STATUS=ready: 2 of 2 workers ready, 0 sessions")
        systemd.messages.clear()
        assert mx.run("reload").returncode == 0
        systemd.hear("READY=1")
        (reloading,) = systemd.heard("RELOADING=1\nMONOTONIC_USEC=")
        assert systemd.messages.index(reloading) < systemd.messages.index(
            systemd.heard("READY=1")[0]
        )
        systemd.messages.clear()
        mx.config.write_text("nonsense = 1\n")
        mx.process.send_signal(signal.SIGHUP)
        systemd.hear("RELOADING=1")
        systemd.hear("READY=1")
        assert mx.stop() == 0
        assert systemd.heard("STOPPING=1") == ["STOPPING=1"]
        assert systemd.heard("EXTEND_TIMEOUT_USEC=")
        assert systemd.senders == {mx.process.pid}


def test_no_sign_of_life_comes_while_no_worker_s_loop_turns(tmp_path, systemd):
    with serving(
        tmp_path, "127.0.0.1:0", NOTIFY_SOCKET=str(systemd.path), WATCHDOG_USEC="400000"
    ) as mx:
        systemd.hear("WATCHDOG=1")
        stopped: set[int] = set()
        try:
            until(lambda: quiet(mx, systemd, stopped), "silence", seconds=20)
        finally:
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        systemd.messages.clear()
        systemd.hear("WATCHDOG=1")


def quiet(mx, systemd, stopped):
    """Stop all workers, stand-ins too, for 0.6 s; whether there was no sign of life meanwhile."""
    systemd.heard("")
    systemd.messages.clear()
    end = time.monotonic() + 0.6
    while time.monotonic() < end:
        for pid in children(mx.process.pid):
            if " worker " in title(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    stopped.add(pid)
        time.sleep(0.01)
    return not systemd.heard("WATCHDOG=1")


# Sockets.


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0), backlog=7) as sock:
        yield sock


def test_a_passed_socket_is_what_its_listener_listens_on(tmp_path, listening):
    port = listening.getsockname()[1]
    # It is connected to before the server is there: that is what activation is for.
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as early,
        serving(tmp_path, f"127.0.0.1:{port}", passed=[listening], names="smtp") as mx,
    ):
        assert mx.ports == [port]
        assert early.recv(100).startswith(b"220 ")
        for _ in range(5):
            deliver(port)
        assert mx.run("reload").returncode == 0
        deliver(port)
        backlog = run("ss", "-Hltn", f"sport = {port}").stdout.split()[2]
        assert backlog == "7"
        for pid in (mx.process.pid, *mx.pids()):
            assert nothing_is_inherited(pid)
        assert mx.stop() == 0, mx.log
    # Not refused: the next start greets who comes meanwhile, and it was filtered at no time.
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as late,
        serving(tmp_path, f"127.0.0.1:{port}", passed=[listening]),
    ):
        assert late.recv(100).startswith(b"220 ")


def nothing_is_inherited(pid):
    """Whether a program that this process starts gets none of its descriptors but 0 to 2."""
    flags = []
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        # A connection may end meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if int(path.name) > 2:
                flags.append(int(path.read_text().partition("flags:")[2].split()[0], 8))
    return bool(flags) and all(flag & os.O_CLOEXEC for flag in flags)


def test_a_killed_master_leaves_the_passed_socket_to_the_next_one(tmp_path, listening):
    port = listening.getsockname()[1]
    with serving(tmp_path, f"127.0.0.1:{port}", passed=[listening]) as mx:
        pids = mx.pids()
        mx.process.kill()
        mx.process.wait()
        until(lambda: all(dead(pid) for pid in pids), "the workers' end")
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as client,
        serving(tmp_path, f"127.0.0.1:{port}", passed=[listening]),
    ):
        assert client.recv(100).startswith(b"220 ")


def test_other_listeners_are_opened_as_usual(tmp_path, listening):
    port = listening.getsockname()[1]
    address = f'127.0.0.1:{port}"\n[[listener]]\naddress = "127.0.0.1:0'
    with serving(tmp_path, address, passed=[listening]) as mx:
        assert mx.ports[0] == port
        for each in mx.ports:
            deliver(each)
        assert mx.run("reload").returncode == 0
        for each in mx.ports:
            deliver(each)


def test_a_passed_unix_socket_keeps_its_file(tmp_path):
    path = tmp_path / "smtp"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        for _ in range(2):
            with serving(tmp_path, f"unix:{path}", passed=[sock]) as mx:
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(20)
                    client.connect(str(path))
                    assert client.recv(100).startswith(b"220 ")
                assert mx.stop() == 0, mx.log
            assert path.exists()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:0", "no [[listener]] has that address"),
        ("unix:/run/elsewhere", "no [[listener]] has that address"),
    ],
)
def test_a_socket_that_is_no_listeners_is_refused(tmp_path, listening, address, reason):
    with serving(tmp_path, address, passed=[listening], ready=False) as mx:
        assert mx.process.wait(30) == 1
        assert reason in mx.log


def test_a_socket_that_does_not_listen_is_refused(tmp_path):
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        serving(tmp_path, "127.0.0.1:0", passed=[sock], names="udp", ready=False) as mx,
    ):
        assert mx.process.wait(30) == 1
        assert "the passed socket udp does not listen" in mx.log


def test_a_socket_that_takes_ipv4_on_an_ipv6_listener_is_refused(tmp_path):
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as sock:
        address = f"[::]:{sock.getsockname()[1]}"
        with serving(tmp_path, address, passed=[sock], ready=False) as mx:
            assert mx.process.wait(30) == 1
            assert "BindIPv6Only=ipv6-only" in mx.log


def test_sockets_for_another_process_are_left_alone(tmp_path):
    with serving(tmp_path, "127.0.0.1:0", LISTEN_FDS="1", LISTEN_PID="1") as mx:
        deliver(mx.ports[0])


def test_systemd_itself_starts_it_at_the_first_connection(tmp_path):
    """systemd-socket-activate makes the socket and executes the command as systemd does."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = tmp_path / "preforkmx.toml"
    config.write_text(SITE.format(folder=tmp_path, address=f"127.0.0.1:{port}"))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program("systemd-socket-activate"),
                *("-l", f"127.0.0.1:{port}", "--fdname=smtp"),
                *("-E", "PYTHONPATH", "-E", "PATH"),
                *(*COMMAND, "serve", "-c", config),
            ],
            stdout=log,
            stderr=log,
            cwd=tmp_path,
        )
    try:
        until(lambda: "Listening on" in (tmp_path / "log").read_text(), "the socket")
        deliver(port)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


# The unit files.


@pytest.mark.parametrize("unit", ["preforkmx.service", "preforkmx.socket"])
def test_systemd_finds_nothing_wrong_in_the_units(unit):
    verified = run(program("systemd-analyze"), "verify", "--man=no", DEPLOY / unit)
    assert verified.returncode == 0, verified.stdout
    assert "preforkmx" not in verified.stdout


def test_the_service_is_exposed_to_little():
    """What is left open: root, to bind and drop; the network, which it is for."""
    analysed = run(
        program("systemd-analyze"),
        *("security", "--offline=true", "--threshold=35", DEPLOY / "preforkmx.service"),
    )
    assert analysed.returncode == 0, analysed.stdout


def test_the_page_shows_the_units_as_they_are():
    page = (DEPLOY.parents[1] / "docs/how-to/run-under-systemd.md").read_text()
    for name in ("preforkmx.service", "preforkmx.socket"):
        assert f"deploy/systemd/{name}" in page


def settings(unit):
    """Return the last value of each setting of a unit."""
    lines = (DEPLOY / unit).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"[A-Z]\w+=", line))


def test_a_worker_that_the_kernel_kills_for_its_memory_takes_nobody_along():
    """systemd's default would stop the unit; systemd knows what is written, or verify says so."""
    assert settings("preforkmx.service")["OOMPolicy"] == "continue"


def test_only_a_wrong_configuration_leaves_the_service_down():
    """A port that is taken or a database that is away, 1 and 3, may be a matter of seconds."""
    lines = settings("preforkmx.service")
    assert lines["Restart"] == "on-failure"
    assert lines["RestartPreventExitStatus"] == "2"
    # Without a limit of starts, or the sixth failure would be the last.
    assert lines["StartLimitIntervalSec"] == "0"
    assert int(lines["RestartSec"]) >= 1


def test_a_drain_fits_the_time_that_systemd_gives_a_stop():
    lines = settings("preforkmx.service")
    # drain_seconds, then the filter, the abort, the kill, the helpers.
    assert int(lines["TimeoutStopSec"]) >= 60 + 10 + 5 + 2 + 5 + 5 + 5
    # Longer than the master takes to replace a worker that hangs.
    assert int(lines["WatchdogSec"]) / 2 >= 30 + 2 + 5
