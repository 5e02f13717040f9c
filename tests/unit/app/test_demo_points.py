"""The demo's test points do what the tutorial says, and are in no other configuration."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import preforkmx
from preforkmx import Server
from preforkmx.app import demo_points
from preforkmx.app.demo_points import test_points as points
from preforkmx.app.site import load_configuration
from preforkmx.middleware import Greylist
from preforkmx.testing import Client, Recorder, running


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(demo_points, "SLOW_SECONDS", 0.05)
    monkeypatch.setattr(demo_points, "DATA_SLOW_SECONDS", 0.05)


def codes(*commands):
    """Return the code of the reply to each command, behind EHLO and MAIL; 0: closed."""

    async def converse():
        server = Server(hostname="localhost", handler=Recorder())
        server.use(points, Greylist(exempt_private=False).middleware())
        async with running(server) as address, await Client.connect(address) as client:
            await client.reply()
            await client.command("EHLO client.example")
            await client.command("MAIL FROM:<joe@example.org>")
            found = []
            for command in commands:
                try:
                    found.append((await client.command(command)).code)
                except (ConnectionError, EOFError):
                    found.append(0)
            return found

    return asyncio.run(converse())


@pytest.mark.parametrize("code", [400, 421, 451, 452, 550, 554, 599])
def test_a_code_is_answered_at_rcpt(code):
    assert codes(f"RCPT TO:<{code}@example.com>") == [code]


@pytest.mark.parametrize("code", [451, 550])
def test_a_code_behind_data_is_the_answer_to_the_message(code):
    assert codes(f"RCPT TO:<Data-{code}@example.com>", "DATA", "Subject: x\r\n\r\n.") == [
        250,
        354,
        code,
    ]


@pytest.mark.parametrize("point", ["slow", "data-slow"])
def test_a_slow_one_is_delivered_in_the_end(point, quick):
    assert codes(f"RCPT TO:<{point}@example.com>", "DATA", "Subject: x\r\n\r\n.") == [
        250,
        354,
        250,
    ]


def test_a_hook_that_crashes_is_answered_as_any_other_bug():
    assert codes("RCPT TO:<crash@example.com>") == [502]


def test_others_are_greylisted_also_behind_a_test_point():
    assert codes(
        "RCPT TO:<ann@example.com>", "RCPT TO:<data-451@example.com>", "RCPT TO:<ann@example.com>"
    ) == [451, 250, 451]


@pytest.mark.parametrize("local_part", ["350", "600", "4511", "x451", "slowly", "data-", "45l"])
def test_what_only_looks_like_one_is_a_recipient(local_part):
    assert demo_points._POINT.match(f"{local_part}@example.com") is None


def test_the_demo_alone_names_them():
    assert "preforkmx.app.demo_points:test_points" in [
        table.use for table in load_configuration(None, None, {}, files=False).config.middleware
    ]
    package = Path(preforkmx.__file__).parent
    naming = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "demo_points" in path.read_text("utf-8")
    ]
    assert naming == ["app/demo.py"]
