"""The final drain as clients see it: directly, and behind a real HAProxy that checks health.

``TEST_LAME_DUCK_SESSIONS`` and ``TEST_DRAINS`` make it longer than CI has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time

import pytest

from tests.integration.mx import Generator, serving, stored_numbers
from tests.integration.peers.haproxy import Route, haproxy
from tests.integration.waiting import until

pytestmark = pytest.mark.integration

SESSIONS = int(os.environ.get("TEST_LAME_DUCK_SESSIONS", "10"))
DRAINS = int(os.environ.get("TEST_DRAINS", "1"))
LAME_SECONDS = 2
CHECK = "send-proxy-v2 check check-send-proxy inter 200ms fall 2 rise 1"
# A connection that fails is tried again on the other server only where HAProxy is told so: here
# it is not, so that every failure is one that a client sees.
BACKEND = "    balance roundrobin\n    option smtpchk EHLO balancer.example\n    retries 0"
LISTENER = """
[workers]
count = 2
lame_duck_seconds = {lame}
drain_seconds = 20
[[listener]]
address = "127.0.0.1:0"
proxy_protocol = true
proxy_from = ["127.0.0.1"]
"""
HEALTH_CHECK = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"
"""A PROXY header of version 2 whose command is LOCAL: that is how health checks say hello."""


def answer(port, header):
    """Return the first line that a connection with this header gets."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(header)
        return client.recv(1024)


def client_header():
    return b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 25\r\n"


@contextlib.contextmanager
def two_servers(tmp_path, lame):
    text = LISTENER.format(lame=lame)
    with (
        serving(tmp_path / "one", text) as one,
        serving(tmp_path / "two", text) as two,
    ):
        ports = one.ports[0], two.ports[0]
        second = f"    server other 127.0.0.1:{ports[1]} {CHECK}"
        route = Route("mx", f"127.0.0.1:{ports[0]}", CHECK, backend=f"{BACKEND}\n{second}")
        with haproxy(route) as proxy:
            until(lambda: proxy.server("mx")["status"] == "UP", "the first server is up")
            yield one, two, proxy


async def drained_under_load(mx, port, order):
    """Drain `mx` while clients come through `port`; return what they saw."""
    generator = Generator(port, sessions=SESSIONS, messages=2)
    load = asyncio.create_task(generator.run())
    await generator.acknowledged(30)
    before = time.monotonic()
    await asyncio.to_thread(order)
    assert await asyncio.to_thread(mx.process.wait, 60) == 0
    took = time.monotonic() - before
    await generator.acknowledged(30)
    generator.stopping.set()
    await asyncio.wait_for(load, 60)
    return generator.load, took


@pytest.mark.parametrize("drain", range(DRAINS))
def test_behind_a_load_balancer_no_client_sees_a_drain(tmp_path, drain):
    """The checks fail first, HAProxy leads clients elsewhere, and then the port closes."""
    with two_servers(tmp_path, LAME_SECONDS) as (one, two, proxy):
        load, took = asyncio.run(
            drained_under_load(
                one, proxy.ports["mx"], lambda: one.process.send_signal(signal.SIGTERM)
            )
        )
        assert load.failures == 0, (load, one.log[-3000:])
        assert took >= LAME_SECONDS
        assert proxy.server("mx")["status"] == "DOWN"
        stored = stored_numbers(one) + stored_numbers(two)
        assert sorted(stored) == sorted(load.acknowledged)


def test_without_the_lame_duck_clients_behind_a_load_balancer_see_it(tmp_path):
    """So the test above would notice if it did nothing; -s shows how many."""
    with two_servers(tmp_path, LAME_SECONDS) as (one, _two, proxy):
        load, took = asyncio.run(
            drained_under_load(one, proxy.ports["mx"], lambda: one.run("stop"))
        )
        numbers = f"{load.resets} resets, {load.busy} times 421, {load.lost} lost"
        sys.stdout.write(f"\nwithout the lame duck: {numbers}, in {took:.1f} s\n")
        assert load.failures > 0


@pytest.mark.parametrize("drain", range(DRAINS))
def test_a_drain_under_direct_load_resets_nobody(tmp_path, drain):
    """The port refuses at last; who connected before that was greeted."""

    async def scenario(mx):
        generator = Generator(mx.ports[0], sessions=SESSIONS, messages=2)
        load = asyncio.create_task(generator.run())
        await generator.acknowledged(30)
        mx.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(mx.process.wait, 60) == 0
        generator.stopping.set()
        await asyncio.wait_for(load, 60)
        return generator.load

    with serving(tmp_path, "[workers]\ncount = 2\nlame_duck_seconds = 0.5\n") as mx:
        load = asyncio.run(scenario(mx))
        assert load.resets == 0, load
        assert load.refused
        assert load.lost == 0, load
        assert sorted(stored_numbers(mx)) == sorted(load.acknowledged)


def test_health_checks_get_421_while_clients_are_served(tmp_path):
    with serving(tmp_path, LISTENER.format(lame=60)) as mx:
        port = mx.ports[0]
        assert answer(port, HEALTH_CHECK).startswith(b"220 ")
        mx.process.send_signal(signal.SIGTERM)
        until(lambda: answer(port, HEALTH_CHECK).startswith(b"421 "), "the lame duck")
        until(lambda: mx.run("status").returncode == 4, "the state")
        for _ in range(10):
            assert answer(port, client_header()).startswith(b"220 ")
        # A worker that crashes meanwhile is replaced, by one that is lame as well.
        slot, pid = next((w["slot"], w["pid"]) for w in mx.status()["workers"])
        os.kill(pid, signal.SIGKILL)
        until(
            lambda: any(
                w["slot"] == slot and w["pid"] != pid and w["state"] == "ready"
                for w in mx.status()["workers"]
            ),
            "the replacement",
        )
        checks = [answer(port, HEALTH_CHECK) for _ in range(20)]
        assert all(check.startswith(b"421 ") for check in checks)
        # A reload would bring workers that know nothing of it.
        assert mx.run("reload").returncode != 0
        # stop is without the lame duck: nobody waits for the rest of its 60 s.
        before = time.monotonic()
        assert mx.run("stop").returncode == 0
        assert mx.process.wait(10) == 0
        assert time.monotonic() - before < 10


def test_a_second_term_ends_the_lame_duck_and_all_else(tmp_path):
    with serving(tmp_path, LISTENER.format(lame=60)) as mx:
        mx.process.send_signal(signal.SIGTERM)
        until(lambda: "lame duck: " in mx.log, "the lame duck")
        mx.process.send_signal(signal.SIGTERM)
        assert mx.process.wait(10) == 0


def test_drain_has_the_lame_duck_and_stop_has_not(tmp_path):
    with serving(tmp_path / "stop", LISTENER.format(lame=30)) as mx:
        before = time.monotonic()
        assert mx.run("stop").returncode == 0
        assert time.monotonic() - before < 15
        assert "lame duck: " not in mx.log
    with serving(tmp_path / "drain", LISTENER.format(lame=1)) as mx:
        assert mx.run("drain").returncode == 0
        assert "lame duck: " in mx.log


def test_a_master_that_is_killed_in_the_lame_duck_leaves_a_port_that_refuses(tmp_path):
    with serving(tmp_path, LISTENER.format(lame=60)) as mx:
        mx.process.send_signal(signal.SIGTERM)
        until(lambda: "lame duck: " in mx.log, "the lame duck")
        mx.process.kill()
        mx.process.wait()

        def refuses():
            try:
                socket.create_connection(("127.0.0.1", mx.ports[0]), timeout=20).close()
            except ConnectionRefusedError:
                return True
            return False

        until(refuses, "the port refuses")
