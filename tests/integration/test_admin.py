"""The admin process of a real server: what it says, when, and that mail never depends on it."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import smtplib
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from preforkmx.observe.counters import HELP
from tests.integration.mx import COMMAND, Generator, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.mx import MX

pytestmark = pytest.mark.integration

PATIENCE = 20.0
RELOADS = int(os.environ.get("TEST_RELOADS", "2"))
KILLS = int(os.environ.get("TEST_KILLS", "2"))
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for what another process does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.02)


def table(folder: Path, address: str = "127.0.0.1:0") -> str:
    return f'[admin]\naddress = "{address}"\ncontrol = "{folder}/control.sock"\n'


class Admin:
    """An HTTP client of the admin process."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, path: str, method: str = "GET", **arguments) -> tuple[int, str, dict[str, str]]:
        """Return status, text and headers."""
        connection = http.client.HTTPConnection(self.address, timeout=PATIENCE)
        try:
            connection.request(method, path, **arguments)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), dict(answer.getheaders())
        finally:
            connection.close()

    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Return every sample by its name and labels."""
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in prometheus(self.ask("/metrics")[1])
            for sample in family.samples
        }


@contextmanager
def admin(folder: Path, toml: str = "", **arguments) -> Iterator[tuple[MX, Admin]]:
    """Serve, with an admin process that answers."""
    with serving(folder, toml + table(folder), **arguments) as mx:
        client = Admin(mx.status()["admin"]["address"])
        # What connects before it is ready waits in the socket that the master holds.
        assert client.ask("/healthz")[0] == 200
        yield mx, client


def admin_pid(mx: MX) -> int | None:
    """Return the process id of the admin process, which has no other mark than its title."""
    children = Path(f"/proc/{mx.process.pid}/task/{mx.process.pid}/children").read_text().split()
    for child in children:
        try:
            title = Path(f"/proc/{child}/cmdline").read_bytes().rstrip(b"\0")
        except FileNotFoundError:
            continue
        if title == b"preforkmx: admin":
            return int(child)
    return None


def send(mx: MX) -> None:
    with smtplib.SMTP("127.0.0.1", mx.ports[0], timeout=PATIENCE) as client:
        client.sendmail("a@example.net", ["b@example.com"], "Subject: x\r\n\r\nx\r\n")


def test_every_address_answers_and_nothing_else_does(tmp_path):
    with admin(tmp_path) as (mx, client):
        send(mx)
        assert client.ask("/healthz")[:2] == (200, "ok\n")
        assert client.ask("/readyz")[:2] == (200, "ready\n")

        status, text, headers = client.ask("/status.json")
        assert (status, headers["content-type"]) == (200, "application/json")
        shown = mx.status()
        assert json.loads(text).keys() == shown.keys()
        assert json.loads(text)["listeners"] == shown["listeners"]
        until(lambda: mx.status()["totals"]["messages"] == 1, "the count in the status")
        until(lambda: client.samples()["preforkmx_messages_total", ()] == 1, "the metric")

        status, text, headers = client.ask("/metrics")
        assert status == 200
        assert headers["content-type"].startswith("text/plain; version=0.0.4")
        assert headers["cache-control"] == "no-store"
        samples = client.samples()
        for name in HELP:
            assert (f"preforkmx_{name}_total", ()) in samples
        assert samples["preforkmx_messages_total", ()] == 1
        assert samples["preforkmx_workers", (("state", "ready"),)] == 2
        assert samples["preforkmx_state", (("state", "ready"),)] == 1
        assert samples["preforkmx_store_state", (("state", "ready"),)] == 1
        assert samples["preforkmx_generation", ()] == 1
        listener = (("listener", f"127.0.0.1:{mx.ports[0]}"),)
        assert samples["preforkmx_queue_length", listener] == 0
        assert abs(samples["preforkmx_start_time_seconds", ()] - time.time()) < 120

        _, text, headers = client.ask("/metrics", headers={"Accept": OPENMETRICS})
        assert headers["content-type"].startswith("application/openmetrics-text")
        assert {sample.name for family in openmetrics(text) for sample in family.samples} == {
            name for name, _ in samples
        }

        assert client.ask("/readyz", "HEAD")[:2] == (200, "")
        assert client.ask("/metrics", "POST")[0] == 405
        assert client.ask("/metrics", body=b"x")[0] == 413
        for path in ("/", "/metrics/", "/../metrics", "/status.json/x", "/etc/passwd"):
            assert client.ask(path)[0] == 404, path


def test_a_drain_is_told_until_the_end(tmp_path):
    """Who asks is told 503 and the state while sessions end, and is refused afterwards."""
    with admin(tmp_path) as (mx, client):
        with closing(smtplib.SMTP("127.0.0.1", mx.ports[0], timeout=PATIENCE)) as session:
            session.ehlo()
            session.mail("a@example.net")
            session.rcpt("b@example.com")
            mx.process.send_signal(signal.SIGTERM)
            until(lambda: client.ask("/readyz")[:2] == (503, "draining\n"), "the drain")
            assert client.ask("/healthz")[0] == 200
            draining = ("preforkmx_workers", (("state", "draining"),))
            until(lambda: client.samples()[draining] == 1, "the end of the idle worker")
            assert client.samples()["preforkmx_state", (("state", "draining"),)] == 1
            assert session.data("Subject: x\r\n\r\nx\r\n")[0] == 250
            # Said 421 after its message, and closed.
        assert mx.process.wait(PATIENCE) == 0
        with pytest.raises(ConnectionRefusedError):
            client.ask("/healthz")


def test_a_server_whose_workers_all_hang_is_not_ready(tmp_path):
    """Stand-ins too: what is asked is whether anybody greets, not whether processes exist."""
    with admin(tmp_path) as (mx, client):
        stopped = set()

        def stop_all() -> list[dict]:
            workers = [each for each in mx.status()["workers"] if each["pid"] is not None]
            for pid in {each["pid"] for each in workers} - stopped:
                os.kill(pid, signal.SIGSTOP)
                stopped.add(pid)
            return workers

        before = mx.pids()
        try:
            until(
                lambda: stop_all() and client.ask("/readyz")[:2] == (503, "unserved\n"),
                "unserved",
            )
            for each in stop_all():
                if each["pid"] in before:
                    assert each["hung"], each
                    assert each["loop_lag_ms"] > 2500
            assert client.ask("/healthz")[0] == 200
            until(lambda: client.samples()["preforkmx_slots_served", ()] == 0, "the metric")
            slot = ("preforkmx_loop_lag_seconds", (("slot", "0"),))
            assert client.samples()[slot] > 2.5
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        until(lambda: client.ask("/readyz")[:2] == (200, "ready\n"), "somebody who greets")
        assert mx.status()["served"] == 2
        assert not any(each["hung"] for each in mx.status()["workers"])
        send(mx)


CRASHES = """
import os
from pathlib import Path
from preforkmx import Middleware

def crash(*, flag: str) -> Middleware:
    if Path(flag).exists():
        os._exit(9)
    return Middleware()
"""


def test_a_server_whose_only_worker_crashes_at_its_boot_is_not_ready(tmp_path):
    (tmp_path / "crashes.py").write_text(CRASHES)
    flag = tmp_path / "flag"
    toml = f'[[middleware]]\nuse = "crashes:crash"\nflag = "{flag}"\n'
    with admin(tmp_path, toml, workers=1) as (mx, client):
        flag.touch()
        os.kill(mx.pids()[0], signal.SIGKILL)
        until(lambda: mx.status()["totals"]["worker_crashes"] >= 3, "crashes")
        until(lambda: client.ask("/readyz")[:2] == (503, "unserved\n"), "unserved")
        assert client.ask("/healthz")[0] == 200
        assert mx.status()["served"] == 0
        flag.unlink()
        until(lambda: client.ask("/readyz")[:2] == (200, "ready\n"), "a worker")


def test_a_killed_admin_process_is_replaced_and_mail_goes_on(tmp_path):
    with admin(tmp_path) as (mx, client):
        workers = mx.pids()
        first = admin_pid(mx)
        assert first is not None
        os.kill(first, signal.SIGKILL)
        send(mx)
        # The connection waits in the master's socket until the next one serves it.
        assert client.ask("/readyz")[0] == 200
        assert admin_pid(mx) not in (first, None)
        assert mx.pids() == workers
        assert client.samples()["preforkmx_worker_crashes_total", ()] == 1


def test_no_counter_goes_backwards_over_kills_and_reloads(tmp_path):
    """Workers are killed and replaced under load; each scrape has as much as the one before."""
    with admin(tmp_path) as (mx, client):

        async def scrape(stop: asyncio.Event) -> list[dict]:
            scrapes = []
            while not stop.is_set():
                scrapes.append(await asyncio.to_thread(client.samples))
            return scrapes

        async def main() -> tuple[list[dict], int]:
            generator = Generator(mx.ports[0], sessions=4)
            sending = asyncio.create_task(generator.run())
            stop = asyncio.Event()
            scraping = asyncio.create_task(scrape(stop))
            for _ in range(max(RELOADS, KILLS)):
                await generator.acknowledged(20)
                os.kill((await asyncio.to_thread(mx.pids))[0], signal.SIGKILL)
                await generator.acknowledged(20)
                answer = await asyncio.to_thread(mx.run, "reload")
                assert answer.returncode == 0, answer.stderr
            await generator.acknowledged(20)
            generator.stopping.set()
            await sending
            stop.set()
            return await scraping, len(generator.load.acknowledged)

        scrapes, acknowledged = asyncio.run(main())
        counters = [key for key in scrapes[0] if key[0].endswith("_total")]
        assert len(counters) > len(HELP)
        for earlier, later in pairwise(scrapes):
            for key in counters:
                assert earlier[key] <= later[key], key
        reloads = max(RELOADS, KILLS)

        def all_counted() -> bool:
            now = client.samples()
            return (
                now["preforkmx_generation", ()] == 1 + reloads
                and now["preforkmx_worker_crashes_total", ()] == reloads
                # What a killed worker had counted in its last second is missing.
                and now["preforkmx_messages_total", ()] >= acknowledged / 2
            )

        until(all_counted, "the last scrape's numbers")


def test_an_address_that_is_taken_refuses_the_start(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = tmp_path / "preforkmx.toml"
        config.write_text(
            'hostname = "mx.example.com"\ndomains = ["example.com"]\n'
            '[[listener]]\naddress = "127.0.0.1:0"\n[delivery]\nuse = "discard"\n'
            + table(tmp_path, address)
        )
        result = subprocess.run(
            [*COMMAND, "serve", "-c", config],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert result.returncode == 1
    assert f"[admin] address: {address} is taken" in result.stderr


def test_a_reload_moves_the_admin_process_or_is_refused_whole(tmp_path):
    with admin(tmp_path, workers=1) as (mx, client):
        text = mx.config.read_text()

        def reload(address: str) -> subprocess.CompletedProcess[str]:
            mx.config.write_text(text.replace(table(tmp_path), table(tmp_path, address)))
            return mx.run("reload")

        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            refused = reload(address)
            assert refused.returncode == 2
            assert f"[admin] address: {address} is taken" in refused.stderr + refused.stdout
            assert client.ask("/readyz")[0] == 200
        # The port that was refused is free now, and nothing of the refused attempt holds it.
        assert reload(address).returncode == 0
        moved = Admin(address)
        assert moved.ask("/readyz")[0] == 200
        with pytest.raises(OSError):
            # It is refused, or reset while the old one stops.
            for _ in range(100):
                client.ask("/readyz")
        assert reload("").returncode == 0
        until(lambda: admin_pid(mx) is None, "the end of the admin process")
        with pytest.raises(ConnectionRefusedError):
            moved.ask("/readyz")
        send(mx)
        assert reload("127.0.0.1:0").returncode == 0
        assert Admin(mx.status()["admin"]["address"]).ask("/readyz")[0] == 200


def test_it_is_gone_with_a_master_that_was_killed(tmp_path):
    """Nobody is told that all is well, and the next master has the port at once."""
    with admin(tmp_path, workers=1) as (mx, client):
        pid = admin_pid(mx)
        mx.process.kill()
        mx.process.wait()
        until(lambda: not Path(f"/proc/{pid}").exists(), "the end of the admin process")
        with pytest.raises(ConnectionRefusedError):
            client.ask("/healthz")
    with serving(tmp_path, table(tmp_path, client.address), workers=1):
        assert client.ask("/healthz")[0] == 200


def test_only_the_admin_process_has_a_web_framework():
    """What master and workers import stays as small as it was."""
    script = (
        "import sys, preforkmx.cli, preforkmx.master.supervisor, preforkmx.workers.admin\n"
        "found = {'starlette', 'uvicorn', 'prometheus_client', 'anyio', 'h11'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
