"""Rolling reloads under load, plain and with TLS, and session tickets across them."""

from __future__ import annotations

import asyncio
import socket
import ssl

import pytest

from tests.integration.mx import Generator, serving
from tests.integration.test_reload_of_listeners import (
    PATIENCE,
    PLAIN,
    RELOADS,
    authority,
    reload,
    settled,
    tls,
    trusting,
    until,
    write_certificate,
)

pytestmark = pytest.mark.integration

__all__ = ["authority", "tls"]


@pytest.mark.parametrize(
    ("kind", "workers"), [("plain", 4), ("starttls", 2), ("implicit", 4), ("plain", 2)]
)
def test_rolling_reloads_fail_nobody(tmp_path, tls, authority, kind, workers):
    option = 'tls = "implicit"\n' if kind == "implicit" else ""
    with serving(tmp_path, PLAIN + option + tls, workers=workers) as mx:
        context = None if kind == "plain" else trusting(authority)
        generator = Generator(
            mx.ports[0],
            sessions=8,
            implicit_tls=context if kind == "implicit" else None,
            starttls=context if kind == "starttls" else None,
        )

        async def scenario():
            running = asyncio.create_task(generator.run())
            for _ in range(RELOADS):
                await generator.acknowledged(20)
                await asyncio.to_thread(reload, mx)
            await generator.acknowledged(20)
            generator.stopping.set()
            await running

        asyncio.run(scenario())
        load = generator.load
        assert (load.resets, load.refused, load.busy, load.lost) == (0, 0, 0, 0), mx.log
        assert len(mx.delivered()) == len(load.acknowledged)
        assert mx.status()["generation"] == RELOADS + 1


# Session tickets.


def handshake(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None):
    """Say EHLO over implicit TLS; return the session and whether it was resumed."""
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
    with serving(tmp_path, PLAIN + 'tls = "implicit"\n' + tls) as mx:
        [port] = mx.ports
        context = trusting(authority)
        context.maximum_version = ssl.TLSVersion[version]
        session, _ = handshake(port, context, None)
        for _ in range(12):
            session, reused = handshake(port, context, session)
            assert reused
        reload(mx)
        until(lambda: settled(mx, 2), mx)
        session, _ = handshake(port, context, session)
        session, reused = handshake(port, context, session)
        assert reused
        # With another certificate too.
        write_certificate(tmp_path, authority)
        reload(mx)
        until(lambda: settled(mx, 2), mx)
        handshake(port, context, session)
