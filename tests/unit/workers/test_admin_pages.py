"""What a client can use up at the admin process's port: little, and not for long."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest

from preforkmx.workers import admin_pages
from preforkmx.workers.reports import MasterSilent


class Said:
    """Reports that say what a test wants."""

    def __init__(self, state="ready", served=1):
        self.state = state
        self.served = served

    async def latest(self):
        if self.state is None:
            raise MasterSilent("the master does not answer")
        return {"state": self.state, "served": self.served}


@asynccontextmanager
async def serving(reports=None):
    """Serve the pages on a port of loopback."""
    sock = socket.create_server(("127.0.0.1", 0))
    address = sock.getsockname()
    ready, stop = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(admin_pages.serve_pages(sock, reports or Said(), ready.set, stop))
    await ready.wait()
    try:
        yield address
    finally:
        stop.set()
        await asyncio.wait_for(task, 10)


async def ask(address, octets):
    """Send octets, and return all that comes back until the connection ends."""
    reader, writer = await asyncio.open_connection(*address[:2])
    try:
        writer.write(octets)
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def get(path, *headers):
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


@pytest.mark.parametrize(
    ("state", "status", "text"),
    [
        ("ready", b"200", b"ready"),
        ("reloading", b"200", b"reloading"),
        ("booting", b"503", b"booting"),
        ("draining", b"503", b"draining"),
        ("anything else", b"503", b"anything else"),
        (None, b"503", b"the master does not answer"),
    ],
)
def test_only_a_server_that_takes_mail_is_ready(run, state, status, text):
    async def main():
        async with serving(Said(state)) as address:
            answer = await ask(address, get("/readyz"))
            assert answer.split()[1] == status
            assert answer.endswith(b"\r\n\r\n" + text + b"\n")

    run(main())


@pytest.mark.parametrize(
    ("state", "status", "text"),
    [
        ("ready", b"503", b"unserved"),
        ("reloading", b"503", b"unserved"),
        # At the end of a drain nobody is served, and that is as it should be.
        ("draining", b"503", b"draining"),
        ("booting", b"503", b"booting"),
    ],
)
def test_a_server_in_which_nobody_greets_is_not_ready(run, state, status, text):
    async def main():
        async with serving(Said(state, served=0)) as address:
            answer = await ask(address, get("/readyz"))
            assert answer.split()[1] == status
            assert answer.endswith(b"\r\n\r\n" + text + b"\n")
            assert (await ask(address, get("/healthz"))).split()[1] == b"200"

    run(main())


@pytest.mark.parametrize("path", ["/healthz", "/status.json", "/metrics"])
def test_a_master_that_does_not_answer_is_503_everywhere(run, path):
    async def main():
        async with serving(Said(None)) as address:
            assert (await ask(address, get(path))).startswith(b"HTTP/1.1 503 ")

    run(main())


def test_a_connection_has_one_request(run):
    """Two in one segment get one answer, and the end."""

    async def main():
        async with serving() as address:
            answer = await ask(address, get("/readyz") * 2)
            assert answer.count(b"HTTP/1.1") == 1
            assert b"connection: close\r\n" in answer

    run(main())


@pytest.mark.parametrize(
    ("octets", "status"),
    [
        (get("/readyz", "X: " + "x" * 9000), b"431"),
        (get("/readyz", *(f"X{n}: {n}" for n in range(1200))), b"431"),
        (get("/" + "x" * 9000), b"431"),
        (get("/readyz?" + "x" * 9000), b"431"),
        (get("/readyz", "X: " + "x" * 9000)[:-4], b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (get("/readyz", "Content-Length: 5") + b"hello", b"413"),
        (get("/readyz", "Transfer-Encoding: chunked") + b"0\r\n\r\n", b"413"),
        (get("/readyz", "Content-Length: 0"), b"200"),
        (get("/readyz", "Upgrade: websocket", "Connection: Upgrade"), b"200"),
        (get("/readyz").replace(b"GET", b"DELETE"), b"405"),
        (get("/readyz").replace(b"GET", b"OPTIONS"), b"405"),
    ],
)
def test_what_is_no_small_get_is_refused(run, octets, status):
    async def main():
        async with serving() as address:
            answer = await ask(address, octets)
            # A client that sends on may be reset before it has read its answer.
            assert not answer or answer.split()[1] == status
            assert (await ask(address, get("/readyz"))).split()[1] == b"200"

    run(main())


@pytest.mark.parametrize("octets", [b"", b"GET /readyz HT", b"GET /readyz HTTP/1.1\r\nHost: x\r\n"])
def test_a_client_that_does_not_come_to_the_end_is_cut_off(run, monkeypatch, octets):
    async def main():
        monkeypatch.setattr(admin_pages, "CONNECTION_SECONDS", 0.05)
        async with serving() as address:
            assert await ask(address, octets) == b""

    run(main())


def test_connections_beyond_the_limit_are_closed_and_those_that_end_make_room(run, monkeypatch):
    async def main():
        monkeypatch.setattr(admin_pages, "CONNECTIONS", 3)
        async with serving() as address:
            silent = [await asyncio.open_connection(*address[:2]) for _ in range(3)]
            assert await ask(address, get("/readyz")) == b""
            for _, writer in silent:
                writer.close()
                await writer.wait_closed()
            async with asyncio.timeout(10):
                while not await ask(address, get("/readyz")):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    run(main())
