"""preforkmx spf: its arguments, its configuration and what it prints."""

from __future__ import annotations

import json
import socket

import pytest
from click.testing import CliRunner

from preforkmx.cli import main

SITE = """
hostname = "mx.example.com"
domains = ["example.com"]
[[listener]]
address = "127.0.0.1:2525"
[delivery]
use = "discard"
[dns]
servers = ["127.0.0.1:{port}"]
timeout = "200ms"
"""


@pytest.fixture
def site(tmp_path):
    """A configuration whose resolver is nobody."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    path = tmp_path / "preforkmx.toml"
    path.write_text(SITE.format(port=port))
    return path


def run(*arguments):
    return CliRunner().invoke(main, ["spf", *map(str, arguments)])


def test_a_result_is_printed_and_is_no_failure_of_the_command(site):
    result = run("192.0.2.1", "mail.example.org", "joe@example.org", "-c", site)
    assert result.exit_code == 0
    first, second, third = result.stdout.splitlines()
    assert first.startswith("temperror: example.org TXT: ")
    assert second == "  mailfrom 'example.org' from 192.0.2.1"
    assert third == "  0 of 10 look-ups"


def test_a_program_reads_json(site):
    result = run("--json", "2001:db8::1", "[2001:db8::1]", "", "-c", site)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "result": "none",
        "reason": "no domain: [2001:db8::1]",
        "explanation": "",
        "lookups": 0,
        "identity": "helo",
        "domain": "[2001:db8::1]",
    }


def test_what_is_no_address_is_refused(site):
    result = run("mail.example.org", "mail.example.org", "", "-c", site)
    assert result.exit_code == 2
    assert "does not appear to be an IPv4 or IPv6 address" in result.stderr


def test_a_wrong_configuration_is_told(tmp_path):
    path = tmp_path / "preforkmx.toml"
    path.write_text('hostnaem = "x"\n')
    result = run("192.0.2.1", "mail.example.org", "", "-c", path)
    assert result.exit_code == 2
    assert "hostnaem" in result.stderr
