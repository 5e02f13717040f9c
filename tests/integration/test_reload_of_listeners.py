"""Reloads that change what is listened on, or are refused, with real processes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import smtplib
import socket
import ssl
import time
from contextlib import closing
from pathlib import Path

import pytest
import trustme

from tests.integration.mx import MX, Generator, serving

pytestmark = pytest.mark.integration

LEAK_RELOADS = int(os.environ.get("TEST_LEAK_RELOADS", "30"))
PATIENCE = 20.0
PLAIN = '[[listener]]\naddress = "127.0.0.1:0"\n'


def until(condition, mx: MX):
    """Wait for what nothing tells of."""
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < deadline, mx.log
        time.sleep(0.02)
    return result


def free_port() -> int:
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def listener(address: object, *lines: str) -> str:
    place = address if isinstance(address, str) else f"127.0.0.1:{address}"
    return "\n".join([f'[[listener]]\naddress = "{place}"', *lines, ""])


def reconfigure(mx: MX, *listeners: str, **settings: str) -> None:
    """Write other listeners, and tables with other values, in the place of what there is."""
    first = mx.directory / "first.toml"
    if not first.exists():
        first.write_text(mx.config.read_text())
    text = re.sub(r"\[\[listener\]\][^\[]*", "", first.read_text())
    for old, new in settings.items():
        text = text.replace(f"{old} = 2", f"{old} = {new}")
    mx.config.write_text(text + "".join(listeners))


def reload(mx: MX) -> None:
    assert mx.command("reload")["ok"], mx.log


def greeting(port: int) -> bytes:
    with closing(socket.create_connection(("127.0.0.1", port), PATIENCE)) as client:
        return client.recv(200)


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except ConnectionRefusedError:
        return True
    return False


def steady(pid: int) -> int:
    """Return how many descriptors a process has, once that does not change any more: the
    master's control connections are gone by then."""
    path = Path(f"/proc/{pid}/fd")
    deadline = time.monotonic() + PATIENCE
    seen = []
    while len(seen) < 5 or len(set(seen[-5:])) > 1:
        assert time.monotonic() < deadline, f"process {pid} opens and closes: {seen[-50:]}"
        seen.append(len(list(path.iterdir())))
        time.sleep(0.02)
    return seen[-1]


def resident(pid: int) -> int:
    """Return the resident octets of a process that are its own."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", text)[1]) * 1024


def children(mx: MX) -> list[str]:
    pid = mx.process.pid
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def settled(mx: MX, workers: int) -> bool:
    """Whether all who retired are gone."""
    return len(mx.status()["workers"]) == workers


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def tls(tmp_path, authority):
    """Return the table of the server's certificate."""
    write_certificate(tmp_path, authority)
    return f'[tls]\ncertificate = "{tmp_path}/cert.pem"\nkey = "{tmp_path}/key.pem"\n'


def write_certificate(folder: Path, authority: trustme.CA) -> None:
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "key.pem").chmod(0o600)


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


# Listeners come, go and change.


def test_listeners_come_and_go_while_those_that_stay_serve_everybody(tmp_path):
    with serving(tmp_path, PLAIN) as mx:
        [stays] = mx.ports
        comes, path = free_port(), tmp_path / "run" / "smtp.sock"
        generator = Generator(stays, sessions=6)

        async def scenario():
            running = asyncio.create_task(generator.run())
            await generator.acknowledged(20)
            for listeners in (
                [listener(stays), listener(comes), listener(f"unix:{path}")],
                [listener(stays)],
                [listener(f"unix:{path}"), listener(comes), listener(stays)],
                [listener(stays)],
            ):
                reconfigure(mx, *listeners)
                await asyncio.to_thread(reload, mx)
                there = len(listeners) > 1
                assert refuses(comes) is not there
                assert path.exists() is there
                if there:
                    assert (await asyncio.to_thread(greeting, comes)).startswith(b"220 ")
                    assert path.stat().st_mode & 0o777 == 0o666
                    through = Generator(path, sessions=2)
                    sending = asyncio.create_task(through.run())
                    await through.acknowledged(4)
                    through.stopping.set()
                    await sending
                    assert (through.load.resets, through.load.busy, through.load.lost) == (0, 0, 0)
                await generator.acknowledged(20)
            generator.stopping.set()
            await running

        asyncio.run(scenario())
        load = generator.load
        assert (load.resets, load.refused, load.busy, load.lost) == (0, 0, 0, 0), mx.log
        assert "cannot accept" not in mx.log


def test_a_listener_that_goes_resets_nobody_and_its_sessions_go_on(tmp_path):
    goes = free_port()
    with serving(tmp_path, PLAIN + listener(goes)) as mx:
        stays = mx.ports[0]
        generator = Generator(goes, sessions=6)

        async def scenario():
            running = asyncio.create_task(generator.run())
            await generator.acknowledged(20)
            reconfigure(mx, listener(stays))
            await asyncio.to_thread(reload, mx)
            # What is under way ends with the session; new connections are refused by now.
            await asyncio.to_thread(until, lambda: generator.load.refused, mx)
            generator.stopping.set()
            await running

        with smtplib.SMTP("127.0.0.1", goes, timeout=PATIENCE) as client:
            client.ehlo()
            asyncio.run(scenario())
            assert refuses(goes)
            client.sendmail("a@example.org", ["box@example.com"], "Subject: x\r\n\r\nx\r\n")
        load = generator.load
        assert (load.resets, load.busy, load.lost) == (0, 0, 0), mx.log
        until(lambda: settled(mx, 2), mx)


def test_options_of_a_listener_change_on_its_address(tmp_path, tls, authority):
    with serving(tmp_path, PLAIN + tls) as mx:
        [port] = mx.ports
        for lines, expected in (
            (['tls = "implicit"'], b"TLS"),
            (['tls = "off"', 'protocol = "lmtp"'], b"LMTP"),
            (["proxy_protocol = true", 'proxy_from = ["127.0.0.1"]'], b"PROXY"),
            ([], b"ESMTP"),
        ):
            reconfigure(mx, listener(port, *lines))
            reload(mx)
            until(lambda: settled(mx, 2), mx)
            client = socket.create_connection(("127.0.0.1", port), PATIENCE)
            if expected == b"TLS":
                client = trusting(authority).wrap_socket(client, server_hostname="127.0.0.1")
            with closing(client):
                if expected == b"PROXY":
                    client.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 25\r\n")
                assert client.recv(200).startswith(b"220 ")
                client.sendall(b"LHLO x\r\n" if expected == b"LMTP" else b"EHLO x\r\n")
                assert client.recv(200).startswith(b"250")


BOOTS_IN_THE_FIRST_SLOT = """\
import asyncio
import contextlib
from pathlib import Path
from preforkmx.middleware.base import Middleware

def make(**options):
    return Middleware(lifespan=lifespan)

@contextlib.asynccontextmanager
async def lifespan():
    # In the folder of the server, which is its working directory.
    if Path("booted").exists():
        Path("boots").touch()
        await asyncio.sleep(60)
    Path("booted").touch()
    yield
"""


def test_a_drain_that_breaks_off_a_reload_serves_every_listener_until_it_closes(tmp_path):
    goes = free_port()
    workers = "[workers]\ncount = 2\nlame_duck_seconds = 3\n"
    with serving(tmp_path, PLAIN + listener(goes) + workers) as mx:
        (tmp_path / "mymx.py").write_text(BOOTS_IN_THE_FIRST_SLOT)
        reconfigure(mx, listener(mx.ports[0]), '[[middleware]]\nuse = "mymx:make"\n', count="3")
        mx.process.send_signal(signal.SIGHUP)
        until((tmp_path / "boots").exists, mx)
        mx.process.send_signal(signal.SIGTERM)
        until(lambda: "lame duck" in mx.log, mx)
        # A port that only the old generation has, and one of its workers is killed.
        os.kill(next(w["pid"] for w in mx.status()["workers"] if w["generation"] == 1), 9)
        for _ in range(20):
            assert greeting(goes).startswith(b"220 ")
            assert greeting(mx.ports[0]).startswith(b"220 ")
        assert mx.process.wait(PATIENCE) == 0
        assert refuses(goes)


# Refusals.


def test_a_refused_reload_gives_all_reasons_and_leaves_ports_and_workers_as_they_were(tmp_path):
    with serving(tmp_path, PLAIN) as mx, closing(socket.socket()) as other:
        [port] = mx.ports
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken, free = other.getsockname()[1], free_port()
        (tmp_path / "file").write_text("precious")
        before, pids = steady(mx.process.pid), mx.pids()
        (tmp_path / "mymx.py").write_text("raise RuntimeError('a middleware that cannot boot')\n")
        reconfigure(
            mx,
            listener(port),
            listener(free),
            listener(taken),
            listener(f"unix:{tmp_path}/file"),
            listener(f"unix:{tmp_path}/new.sock"),
            f'[state]\nurl = "embedded:{tmp_path}/other.db"\n',
            '[[middleware]]\nuse = "mymx:missing"\n',
        )
        answer = mx.run("reload")
        assert answer.returncode != 0
        text = answer.stdout + answer.stderr
        for reason in (f"127.0.0.1:{taken} is taken", "no socket", "state.url", "mymx"):
            assert reason in text
        assert mx.pids() == pids
        assert steady(mx.process.pid) == before
        assert refuses(free)
        assert not (tmp_path / "new.sock").exists()
        assert (tmp_path / "file").read_text() == "precious"
        assert greeting(port).startswith(b"220 ")


def test_a_broken_file_and_a_key_of_another_certificate_are_refused(tmp_path, tls):
    with serving(tmp_path, PLAIN + tls) as mx:
        text, pids = mx.config.read_text(), mx.pids()
        mx.config.write_text(text + "[[[")
        answer = mx.run("reload")
        assert answer.returncode != 0
        assert "TOML" in answer.stdout + answer.stderr
        mx.config.write_text(text)
        cert = (tmp_path / "cert.pem").read_bytes()
        write_certificate(tmp_path, trustme.CA())
        (tmp_path / "cert.pem").write_bytes(cert)
        answer = mx.run("reload")
        assert answer.returncode != 0
        assert "tls" in answer.stdout + answer.stderr
        assert mx.pids() == pids
        with smtplib.SMTP("127.0.0.1", mx.ports[0], timeout=PATIENCE) as client:
            assert client.starttls()[0] == 220


BOOTS_ONLY_IN_THE_CHECKER = """\
import contextlib
from preforkmx.errors import BootError
from preforkmx.middleware.base import Middleware

def make(**options):
    return Middleware(lifespan=lifespan)

@contextlib.asynccontextmanager
async def lifespan():
    raise BootError("no database")
    yield
"""


def test_a_worker_that_cannot_boot_closes_what_was_opened_for_it(tmp_path):
    with serving(tmp_path, PLAIN) as mx:
        [port] = mx.ports
        new = free_port()
        before = steady(mx.process.pid)
        (tmp_path / "mymx.py").write_text(BOOTS_ONLY_IN_THE_CHECKER)
        for _ in range(2):
            reconfigure(
                mx,
                listener(port),
                listener(new),
                listener(f"unix:{tmp_path}/new.sock"),
                '[[middleware]]\nuse = "mymx:make"\n',
                count="4",
            )
            assert mx.command("reload")["problems"] == ["no database"]
            until(lambda: settled(mx, 2), mx)
            assert refuses(new)
            assert not (tmp_path / "new.sock").exists()
            assert steady(mx.process.pid) == before
        assert [each["address"] for each in mx.status()["listeners"]] == [f"127.0.0.1:{port}"]


# Leaks.


@pytest.mark.timeout(60 + 5 * LEAK_RELOADS)
def test_reloads_leave_nothing_behind(tmp_path):
    with serving(tmp_path, PLAIN) as mx:
        [port] = mx.ports
        other = free_port()

        def change(number: int) -> None:
            # A listener and a slot come and go, and another backlog each time.
            more = [listener(other, f"backlog = {100 + number}")] if number % 6 < 3 else []
            reconfigure(mx, listener(port), *more, count=str(2 + number // 6 % 2))
            reload(mx)
            if number % 3 == 0:
                # And one that is refused, with another port that would have been opened.
                reconfigure(mx, listener(port), listener(free_port()), listener("192.0.2.1:2525"))
                assert not mx.command("reload")["ok"]

        def count() -> tuple[int, int, list[int]]:
            """Return the master's descriptors, its children, and the workers' descriptors."""
            reconfigure(mx, listener(port))
            reload(mx)
            until(lambda: settled(mx, 2), mx)
            workers = [steady(pid) for pid in mx.pids()]
            return steady(mx.process.pid), len(children(mx)), workers

        for number in range(6):
            change(number)
        before = count()
        half = max(LEAK_RELOADS // 2, 1)
        memory = []
        for _ in range(2):
            for number in range(half):
                change(number)
            assert count() == before
            memory.append(resident(mx.process.pid))
        # A page here and there, but nothing that each reload adds to. What is kept once, such as
        # the interpreter's own caches, is there after the first half.
        assert (memory[1] - memory[0]) / half < 20_000
