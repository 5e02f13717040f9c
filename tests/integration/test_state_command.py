"""``preforkmx state`` beside running servers, on every store."""

from __future__ import annotations

import json
import re
import smtplib

import pytest
from click.testing import CliRunner

from preforkmx.cli import main
from tests.integration.mx import serving

pytestmark = pytest.mark.integration

HOST = "127.0.0.1"
NETWORK = "127.0.0.0/24"
SITE = """
[[middleware]]
use = "rate_limit"
connections = "3/day"
concurrent = 5
per_sender = "10/day"

[[middleware]]
use = "greylist"
exempt_private = false
"""
PATHS = ("--sender", "joe+x@example.org", "--recipient", "Box@example.com")


def attempt(mx):
    """Try to deliver; return the code of the greeting or, where that is 220, of RCPT."""
    client = smtplib.SMTP()
    code, _ = client.connect(HOST, mx.ports[0])
    if code == 220:
        client.ehlo("client.example")
        client.mail("joe@example.org")
        code, _ = client.rcpt("box@example.com")
        client.quit()
    client.close()
    return code


def asked(mx, *arguments):
    """Return what the command prints as JSON; in this process, which has it loaded."""
    result = CliRunner().invoke(main, ["state", *arguments, "--json", "-c", str(mx.config)])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def everything(mx):
    """Look, forget and allow, while a server answers by the same store."""
    document = asked(mx, "show", HOST, *PATHS)
    (limits,), (greylist,) = document["rate_limit"], document["greylist"]
    assert limits["limits"]["connections"] == {"left": 3, "of": 3, "wait": 0.0}
    assert (limits["open"], limits["concurrent"], limits["exempt"]) == (0, 5, False)
    assert greylist["triplet"]["state"] == "new"
    assert not asked(mx, "forget", HOST, *PATHS)["known"]

    assert [attempt(mx) for _ in range(3)] == [451] * 3
    document = asked(mx, "show", HOST, *PATHS)
    (limits,), (greylist,) = document["rate_limit"], document["greylist"]
    assert limits["limits"]["connections"]["left"] == 0
    assert 0 < limits["limits"]["connections"]["wait"] <= 86_400 / 3
    assert limits["limits"]["per_sender"]["left"] == 7
    assert greylist["triplet"]["state"] == "early"
    assert 0 < greylist["triplet"]["left"] <= 300
    text = mx.run("state", "show", HOST, *PATHS).stdout
    assert re.search(r"^connections +0 +3 +28\d+\.\d s$", text, re.MULTILINE)
    assert f"greylist {NETWORK}" in text
    assert "triplet: early, first seen at " in text

    assert asked(mx, "forget", HOST, *PATHS)["known"]
    document = asked(mx, "show", HOST, *PATHS)
    assert document["rate_limit"][0]["limits"]["connections"]["left"] == 3
    assert document["rate_limit"][0]["limits"]["per_sender"]["left"] == 10
    assert document["greylist"][0]["triplet"]["state"] == "new"
    assert attempt(mx) == 451

    assert asked(mx, "allow", HOST, "--days", "90") == {"allowed": [NETWORK]}
    assert attempt(mx) == 250
    document = asked(mx, "show", HOST)
    assert document["greylist"][0]["allowed"]
    assert document["greylist"][0]["triplet"] is None
    assert "network: allowed" in mx.run("state", "show", HOST).stdout


def test_the_state_of_one_machine_is_shown_forgotten_and_allowed(tmp_path):
    with serving(tmp_path, SITE, workers=2) as mx:
        everything(mx)
        assert mx.stop() == 0
        away = mx.run("state", "show", HOST)
        assert away.returncode == 5
        assert "not running" in away.stderr


def test_the_state_in_redis_is_shown_forgotten_and_allowed(tmp_path, redis):
    redis.ask("FLUSHALL")
    with serving(tmp_path, f'{SITE}\n[state]\nurl = "redis://{redis.address}"\n') as mx:
        everything(mx)
        # It needs no running server.
        assert mx.stop() == 0
        assert asked(mx, "show", HOST)["store"] == f"redis://{redis.address}"
