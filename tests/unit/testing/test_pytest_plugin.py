"""The pytest plugin, as its users have it: in a pytest run of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


@pytest.fixture
def run_pytest(tmp_path):
    """Run pytest on a test file of these lines, with this plugin alone."""

    def run_pytest(text, *options):
        (tmp_path / "test_it.py").write_text(textwrap.dedent(text))
        return subprocess.run(
            [
                *(sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider"),
                *("-p", "preforkmx.testing.plugin", "-W", "error", *options),
            ],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )

    return run_pytest


def test_the_fixtures_start_a_server_and_record_what_it_is_asked(run_pytest):
    result = run_pytest(
        """
        import smtplib
        import pytest
        from preforkmx import Middleware, Server, SMTPError

        async def reject_null_sender(ctx, peer, address):
            if not address:
                raise SMTPError(550, "Null sender not accepted", enhanced=(5, 7, 1))

        def test_mail(smtp_server, smtp_recorder):
            server = Server(handler=smtp_recorder)
            server.use(Middleware(check_sender=reject_null_sender))
            running = smtp_server(server)
            with smtplib.SMTP(*running.address) as client:
                client.sendmail("a@example.org", ["b@example.com"], b"Hello")
                with pytest.raises(smtplib.SMTPSenderRefused) as refused:
                    client.sendmail("", ["b@example.com"], b"Hello")
            assert refused.value.smtp_code == 550
            assert smtp_recorder.messages[0].recipients == ("b@example.com",)
            assert len(smtp_recorder.wait_for("disconnect")) == 1

        def test_two_servers(smtp_server):
            first, second = smtp_server(Server()), smtp_server(Server())
            assert first.port != second.port

        def test_recorders_are_new(smtp_recorder):
            assert smtp_recorder.calls == []
        """
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 passed" in result.stdout


def test_the_teardown_stops_the_server_whatever_the_test_does(run_pytest):
    result = run_pytest(
        """
        import smtplib
        import socket
        import pytest
        from preforkmx import Server

        ports = []

        def test_fails(smtp_server):
            running = smtp_server(Server())
            ports.append(running.port)
            client = socket.create_connection(running.address)
            with client:
                assert client.recv(3) == b"not"

        def test_nothing_listens_any_more():
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", ports[0]))
        """
    )
    assert "1 failed, 1 passed" in result.stdout, result.stdout + result.stderr


def test_a_server_whose_lifespan_fails_fails_its_test(run_pytest):
    result = run_pytest(
        """
        import contextlib
        from preforkmx import Middleware, Server

        @contextlib.asynccontextmanager
        async def lifespan():
            yield
            raise LookupError("no database")

        def test_it(smtp_server):
            server = Server()
            server.use(Middleware(lifespan=lifespan))
            smtp_server(server)
        """
    )
    assert "1 passed, 1 error" in result.stdout, result.stdout + result.stderr
    assert "no database" in result.stdout


def test_coroutines_are_tested_without_a_plugin_for_asyncio(run_pytest):
    result = run_pytest(
        """
        import asyncio
        from preforkmx import Server
        from preforkmx.testing import Client, Recorder, running

        def test_it():
            async def test():
                async with running(server) as address, await Client.connect(address) as client:
                    await client.hello()
                    assert (await client.deliver(b"Hello")).code == 250

            recorder = Recorder()
            server = Server(handler=recorder)
            asyncio.run(test())
            assert len(recorder.messages) == 1
        """
    )
    assert "1 passed" in result.stdout, result.stdout + result.stderr


def test_loading_the_plugin_loads_nothing_heavy():
    """It is loaded in every pytest run of an environment that has preforkmx."""
    program = """
import sys, pytest
import preforkmx.testing.plugin
heavy = ("uvloop", "pydantic", "cryptography", "click", "setproctitle", "redis", "sqlite3")
print([name for name in sys.modules if name.split(".")[0] in heavy])
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "[]"


def test_the_how_to_does_what_it_says(run_pytest):
    page = Path(__file__).parents[3] / "docs" / "how-to" / "test-your-hooks.md"
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    result = run_pytest("\n".join(blocks))
    assert "5 passed" in result.stdout, result.stdout + result.stderr
