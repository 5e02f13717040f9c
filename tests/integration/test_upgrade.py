"""Re-execution in place, as an operator and a client see it: all of it is real."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mx import MX, Generator, serving, stored_numbers

import preforkmx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.integration

UPGRADES = int(os.environ.get("TEST_UPGRADES", "2"))
"""Under load."""
LEAK_UPGRADES = int(os.environ.get("TEST_LEAK_UPGRADES", "5"))
PATIENCE = 30.0


def until(condition: Callable[[], Any]) -> Any:
    """Return what `condition` returns as soon as it is true."""
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return result


def upgrade(mx: MX) -> str:
    """Upgrade, and return the version that serves."""
    done = mx.command("upgrade")
    assert done["ok"], done
    version: str = done["version"]
    return version


def say(sock: socket.socket, command: str) -> dict[str, Any]:
    sock.sendall(json.dumps({"command": command}).encode() + b"\n")
    return answer(sock)


def answer(sock: socket.socket) -> dict[str, Any]:
    octets = b""
    while not octets.endswith(b"\n"):
        piece = sock.recv(65536)
        assert piece, "the connection ended before the answer"
        octets += piece
    read: dict[str, Any] = json.loads(octets)
    return read


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()
    except FileNotFoundError:
        return ""


def children(mx: MX) -> list[int]:
    pid = mx.process.pid
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def greet(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    assert client.recv(200).startswith(b"220 ")
    return client


def descriptors(pid: int) -> list[str]:
    folder = Path(f"/proc/{pid}/fd")
    kinds = []
    for entry in folder.iterdir():
        try:
            kinds.append(str(entry.readlink()).partition("[")[0].partition(":")[0])
        except FileNotFoundError:
            continue
    return sorted(kinds)


def steady(pid: int) -> list[str]:
    """Return a process's descriptors once they change no more."""
    seen: list[list[str]] = []

    def same() -> bool:
        seen.append(descriptors(pid))
        return len(seen) >= 5 and all(each == seen[-1] for each in seen[-5:])

    until(same)
    return seen[-1]


@pytest.fixture
def mx(tmp_path: Path) -> Iterator[MX]:
    with serving(tmp_path, '[log]\nlevel = "debug"\n') as running:
        yield running


def test_upgrades_under_load_fail_nobody_and_lose_nothing(mx: MX) -> None:
    first = mx.status()
    store = next(pid for pid in children(mx) if title(pid) == "preforkmx: store")
    generator = Generator(mx.ports[0])

    async def scenario() -> None:
        running = asyncio.create_task(generator.run())
        await generator.acknowledged(20)
        for _ in range(UPGRADES):
            await asyncio.to_thread(upgrade, mx)
            await generator.acknowledged(20)
        generator.stopping.set()
        await running

    asyncio.run(scenario())
    load = generator.load
    assert (load.resets, load.refused, load.busy, load.lost) == (0, 0, 0, 0)
    assert sorted(stored_numbers(mx)) == sorted(load.acknowledged)
    status = mx.status()
    assert status["pid"] == first["pid"] == mx.process.pid
    assert status["started"] == first["started"]
    assert (status["state"], status["generation"]) == ("ready", 1 + UPGRADES)
    assert {worker["generation"] for worker in status["workers"]} == {1 + UPGRADES}
    assert not {worker["pid"] for worker in status["workers"]} & {
        worker["pid"] for worker in first["workers"]
    }
    until(lambda: mx.status()["totals"]["messages"] == len(load.acknowledged))
    assert status["totals"]["worker_crashes"] == 0
    assert title(store) == "preforkmx: store"
    assert title(mx.process.pid) == "preforkmx: master [mx.example.com]"
    assert len(children(mx)) == 3
    assert mx.stop() == 0
    assert "killed" not in mx.log


def test_sessions_go_on_and_who_is_queued_is_greeted(mx: MX) -> None:
    old = mx.pids()
    with ExitStack() as stack:
        sessions = [stack.enter_context(greet(mx.ports[0])) for _ in range(4)]
        for pid in old:
            os.kill(pid, signal.SIGSTOP)
        queued = [
            stack.enter_context(
                socket.create_connection(("127.0.0.1", mx.ports[0]), timeout=PATIENCE)
            )
            for _ in range(20)
        ]
        try:
            upgrade(mx)
            for client in queued:
                assert client.recv(200).startswith(b"220 ")
        finally:
            for pid in old:
                os.kill(pid, signal.SIGCONT)
        for client in sessions:
            client.sendall(b"NOOP\r\n")
            assert client.recv(200).startswith(b"250 ")


def test_everything_that_is_open_goes_over(tmp_path: Path) -> None:
    path = tmp_path / "mx.sock"
    toml = f"""
[[listener]]
address = "127.0.0.1:0"
[[listener]]
address = "[::1]:0"
[[listener]]
address = "unix:{path}"
[admin]
address = "127.0.0.1:0"
control = "{tmp_path}/control.sock"
"""
    with serving(tmp_path, toml) as mx:
        first = mx.status()
        file = path.stat().st_ino
        upgrade(mx)
        status = mx.status()
        assert [each["address"] for each in status["listeners"]] == [
            each["address"] for each in first["listeners"]
        ]
        assert status["admin"]["address"] == first["admin"]["address"]
        assert path.stat().st_ino == file
        greet(mx.ports[0]).close()
        with socket.create_connection(("::1", mx.ports[1]), timeout=PATIENCE) as client:
            assert client.recv(200).startswith(b"220 ")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(path))
            assert client.recv(200).startswith(b"220 ")
        host, _, port = status["admin"]["address"].rpartition(":")

        def healthy() -> bool:
            with socket.create_connection((host, int(port)), timeout=PATIENCE) as client:
                client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
                return b" 200 " in client.recv(200)

        until(healthy)
        assert mx.stop() == 0
        assert not path.exists()


def test_clients_of_the_control_socket_stay_connected(mx: MX) -> None:
    with socket.socket(socket.AF_UNIX) as idle, socket.socket(socket.AF_UNIX) as asking:
        for sock in (idle, asking):
            sock.settimeout(PATIENCE)
            sock.connect(str(mx.directory / "control.sock"))
        assert say(idle, "status")["generation"] == 1
        # The rest of this request comes after the execution.
        idle.sendall(b'{"comm')
        done = say(asking, "upgrade")
        assert done == {"ok": True, "generation": 2, "version": preforkmx.__version__}
        idle.sendall(b'and": "status"}\n')
        assert answer(idle)["generation"] == 2
        assert say(asking, "reload") == {"ok": True, "generation": 3}


def test_upgrades_and_reloads_that_are_asked_for_meanwhile_share_what_comes(mx: MX) -> None:
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(4)]
        for sock, command in zip(socks, ("upgrade", "upgrade", "reload", "upgrade"), strict=True):
            sock.settimeout(PATIENCE)
            sock.connect(str(mx.directory / "control.sock"))
            sock.sendall(json.dumps({"command": command}).encode() + b"\n")
            if sock is socks[0]:
                until(lambda: "the new program is tried" in mx.log)
        answers = [answer(sock) for sock in socks]
    assert all(each["ok"] for each in answers)
    generations = {each["generation"] for each in answers}
    assert mx.status()["generation"] == max(generations)
    assert mx.log.count("the new program takes over") <= 2


def test_nothing_leaks_over_many_upgrades(mx: MX) -> None:
    upgrade(mx)
    until(lambda: len(children(mx)) == 3)
    before = steady(mx.process.pid)
    worker_before = steady(mx.pids()[0])
    for _ in range(LEAK_UPGRADES):
        upgrade(mx)
    until(lambda: len(children(mx)) == 3)
    assert steady(mx.process.pid) == before
    assert steady(mx.pids()[0]) == worker_before
    assert mx.status()["generation"] == 2 + LEAK_UPGRADES


SLOW_SITE = """\
import asyncio
import contextlib
import time
from pathlib import Path
from preforkmx.middleware.base import Middleware

def make(**options):
    # In the folder of the server, which is its working directory.
    while Path("hold-the-try").exists():
        Path("held").touch()
        time.sleep(0.02)
    return Middleware(lifespan=lifespan)

@contextlib.asynccontextmanager
async def lifespan():
    # In workers only.
    while Path("hold-the-boot").exists():
        Path("held").touch()
        await asyncio.sleep(0.02)
    yield
"""


@pytest.mark.parametrize("moment", ["the try", "the execution", "the boot"])
def test_a_worker_that_is_killed_meanwhile_is_replaced(mx: MX, moment: str) -> None:
    (mx.directory / "mymx.py").write_text(SLOW_SITE)
    with mx.config.open("a") as config:
        config.write('[[middleware]]\nuse = "mymx:make"\n')
    hold = mx.directory / ("hold-the-try" if moment == "the try" else "hold-the-boot")
    hold.touch()
    victim, other = mx.pids()
    mx.process.send_signal(signal.SIGUSR2)
    if moment == "the execution":
        until(lambda: "the new program takes over" in mx.log)
    else:
        until((mx.directory / "held").exists)
    # It can only be one that serves: nobody retires before a boot that is held is over.
    os.kill(victim, signal.SIGKILL)
    until(lambda: f"(process {victim}) is gone: killed by SIGKILL" in mx.log)
    if moment == "the try":
        # By a worker of the running generation, which has nothing of the try.
        until(lambda: ready(mx) == [0, 1])
        assert descriptors(mx.pids()[0]) == descriptors(other)
    hold.unlink()
    until(lambda: "generation 2 serves" in mx.log)
    until(lambda: [w["state"] for w in mx.status()["workers"]] == ["ready", "ready"])
    assert mx.status()["totals"]["worker_crashes"] == 1
    assert not Path(f"/proc/{victim}").exists()
    for _ in range(8):
        greet(mx.ports[0]).close()


def ready(mx: MX) -> list[int]:
    """Return the slots that have a ready worker."""
    return [worker["slot"] for worker in mx.status()["workers"] if worker["state"] == "ready"]


@pytest.mark.parametrize("moment", ["USR2", "the new program is tried", "the new program takes"])
def test_a_term_right_after_usr2_drains(mx: MX, moment: str) -> None:
    mx.process.send_signal(signal.SIGUSR2)
    if moment != "USR2":
        until(lambda: moment in mx.log)
    assert mx.stop() == 0
    assert "draining: no new connections" in mx.log
    assert not (mx.directory / "control.sock").exists()


def test_both_programs_give_the_watchdog_a_sign_around_the_execution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        # Half of it is 5 minutes: no sign is due by itself.
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "600000000")
        with serving(tmp_path / "mx", "") as mx:
            assert heard_from(manager) == ["WATCHDOG=1", "READY=1"]
            upgrade(mx)
            assert heard_from(manager) == [
                *("RELOADING=1", "WATCHDOG=1"),
                *("RELOADING=1", "WATCHDOG=1", "READY=1"),
            ]


def heard_from(manager: socket.socket) -> list[str]:
    """Return what has come; the kernel keeps ten messages that are not read."""
    heard = []
    with contextlib.suppress(BlockingIOError):
        while True:
            heard.append(manager.recv(4096).decode().partition("\n")[0])
    return [text for text in heard if text in ("WATCHDOG=1", "READY=1", "RELOADING=1")]


def test_a_drain_after_an_upgrade_answers_who_waits(mx: MX) -> None:
    upgrade(mx)
    done = mx.run("drain")
    assert done.returncode == 0
    assert mx.process.wait(20) == 0


def test_the_command_says_what_serves(mx: MX) -> None:
    done = mx.run("upgrade")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"version {preforkmx.__version__}: generation 2 serves\n"


def test_upgrade_says_so_where_nothing_runs(mx: MX) -> None:
    assert mx.stop() == 0
    assert mx.run("upgrade").returncode == 5
