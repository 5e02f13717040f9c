"""The master and its processes, as an operator and a client see them: all of it is real."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

import preforkmx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.integration

SITE = Path(__file__).with_name("process_site.py")
PATIENCE = 20.0
"""Seconds for what takes well under one on an idle machine."""


def until(
    condition: Callable[[], Any], *, what: str = "", seconds: float = PATIENCE, pause: float = 0.02
) -> Any:
    """Return what `condition` returns as soon as it is true of something outside."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"did not happen in {seconds} s: {what or condition}"
        time.sleep(pause)
    return result


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def dead(pid: int) -> bool:
    """Whether a process has ended."""
    return not alive(pid)


def title(pid: int) -> str:
    """Return what ps shows."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()


class Client:
    """A plain SMTP client that reads what comes."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._buffer = b""

    def reply(self) -> str:
        """Return the last line of the next reply; "" at the end."""
        while True:
            line, end, rest = self._buffer.partition(b"\r\n")
            if end:
                self._buffer = rest
                if line[3:4] != b"-":
                    return line.decode()
                continue
            octets = self.socket.recv(4096)
            if not octets:
                return ""
            self._buffer += octets

    def say(self, line: str) -> str:
        """Send a command and return its reply."""
        self.socket.sendall(line.encode() + b"\r\n")
        return self.reply()

    def begin(self, sender: str = "a@example.net") -> None:
        """Go to the middle of a transaction."""
        assert self.reply().startswith("220 ")
        assert self.say("EHLO client.example.net").startswith("250 ")
        assert self.say(f"MAIL FROM:<{sender}>").startswith("250 ")
        assert self.say("RCPT TO:<b@example.com>").startswith("250 ")

    def deliver(self, sender: str = "a@example.net") -> str:
        """Deliver one message in a connection of its own; return the reply after it."""
        self.begin(sender)
        assert self.say("DATA").startswith("354 ")
        answer = self.say("Subject: x\r\n\r\nx\r\n.")
        assert self.say("QUIT").startswith("221 ")
        return answer

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Site:
    """A running process_site.py."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.settings = {"control": str(folder / "control.sock"), **settings}
        self.errors = folder / f"stderr-{time.monotonic_ns()}"
        self.configure()
        root = str(Path(preforkmx.__file__).parent.parent)
        with self.errors.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", SITE, folder / "settings.json"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": root, "PYTHONDEVMODE": ""},
                process_group=0,
            )
        self.first_status: dict[str, Any] = {}
        self.pids: set[int] = {self.process.pid}

    def configure(self, **settings: Any) -> None:
        """Write the settings that the next load reads."""
        self.settings.update(settings)
        path = self.folder / "settings.json"
        path.write_text(json.dumps(self.settings), "utf-8")

    def wait_ready(self) -> Site:
        """Wait for the announcement."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        line = self.process.stdout.readline() if readable else b""
        assert line, self.log()
        self.first_status = json.loads(line)
        self.note(self.first_status)
        return self

    @property
    def port(self) -> int:
        """The port of the only listener."""
        return int(self.first_status["listeners"][0]["address"].rpartition(":")[2])

    def log(self) -> str:
        """Return what was written to stderr so far."""
        return self.errors.read_text("utf-8")

    def note(self, status: dict[str, Any]) -> None:
        """Remember whom to end if a test fails."""
        self.pids |= {worker["pid"] for worker in status["workers"] if worker["pid"]}

    @contextmanager
    def control(self) -> Iterator[socket.socket]:
        """Connect to the control socket."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(self.settings["control"])
            yield sock

    def command(self, name: str) -> dict[str, Any]:
        """Send one command and return the answer."""
        with self.control() as sock:
            sock.sendall(json.dumps({"command": name}).encode() + b"\n")
            return read_line(sock)

    def status(self) -> dict[str, Any]:
        """Return the status document."""
        status = self.command("status")
        self.note(status)
        return status

    def workers(self, state: str = "ready") -> dict[int, int]:
        """Return the pids of the workers in one state, by slot."""
        return {w["slot"]: w["pid"] for w in self.status()["workers"] if w["state"] == state}

    def children(self) -> list[int]:
        """Return the pids of all children of the master."""
        path = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        return [int(pid) for pid in Path(path).read_text("ascii").split()]

    def store(self) -> int:
        """Return the pid of the store process."""
        (pid,) = [pid for pid in self.children() if title(pid) == "preforkmx: store"]
        self.pids.add(pid)
        return pid

    def signal(self, number: signal.Signals) -> None:
        """Send the master a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end and return the exit status."""
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """End everything that is left."""
        with suppress(FileNotFoundError, ProcessLookupError):
            self.pids |= set(self.children())
        self.process.kill()
        self.process.wait()
        for pid in self.pids - {self.process.pid}:
            if alive(pid) and title(pid).startswith("preforkmx: "):
                os.kill(pid, signal.SIGKILL)
        assert self.process.stdout is not None
        self.process.stdout.close()


def replaced(site: Site, pid: int) -> bool:
    """Whether slot 0 has a ready worker with another pid."""
    return site.workers().get(0, pid) != pid


def read_line(sock: socket.socket) -> dict[str, Any]:
    """Read one line of JSON."""
    octets = b""
    while not octets.endswith(b"\n"):
        piece = sock.recv(65536)
        assert piece, "the connection ended before the answer"
        octets += piece
    answer: dict[str, Any] = json.loads(octets)
    return answer


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Start sites, and end them after the test."""
    with ExitStack() as stack:

        def start(**settings: Any) -> Site:
            site = Site(tmp_path, **settings)
            stack.callback(site.close)
            return site

        yield start


class Load:
    """Clients that come one after the other, in several tasks, until they are stopped.

    Each has its connection, waits for the greeting, and delivers a message.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.delivered = 0
        self.refused = 0
        self.turned_away = 0
        self.failures: list[str] = []
        self._stopped = False
        self._moved = asyncio.Event()

    def stop(self) -> None:
        """Let no further client come."""
        self._stopped = True

    async def reaches(self, delivered: int) -> None:
        """Wait until so many messages are delivered."""
        async with asyncio.timeout(PATIENCE):
            while self.delivered < delivered:
                self._moved.clear()
                await self._moved.wait()

    async def run(self, clients: int) -> None:
        """Run until stopped."""
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(self._client() for _ in range(clients)))

    async def _client(self) -> None:
        while not self._stopped:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except ConnectionRefusedError:
                self.refused += 1
                await asyncio.sleep(0.01)
                continue
            except OSError as error:
                self.failures.append(f"connect: {error}")
                continue
            try:
                await self._deliver(reader, writer)
            except (OSError, AssertionError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()

    async def _deliver(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for line, code in (
            (None, "220"),
            ("HELO client.example.net", "250"),
            ("MAIL FROM:<a@example.net>", "250"),
            ("RCPT TO:<b@example.com>", "250"),
            ("DATA", "354"),
            ("Subject: x\r\n\r\nx\r\n.", "250"),
            ("QUIT", "221"),
        ):
            if line is not None:
                writer.write(line.encode() + b"\r\n")
            answer = (await reader.readline()).decode()
            if answer.startswith("421 "):
                self.turned_away += 1
                return
            assert answer.startswith(code), f"{line}: {answer!r}"
            if line is not None and line.endswith("."):
                self.delivered += 1
                self._moved.set()


# The start.


def test_every_process_says_in_its_title_who_it_is(
    start: Callable[..., Site], tmp_path: Path
) -> None:
    site = start(store=str(tmp_path)).wait_ready()
    assert title(site.process.pid) == "preforkmx: master [mx.example.com]"
    assert title(site.store()) == "preforkmx: store"
    assert sorted(title(pid) for pid in site.workers().values()) == [
        "preforkmx: worker 0 ready (0 sessions)",
        "preforkmx: worker 1 ready (0 sessions)",
    ]
    with Client(site.port) as client:
        client.begin()
        shown = {"preforkmx: worker 0 ready (1 sessions)", "preforkmx: worker 1 ready (1 sessions)"}
        until(lambda: shown & {title(pid) for pid in site.workers().values()})


def test_the_status_document_says_what_runs(start: Callable[..., Site], tmp_path: Path) -> None:
    site = start(store=str(tmp_path), count=3).wait_ready()
    with Client(site.port) as client:
        assert client.deliver().startswith("250 2.0.0 ")
    with Client(site.port) as open_client:
        open_client.begin()
        status = until(lambda: (s := site.status())["totals"]["messages"] and s)
    assert status["state"] == "ready"
    assert status["hostname"] == "mx.example.com"
    assert status["version"] == preforkmx.__version__
    assert status["pid"] == site.process.pid
    assert status["generation"] == 1
    assert status["listeners"] == [
        {
            "address": f"127.0.0.1:{site.port}",
            "protocol": "smtp",
            "tls": "starttls",
            "proxy_protocol": False,
            "queued": 0,
            "dropped": 0,
        }
    ]
    assert [worker["slot"] for worker in status["workers"]] == [0, 1, 2]
    assert set(status["workers"][0]) == {
        "slot",
        "started",
        "pid",
        "state",
        "generation",
        "sessions",
        "in_data",
        "loop_lag_ms",
        "hung",
        "messages",
    }
    assert sum(worker["messages"] for worker in status["workers"]) == 1
    assert status["totals"]["connections"] >= 1
    assert status["store"] == {"url": "embedded:", "state": "ready"}


def test_a_worker_holds_no_descriptor_of_another_process(
    start: Callable[..., Site], tmp_path: Path
) -> None:
    site = start(store=str(tmp_path), count=3).wait_ready()

    def sockets(pid: int) -> set[str]:
        targets = set()
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                targets.add(str(link.readlink()))
        assert not any(".lock" in target for target in targets)
        return {target for target in targets if target.startswith("socket:")}

    held = [sockets(pid) for pid in [*site.workers().values(), site.store()]]
    assert all(held)
    assert sum(map(len, held)) == len(set.union(*held)), "two children share a socket"


def test_a_second_server_on_the_same_port_refuses_to_start(
    start: Callable[..., Site], tmp_path: Path
) -> None:
    site = start().wait_ready()
    other = start(control=str(tmp_path / "other.sock"), listeners=[f"127.0.0.1:{site.port}"])
    assert other.wait() == 1
    assert f"127.0.0.1:{site.port} is taken" in other.log()
    with Client(site.port) as client:
        assert client.deliver().startswith("250 ")


def test_a_second_server_with_the_same_control_socket_refuses_to_start(
    start: Callable[..., Site],
) -> None:
    site = start().wait_ready()
    other = start()
    assert other.wait() == 1
    assert "another preforkmx runs" in other.log()
    assert f"process {site.process.pid}" in other.log()
    assert site.status()["state"] == "ready"


def test_a_worker_that_cannot_boot_ends_the_start_with_status_3(start: Callable[..., Site]) -> None:
    site = start(boot_failure_in_slot=1, boot_failure="mymx.checks has no object named spam")
    assert site.wait() == 3
    assert "mymx.checks has no object named spam" in site.log()
    assert not Path(site.settings["control"]).exists()


def test_a_configuration_that_the_checker_refuses_ends_the_start_with_status_2(
    start: Callable[..., Site],
) -> None:
    site = start(check_problems=["mx.toml:3: no such domain", "mx.toml:9: no such middleware"])
    assert site.wait() == 2
    assert "mx.toml:3: no such domain" in site.log()
    assert "mx.toml:9: no such middleware" in site.log()


def test_a_store_that_cannot_open_its_file_ends_the_start_with_status_3(
    start: Callable[..., Site], tmp_path: Path
) -> None:
    (tmp_path / "greylist.db").mkdir()
    site = start(store=str(tmp_path))
    assert site.wait() == 3
    assert "store could not start" in site.log()


def test_a_stop_during_the_start_ends_with_status_0(start: Callable[..., Site]) -> None:
    site = start(check_takes=60)
    until(lambda: "checker started" in site.log())
    site.signal(signal.SIGTERM)
    assert site.wait() == 0


# Crashes.


def test_connections_queued_for_a_killed_worker_are_greeted_by_its_replacement(
    start: Callable[..., Site],
) -> None:
    site = start().wait_ready()
    for slot, pid in site.workers().items():
        os.kill(pid, signal.SIGSTOP)
        with ExitStack() as stack:
            clients = [stack.enter_context(Client(site.port)) for _ in range(20)]
            assert until(lambda: site.status()["listeners"][0]["queued"]) > 0
            os.kill(pid, signal.SIGKILL)
            for client in clients:
                assert client.deliver().startswith("250 ")
        assert site.workers()[slot] != pid


def test_workers_killed_under_load_lose_nothing_that_was_acknowledged(
    start: Callable[..., Site], tmp_path: Path
) -> None:
    messages = tmp_path / "messages"
    messages.mkdir()
    site = start(messages=str(messages)).wait_ready()
    old = site.workers()
    load = Load(site.port)

    async def scenario() -> None:
        running = asyncio.create_task(load.run(10))
        for pid in old.values():
            await load.reaches(load.delivered + 50)
            os.kill(pid, signal.SIGKILL)
        await load.reaches(load.delivered + 50)
        load.stop()
        await running

    asyncio.run(scenario())
    assert load.refused == 0
    assert len(load.failures) <= 20, "at most the sessions of the two processes"
    assert load.delivered <= len(list(messages.iterdir())) <= load.delivered + 20
    assert not set(site.workers().values()) & set(old.values())


def test_a_slot_that_crashes_again_waits_longer_and_longer(start: Callable[..., Site]) -> None:
    site = start(count=1).wait_ready()
    for _ in range(3):
        pid = until(lambda: site.workers().get(0))
        os.kill(pid, signal.SIGKILL)
        until(partial(replaced, site, pid))
    found = re.findall(r"killed by SIGKILL; replaced (at once|in [0-9.]+ s)", site.log())
    assert found == ["at once", "in 0.25 s", "in 0.5 s"]


def test_totals_do_not_go_back_when_a_worker_is_replaced(start: Callable[..., Site]) -> None:
    site = start(count=1).wait_ready()
    for _ in range(3):
        with Client(site.port) as client:
            client.deliver()
    until(lambda: site.status()["totals"]["messages"] == 3)
    pid = site.workers()[0]
    os.kill(pid, signal.SIGKILL)
    until(partial(replaced, site, pid))
    status = site.status()
    assert status["totals"]["messages"] == 3
    assert status["totals"]["worker_crashes"] == 1
    assert status["workers"][0]["messages"] == 0
    with Client(site.port) as client:
        client.deliver()
    until(lambda: site.status()["totals"]["messages"] == 4)


def test_a_loop_that_hangs_prints_its_stack_and_is_replaced(start: Callable[..., Site]) -> None:
    site = start(count=1, hang_seconds=1.0).wait_ready()
    pid = site.workers()[0]
    with Client(site.port) as client, Client(site.port) as waiting:
        assert client.reply().startswith("220 ")
        assert client.say("HELO client.example.net").startswith("250 ")
        client.socket.sendall(b"MAIL FROM:<hang@example.net>\r\n")
        until(partial(replaced, site, pid))
        assert "in misbehave" in site.log()
        assert "has been silent for 1 s" in site.log()
        assert "killed by SIGABRT" in site.log()
        waiting.socket.close()
    with Client(site.port) as client:
        assert client.deliver().startswith("250 ")


def test_a_stopped_process_is_killed_after_its_sigabrt(start: Callable[..., Site]) -> None:
    site = start(count=1, hang_seconds=1.0).wait_ready()
    pid = site.workers()[0]
    os.kill(pid, signal.SIGSTOP)
    # A stand-in has the slot before the stopped one is killed.
    until(partial(replaced, site, pid))
    until(lambda: "killed by SIGKILL" in site.log())


def test_a_worker_that_is_told_to_end_is_replaced_before_it_goes(
    start: Callable[..., Site],
) -> None:
    site = start(count=1).wait_ready()
    pid = site.workers()[0]
    with Client(site.port) as client:
        client.begin()
        os.kill(pid, signal.SIGTERM)
        new = until(lambda: (w := site.workers().get(0, pid)) != pid and w)
        assert site.workers("draining") == {0: pid}
        assert until(lambda: title(pid)) == "preforkmx: worker 0 draining (1 sessions)"
        with Client(site.port) as other:
            assert other.deliver().startswith("250 ")
        assert client.say("RSET").startswith("250 ")
        assert client.say("QUIT").startswith("221 ")
    until(partial(dead, pid))
    assert site.workers() == {0: new}
    assert site.status()["totals"]["worker_crashes"] == 0


def test_a_killed_store_process_is_replaced(start: Callable[..., Site], tmp_path: Path) -> None:
    site = start(store=str(tmp_path)).wait_ready()
    pid = site.store()
    os.kill(pid, signal.SIGKILL)
    until(lambda: site.log().count("store is ready") == 2)
    assert site.store() != pid
    assert site.status()["store"]["state"] == "ready"


# The end of the master.


def test_workers_of_a_killed_master_drain_and_the_port_refuses(
    start: Callable[..., Site], tmp_path: Path
) -> None:
    site = start(store=str(tmp_path)).wait_ready()
    workers = list(site.workers().values())
    store = site.store()
    with Client(site.port) as idle, Client(site.port) as busy:
        assert idle.reply().startswith("220 ")
        assert idle.say("EHLO client.example.net").startswith("250 ")
        busy.begin()
        site.signal(signal.SIGKILL)
        assert site.wait() == -signal.SIGKILL
        assert idle.reply().startswith("421 4.3.2 ")
        with pytest.raises(ConnectionRefusedError):
            until(lambda: Client(site.port).close())
        assert alive(store), "the store process outlives the workers"
        assert busy.say("DATA").startswith("354 ")
        assert busy.say("Subject: x\r\n\r\nx\r\n.").startswith("250 ")
        assert busy.reply().startswith("421 4.3.2 ")
    for pid in [*workers, store]:
        until(partial(dead, pid))


def test_a_master_starts_while_the_processes_of_a_killed_one_still_end(
    start: Callable[..., Site], tmp_path: Path
) -> None:
    first = start(store=str(tmp_path), drain_seconds=60.0).wait_ready()
    workers = list(first.workers().values())
    first.store()
    with Client(first.port) as busy:
        busy.begin()
        first.signal(signal.SIGKILL)
        first.wait()
        with pytest.raises(ConnectionRefusedError):
            until(lambda: Client(first.port).close())
        second = start(store=str(tmp_path)).wait_ready()
        assert second.status()["store"]["state"] != "ready"
        with Client(second.port) as client:
            assert client.deliver().startswith("250 ")
        assert busy.say("QUIT").startswith("221 ")
    for pid in workers:
        until(partial(dead, pid))
    until(lambda: second.status()["store"]["state"] == "ready")


# The drain.


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_drain_under_load_resets_nobody(
    start: Callable[..., Site], tmp_path: Path, loop: str
) -> None:
    messages = tmp_path / "messages"
    messages.mkdir()
    site = start(messages=str(messages), loop=loop).wait_ready()
    load = Load(site.port)

    async def scenario() -> None:
        running = asyncio.create_task(load.run(20))
        await load.reaches(100)
        site.signal(signal.SIGTERM)
        await asyncio.to_thread(site.process.wait, PATIENCE)
        load.stop()
        await running

    asyncio.run(scenario())
    assert site.wait() == 0
    assert load.failures == []
    assert load.refused > 0, "the port is closed after the drain"
    assert len(list(messages.iterdir())) == load.delivered
    assert f"messages {load.delivered}," in site.log()


def test_a_drain_lets_transactions_finish_and_tells_the_idle(start: Callable[..., Site]) -> None:
    site = start().wait_ready()
    with Client(site.port) as idle, Client(site.port) as busy, Client(site.port) as slow:
        assert idle.reply().startswith("220 ")
        assert idle.say("EHLO client.example.net").startswith("250 ")
        busy.begin()
        slow.begin("slow@example.net")
        assert slow.say("DATA").startswith("354 ")
        slow.socket.sendall(b"Subject: x\r\n\r\nx\r\n.\r\n")
        site.signal(signal.SIGTERM)
        assert idle.reply().startswith("421 4.3.2 ")
        assert idle.reply() == ""
        assert slow.reply().startswith("250 ")
        assert slow.reply().startswith("421 4.3.2 ")
        assert busy.say("DATA").startswith("354 ")
        assert busy.say("Subject: x\r\n\r\nx\r\n.").startswith("250 ")
        assert busy.reply().startswith("421 4.3.2 ")
    assert site.wait() == 0


def test_a_message_that_still_arrives_at_the_deadline_gets_no_250(
    start: Callable[..., Site], tmp_path: Path
) -> None:
    messages = tmp_path / "messages"
    messages.mkdir()
    site = start(messages=str(messages), drain_seconds=0.5).wait_ready()
    with Client(site.port) as client:
        client.begin()
        assert client.say("DATA").startswith("354 ")
        client.socket.sendall(b"Subject: x\r\n\r\nhalf of it")
        site.signal(signal.SIGTERM)
        assert client.reply().startswith("421 4.3.2 ")
        assert client.reply() == ""
    assert site.wait() == 0
    assert list(messages.iterdir()) == []


def test_the_queue_of_a_worker_that_crashes_in_the_drain_is_greeted(
    start: Callable[..., Site],
) -> None:
    site = start().wait_ready()
    pid = site.workers()[0]
    os.kill(pid, signal.SIGSTOP)
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(site.port)) for _ in range(20)]
        assert until(lambda: site.status()["listeners"][0]["queued"]) > 0
        site.signal(signal.SIGTERM)
        until(lambda: site.status()["state"] == "draining")
        os.kill(pid, signal.SIGKILL)
        for client in clients:
            assert client.reply().startswith("220 ")
    assert site.wait() == 0


def test_drain_is_answered_at_once_and_the_connection_ends_with_the_master(
    start: Callable[..., Site],
) -> None:
    site = start().wait_ready()
    with Client(site.port) as busy, site.control() as control:
        busy.begin()
        control.sendall(b'{"command": "drain"}\n')
        assert read_line(control) == {"ok": True, "pid": site.process.pid}
        until(lambda: site.status()["state"] == "draining")
        assert site.command("reload") == {"ok": False, "problems": ["the server is stopping"]}
        assert busy.say("QUIT").startswith("221 ")
        assert control.recv(1) == b""
        # The next master can take over at once.
        assert not Path(site.settings["control"]).exists()
    assert site.wait() == 0


@pytest.mark.parametrize("how", ["INT", "QUIT", "TERM twice", "stop-now"])
def test_a_fast_stop_waits_for_no_session(
    start: Callable[..., Site], tmp_path: Path, how: str
) -> None:
    site = start(store=str(tmp_path), drain_seconds=60.0).wait_ready()
    children = site.children()
    with Client(site.port) as busy:
        busy.begin()
        if how == "stop-now":
            assert site.command("stop-now") == {"ok": True, "pid": site.process.pid}
        elif how == "TERM twice":
            site.signal(signal.SIGTERM)
            until(lambda: site.status()["state"] == "draining")
            site.signal(signal.SIGTERM)
        else:
            site.signal(signal.Signals[f"SIG{how}"])
        with suppress(ConnectionResetError):
            assert busy.reply() == ""
    assert site.wait() == 0
    assert not any(alive(pid) for pid in children)


def test_a_whole_process_group_that_is_told_to_end_still_drains(
    start: Callable[..., Site], tmp_path: Path
) -> None:
    site = start(store=str(tmp_path)).wait_ready()
    with Client(site.port) as busy:
        busy.begin()
        os.killpg(site.process.pid, signal.SIGTERM)
        until(lambda: site.workers("draining"))
        assert busy.say("DATA").startswith("354 ")
        assert busy.say("Subject: x\r\n\r\nx\r\n.").startswith("250 ")
        assert busy.reply().startswith("421 4.3.2 ")
    assert site.wait() == 0


# Reloads.


def test_a_reload_under_load_fails_nobody(start: Callable[..., Site], tmp_path: Path) -> None:
    messages = tmp_path / "messages"
    messages.mkdir()
    site = start(messages=str(messages)).wait_ready()
    old = site.workers()
    load = Load(site.port)

    async def scenario() -> None:
        running = asyncio.create_task(load.run(10))
        for generation in (2, 3, 4):
            seen = load.delivered
            answer = await asyncio.to_thread(site.command, "reload")
            assert answer == {"ok": True, "generation": generation}
            await load.reaches(seen + 50)
        load.stop()
        await running

    asyncio.run(scenario())
    assert load.failures == []
    assert load.turned_away == 0
    assert load.refused == 0
    assert len(list(messages.iterdir())) == load.delivered
    new = site.workers()
    assert set(new) == set(old)
    assert not set(new.values()) & set(old.values())
    until(lambda: site.status()["totals"]["messages"] == load.delivered)
    assert {worker["generation"] for worker in site.status()["workers"]} == {4}


def test_hup_reloads_and_open_sessions_go_on_in_the_old_workers(start: Callable[..., Site]) -> None:
    site = start().wait_ready()
    old = site.workers()
    with Client(site.port) as client:
        assert client.reply().startswith("220 mx.example.com ")
        site.configure(hostname="mx2.example.com")
        site.signal(signal.SIGHUP)
        until(lambda: site.status()["generation"] == 2)
        assert title(site.process.pid) == "preforkmx: master [mx2.example.com]"
        assert client.say("NOOP").startswith("250 ")
        # Of the two that retire only the one with the session stays.
        until(lambda: len(site.workers("draining")) == 1)
        assert set(site.workers("draining").items()) < set(old.items())
        with Client(site.port) as other:
            assert other.reply().startswith("220 mx2.example.com ")
        assert client.say("QUIT").startswith("221 ")
    until(lambda: not site.workers("draining"))


def test_a_retired_worker_says_421_at_the_next_command_after_its_deadline(
    start: Callable[..., Site],
) -> None:
    site = start(drain_seconds=0.5).wait_ready()
    with Client(site.port) as client:
        assert client.reply().startswith("220 ")
        (pid,) = [w["pid"] for w in until(lambda: with_session(site))]
        assert site.command("reload")["ok"]
        select.select([client.socket], [], [], 1.0)
        assert alive(pid), "an idle session of a retired worker is left alone"
        assert client.say("EHLO client.example.net").startswith("421 ")
    until(partial(dead, pid))


def with_session(site: Site) -> list[dict[str, Any]]:
    """Return the workers that have a session."""
    return [worker for worker in site.status()["workers"] if worker["sessions"]]


def test_the_next_reload_ends_the_idle_sessions_of_those_who_still_drain(
    start: Callable[..., Site],
) -> None:
    site = start(count=1).wait_ready()
    with Client(site.port) as client:
        assert client.reply().startswith("220 ")
        assert site.command("reload")["ok"]
        assert site.workers("draining")
        assert site.command("reload")["ok"]
        assert client.reply().startswith("421 ")
    assert len(site.children()) <= 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"problems": ["mx.toml:1: bad", "mx.toml:2: worse"]}, "mx.toml:2: worse"),
        ({"check_problems": ["mymx.checks cannot be imported"]}, "mymx.checks cannot be imported"),
        (
            {"boot_failure_in_slot": 1, "boot_failure": "no such certificate"},
            "no such certificate",
        ),
        ({"listeners": ["192.0.2.1:2525"]}, "does not have that address"),
        ({"store": "/nowhere"}, "takes a restart"),
        ({"max_sessions": 10**9}, "workers.max_sessions = 1000000000 needs"),
    ],
)
def test_a_refused_reload_says_why_and_changes_nothing(
    start: Callable[..., Site], change: dict[str, Any], problem: str
) -> None:
    site = start().wait_ready()
    old = site.workers()
    with Client(site.port) as client:
        client.begin()
        site.configure(hostname="never.example.com", **change)
        answer = site.command("reload")
        assert answer["ok"] is False
        assert any(problem in text for text in answer["problems"])
        assert problem in site.log()
        assert client.say("NOOP").startswith("250 ")
    status = site.status()
    assert (status["state"], status["generation"]) == ("ready", 1)
    assert status["hostname"] == "mx.example.com"
    until(lambda: site.workers() == old and not site.workers("draining"))
    with Client(site.port) as client:
        assert client.deliver().startswith("250 ")
    site.configure(**dict.fromkeys(change) | FIRST_SETTINGS, hostname="mx.example.com")
    assert site.command("reload")["ok"] is True


FIRST_SETTINGS = {"listeners": ["127.0.0.1:0"], "count": 2, "max_sessions": 500}


def test_reloads_are_done_one_after_the_other(start: Callable[..., Site]) -> None:
    site = start(check_takes=0.2).wait_ready()
    with ExitStack() as stack:
        controls = [stack.enter_context(site.control()) for _ in range(3)]
        controls[0].sendall(b'{"command": "reload"}\n')
        until(lambda: site.status()["state"] == "reloading")
        for control in controls[1:]:
            control.sendall(b'{"command": "reload"}\n')
        # Those who came while the first one was under way share the next one.
        assert [read_line(control)["generation"] for control in controls] == [2, 3, 3]


def test_a_drain_breaks_off_a_reload(start: Callable[..., Site]) -> None:
    site = start().wait_ready()
    site.configure(check_takes=60)
    with site.control() as control:
        control.sendall(b'{"command": "reload"}\n')
        until(lambda: site.status()["state"] == "reloading")
        site.signal(signal.SIGTERM)
        answer = read_line(control)
        assert answer["ok"] is False
        assert "stopping" in answer["problems"][0]
    assert site.wait() == 0


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_both_loops_serve_and_drain(start: Callable[..., Site], loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    site = start(loop=loop).wait_ready()
    with Client(site.port) as client:
        assert client.deliver().startswith("250 ")
    site.signal(signal.SIGTERM)
    assert site.wait() == 0
