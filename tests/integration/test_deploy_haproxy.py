"""deploy/haproxy/haproxy.cfg as it is, but for its addresses: HAProxy takes it and it works."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.mx import Generator, serving, stored_numbers
from tests.integration.peers.certificate import tls_table
from tests.integration.peers.haproxy import HAPROXY, is_valid
from tests.integration.peers.programs import peer_program
from tests.integration.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

DEPLOYED = (Path(__file__).parents[2] / "deploy/haproxy/haproxy.cfg").read_text()
LISTENERS = """
[[listener]]
address = "127.0.0.1:0"
proxy_protocol = true
proxy_from = ["127.0.0.1"]
[[listener]]
address = "127.0.0.1:0"
tls = "implicit"
proxy_protocol = true
proxy_from = ["127.0.0.1"]
"""
# A tenth of the documented times, and the same proportion.
LAME_DUCK = 2.0
MESSAGES = int(os.environ.get("TEST_MESSAGES", "60"))


def unprivileged(text: str, folder: Path) -> str:
    """Return a configuration that needs no root, no user of its own and no folder of Debian's."""
    text = re.sub(r"^    (user|group|chroot) .*\n", "", text, flags=re.MULTILINE)
    wanted = {
        "/run/haproxy/": f"{folder}/",
        "/dev/log": f"{folder}/log.sock",
        # The limit of open files is the machine's.
        "maxconn 20000": "maxconn 100",
    }
    return substituted(text, wanted)


def substituted(text: str, wanted: dict[str, str]) -> str:
    """Replace what must stand there exactly once or more; what is not found is a failure."""
    for old, new in wanted.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def rows(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    """Return ``show stat`` by backend and server."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(folder / "admin.sock"))
        client.sendall(b"show stat\n")
        text = b"".join(iter(lambda: client.recv(65536), b"")).decode()
    table = csv.DictReader(text.removeprefix("# ").splitlines())
    return {(row["pxname"], row["svname"]): row for row in table}


@contextlib.contextmanager
def balancer(servers: list[list[int]]) -> Iterator[tuple[Path, list[int]]]:
    """Run the deployed configuration in front of servers with these ports for 25 and 465."""
    with contextlib.ExitStack() as stack:
        # Not below pytest's own folder: the path of its socket would be too long.
        folder = Path(tempfile.mkdtemp(prefix="haproxy-"))
        stack.callback(shutil.rmtree, folder)
        fronts = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        wanted = {
            "bind :25\n": f"bind fd@{fronts[0].fileno()}\n",
            "bind :465\n": f"bind fd@{fronts[1].fileno()}\n",
            "inter 2s": "inter 200ms",
        }
        for server, ports in zip(("192.0.2.10", "192.0.2.11"), servers, strict=True):
            for number, port in zip((2525, 2465), ports, strict=True):
                # The comments name the same address in quotes.
                wanted[f" {server}:{number}\n"] = f" 127.0.0.1:{port}\n"
        path = folder / "haproxy.cfg"
        path.write_text(substituted(unprivileged(DEPLOYED, folder), wanted))
        log = stack.enter_context((folder / "log").open("wb"))
        process = subprocess.Popen(
            [peer_program(HAPROXY), "-db", "-f", path],
            stdout=log,
            stderr=log,
            pass_fds=[front.fileno() for front in fronts],
        )
        stack.callback(process.wait)
        stack.callback(process.kill)

        def up() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            if not (folder / "admin.sock").exists():
                return False
            checks = [row for (_, name), row in rows(folder).items() if name.startswith("mx")]
            assert len(checks) == 4
            # Not before a first check: HAProxy takes a server for UP until then.
            return all(row["status"] == "UP" and row["check_status"] == "L7OK" for row in checks)

        until(up, "both servers are up for both ports", seconds=30)
        yield folder, [front.getsockname()[1] for front in fronts]


def test_haproxy_takes_the_configuration(tmp_path):
    path = tmp_path / "haproxy.cfg"
    path.write_text(unprivileged(DEPLOYED, tmp_path))
    valid, said = is_valid(path)
    assert valid, said
    assert "WARNING" not in said
    assert "ALERT" not in said


def test_the_timings_fit_the_drain_that_stands_beside_them():
    """HAProxy looks away before the port closes, in each backend."""
    comment = "\n".join(re.findall(r"^#   (.*)$", DEPLOYED, re.MULTILINE))
    lame_duck = tomllib.loads(comment)["workers"]["lame_duck_seconds"]
    timings = re.findall(r"inter (\d+)s fall (\d+) rise \d+$", DEPLOYED, re.MULTILINE)
    assert len(timings) == 2
    for inter, fall in timings:
        assert int(inter) * int(fall) + 5 <= lame_duck


def test_a_server_drains_behind_it_and_no_client_notices(tmp_path):
    """TERM for one of two, with load on 25 and 465: HAProxy looks away while it still serves."""
    tls = tls_table(tmp_path)
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(
                serving(
                    tmp_path / name,
                    f"[workers]\ncount = 1\nlame_duck_seconds = {LAME_DUCK}\n{LISTENERS}{tls}",
                )
            )
            for name in ("mx1", "mx2")
        ]
        _, (smtp, submissions) = stack.enter_context(balancer([mx.ports for mx in servers]))
        context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        generators = [
            Generator(smtp, sessions=4, messages=2),
            Generator(submissions, sessions=2, messages=2, implicit_tls=context),
        ]

        async def more() -> None:
            await asyncio.gather(*(each.acknowledged(MESSAGES) for each in generators))

        async def main() -> None:
            async with contextlib.AsyncExitStack() as sending:
                for each in generators:
                    await sending.enter_async_context(each.sending())
                await more()
                servers[0].process.send_signal(signal.SIGTERM)
                status = await asyncio.to_thread(servers[0].process.wait, 60)
                assert status == 0, servers[0].log
                await more()

        asyncio.run(main())
        for each in generators:
            assert each.load.failures == 0, each.load
        stored = sorted(number for mx in servers for number in stored_numbers(mx))
        assert stored == sorted(number for each in generators for number in each.load.acknowledged)
