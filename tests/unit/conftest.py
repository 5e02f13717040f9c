"""What the tests of everything that runs in a loop share."""

from __future__ import annotations

import asyncio
import ssl

import pytest
import trustme
import uvloop

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=list(LOOPS))
def run(request):
    """Run a coroutine to its end, on both loops; it must leave no task behind."""

    async def alone(coroutine):
        result = await coroutine
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"left behind: {left}"
        return result

    def run(coroutine):
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            return runner.run(alone(coroutine))

    return run


@pytest.fixture
def until():
    """Wait for what nothing tells of: ``await until(lambda: …)``, at most 10 s."""

    async def until(condition):
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.001)

    return until


@pytest.fixture
def sweep_fast(monkeypatch):
    """Look at deadlines every 10 ms."""
    monkeypatch.setattr("preforkmx.session.reception.SWEEP_SECONDS", 0.01)


@pytest.fixture(scope="session")
def authority():
    return trustme.CA()


@pytest.fixture(scope="session")
def server_tls(authority):
    """The context of a server whose certificate is for localhost."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1", "::1").configure_cert(context)
    return context


@pytest.fixture
def client_tls(authority):
    """A new context of a client that trusts the server's certificate."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    authority.configure_trust(context)
    return context
