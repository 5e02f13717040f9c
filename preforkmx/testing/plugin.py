"""The pytest plugin: fixtures for tests of hooks and handlers.

It is loaded in every pytest run of an environment that has preforkmx, so it imports nothing
before a fixture is asked for.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from preforkmx.server import Server
    from preforkmx.testing.recorder import Recorder
    from preforkmx.testing.servers import StartServer, ThreadedServer


@pytest.fixture
def smtp_server() -> Iterator[StartServer]:
    """Start servers, each on a free loopback port in a thread of its own, for one test.

    ::

        def test_it(smtp_server):
            running = smtp_server(Server(handler=deliver))
            with smtplib.SMTP(*running.address) as client:
                ...

    The teardown stops all of them, and fails when one does not stop.
    """
    from preforkmx.testing.servers import ThreadedServer  # noqa: PLC0415 - see above

    with ExitStack() as stack:

        def start(server: Server, **options: Any) -> ThreadedServer:
            return stack.enter_context(ThreadedServer(server, **options))

        yield start


@pytest.fixture
def smtp_recorder() -> Recorder:
    """Return a new :class:`~preforkmx.testing.recorder.Recorder`."""
    from preforkmx.testing.recorder import Recorder  # noqa: PLC0415 - see above

    return Recorder()
