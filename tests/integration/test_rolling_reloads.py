"""Rolling reloads under load: every way in, on two and on four workers; tickets across them.

``TEST_RELOADS`` is how many; from 20 on every combination runs, below only some.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.integration.mx import MX, Generator, serving, stored_numbers
from tests.integration.peers.haproxy import HAProxy, Route, haproxy
from tests.integration.test_reload_of_listeners import (
    authority,
    reload,
    settled,
    tls,
    trusting,
    write_certificate,
)
from tests.integration.waiting import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

pytestmark = pytest.mark.integration

__all__ = ["authority", "tls"]

RELOADS = int(os.environ.get("TEST_RELOADS", "3"))
ALL = [(kind, workers) for kind in ("plain", "starttls", "implicit", "proxy") for workers in (2, 4)]
SOME = [("plain", 4), ("starttls", 2), ("implicit", 4), ("proxy", 2)]
MESSAGES = 20
"""So many are acknowledged between two reloads."""

LISTENERS = """
[[listener]]
address = "127.0.0.1:0"
{options}
[[listener]]
address = "127.0.0.1:0"
tls = "implicit"
{options}
"""
PROXY = 'proxy_protocol = true\nproxy_from = ["127.0.0.1"]'
# Whatever fails is seen by a client: HAProxy itself tries nothing again.
BACKEND = "    option smtpchk EHLO balancer.example.com\n    retries 0"
# Two failures in a row, as deployed. inter is also what a check may take to connect, TLS included.
CHECK = "send-proxy-v2 check check-send-proxy inter 500ms fall 2 rise 1"


def generators(kind: str, ports: Sequence[int], context: ssl.SSLContext) -> list[Generator]:
    """Return clients that come in this way: through HAProxy some in each of the others."""
    smtp, submissions = ports
    if kind == "plain":
        return [Generator(smtp, sessions=8)]
    if kind == "starttls":
        return [Generator(smtp, sessions=8, starttls=context)]
    if kind == "implicit":
        return [Generator(submissions, sessions=8, implicit_tls=context)]
    return [
        Generator(smtp, sessions=4),
        Generator(smtp, sessions=2, starttls=context),
        Generator(submissions, sessions=2, implicit_tls=context),
    ]


@contextlib.contextmanager
def balanced(mx: MX) -> Iterator[HAProxy]:
    """Have a HAProxy in front of both ports, which checks each of them twice a second."""
    smtp, submissions = (f"127.0.0.1:{port}" for port in mx.ports)
    with haproxy(
        Route("smtp", smtp, CHECK, backend=BACKEND),
        Route("submissions", submissions, f"{CHECK} check-ssl verify none", backend=BACKEND),
    ) as proxy:
        for name in proxy.ports:
            # Until there is a check it is taken for UP.
            until(lambda name=name: proxy.server(name)["check_status"] == "L7OK", name)
        yield proxy


async def reloaded_under_load(mx: MX, clients: Sequence[Generator]) -> None:
    """Reload again and again while they send."""
    async with contextlib.AsyncExitStack() as stack:
        for each in clients:
            await stack.enter_async_context(each.sending())
        for _ in range(RELOADS):
            await asyncio.gather(*(each.acknowledged(MESSAGES) for each in clients))
            await asyncio.to_thread(reload, mx)
        await asyncio.gather(*(each.acknowledged(MESSAGES) for each in clients))


@pytest.mark.parametrize(("kind", "workers"), ALL if RELOADS >= 20 else SOME)
def test_rolling_reloads_fail_nobody(tmp_path, tls, authority, kind, workers):
    """Every transaction that began is acknowledged, and what was acknowledged is stored, once."""
    toml = LISTENERS.format(options=PROXY if kind == "proxy" else "") + tls
    with contextlib.ExitStack() as stack:
        mx = stack.enter_context(serving(tmp_path, toml, workers=workers))
        proxy = stack.enter_context(balanced(mx)) if kind == "proxy" else None
        ports = mx.ports if proxy is None else list(proxy.ports.values())
        clients = generators(kind, ports, trusting(authority))
        began = time.monotonic()
        asyncio.run(reloaded_under_load(mx, clients))
        took = time.monotonic() - began
        sent = sorted(number for each in clients for number in each.load.acknowledged)
        failures = sum(each.load.failures for each in clients)
        sys.stdout.write(
            f"\n{kind}, {workers} workers: {RELOADS} reloads, {len(sent)} transactions, "
            f"{failures} failures, {took:.1f} s\n"
        )
        assert failures == 0, ([each.load for each in clients], mx.log)
        assert sorted(stored_numbers(mx)) == sent
        assert mx.status()["generation"] == RELOADS + 1
        for name in () if proxy is None else proxy.ports:
            row = proxy.server(name)
            assert (row["status"], row["chkdown"]) == ("UP", "0"), (row, proxy.log)


# Session tickets.


def starttls(client: socket.socket) -> None:
    """Say STARTTLS, and read nothing that comes after its reply."""
    for command, reply in ((b"", b"220 "), (b"EHLO client.example\r\n", b"250")):
        client.sendall(command)
        assert client.recv(1000).startswith(reply)
    client.sendall(b"STARTTLS\r\n")
    assert client.recv(1000).startswith(b"220 ")


def by_starttls(
    port: int, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[ssl.SSLSession | None, bool | None]:
    """Say QUIT behind STARTTLS; return the session and whether it was resumed."""
    raw = socket.create_connection(("127.0.0.1", port), PATIENCE)
    starttls(raw)
    with context.wrap_socket(raw, server_hostname="127.0.0.1", session=session) as client:
        client.sendall(b"QUIT\r\n")
        assert client.recv(200).startswith(b"221 ")
        return client.session, client.session_reused


def by_implicit_tls(
    port: int, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[ssl.SSLSession | None, bool | None]:
    """Say QUIT over implicit TLS; return the session and whether it was resumed."""
    raw = socket.create_connection(("127.0.0.1", port), PATIENCE)
    with context.wrap_socket(raw, server_hostname="127.0.0.1", session=session) as client:
        assert client.recv(200).startswith(b"220 ")
        client.sendall(b"QUIT\r\n")
        assert client.recv(200).startswith(b"221 ")
        return client.session, client.session_reused


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_tickets_resume_across_workers_and_a_reload_is_at_worst_a_full_handshake(
    tmp_path, tls, authority, version
):
    """Behind STARTTLS as well as over implicit TLS."""
    context = trusting(authority)
    context.maximum_version = ssl.TLSVersion[version]
    with serving(tmp_path, LISTENERS.format(options="") + tls) as mx:
        ways: list[tuple[Callable, int]] = list(
            zip((by_starttls, by_implicit_tls), mx.ports, strict=True)
        )
        sessions = {}

        def resumes(way: Callable, port: int) -> bool:
            sessions[way], reused = way(port, context, sessions.get(way))
            return reused

        for way, port in ways:
            assert not resumes(way, port)
            # Twelve times the same worker of the two would be luck, once in 2048.
            assert all(resumes(way, port) for _ in range(12))
        reload(mx)
        until(lambda: settled(mx, 2), mx)
        for way, port in ways:
            resumes(way, port)
            assert resumes(way, port)
        # With another certificate too.
        write_certificate(tmp_path, authority)
        reload(mx)
        until(lambda: settled(mx, 2), mx)
        for way, port in ways:
            resumes(way, port)
            assert resumes(way, port)
