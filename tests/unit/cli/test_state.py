from __future__ import annotations

from ipaddress import ip_network

import pytest
from click.testing import CliRunner

from preforkmx.app.operate import networks_of
from preforkmx.cli import main

SITE = """\
hostname = "mx.example.com"
domains = ["example.com"]
[[listener]]
address = "127.0.0.1:0"
[[middleware]]
use = "rate_limit"
concurrent = 5
[[middleware]]
use = "greylist"
[delivery]
use = "discard"
"""


@pytest.fixture
def run(tmp_path):
    def run(*arguments, toml=SITE):
        path = tmp_path / "preforkmx.toml"
        path.write_text(f'{toml}\n[admin]\ncontrol = "{tmp_path}/control"\n')
        return CliRunner().invoke(main, ["state", *arguments, "-c", str(path)])

    return run


@pytest.mark.parametrize(
    ("network", "first", "count"),
    [
        ("192.0.2.1/32", "192.0.2.0/24", 1),
        ("192.0.2.0/25", "192.0.2.0/24", 1),
        ("192.0.2.0/24", "192.0.2.0/24", 1),
        ("192.0.0.0/16", "192.0.0.0/24", 256),
        ("2001:db8::1/128", "2001:0db8:0000:0000::/64", 1),
        ("2001:db8::/64", "2001:0db8:0000:0000::/64", 1),
        ("2001:db8::/56", "2001:0db8:0000:0000::/64", 256),
    ],
)
def test_a_network_stands_for_those_that_the_greylist_knows(network, first, count):
    networks = networks_of(ip_network(network))
    assert (networks[0], len(networks)) == (first, count)


@pytest.mark.parametrize("network", ["192.0.0.0/15", "2001:db8::/55", "0.0.0.0/0"])
def test_a_network_that_is_too_large_is_refused(run, network):
    result = run("allow", network)
    assert result.exit_code == 2
    assert "is too large: at most a /" in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "mx.example.com"], "is not an IPv4 or IPv6 address"),
        (["forget", ""], "is not an IPv4 or IPv6 address"),
        (["allow", "192.0.2.1/24"], "192.0.2.0/24"),
        (["allow", "192.0.2.0/24", "--days", "0"], "--days"),
    ],
)
def test_a_command_line_that_is_wrong_says_what(run, arguments, says):
    result = run(*arguments)
    assert result.exit_code == 2
    assert says in result.output


@pytest.mark.parametrize("arguments", [["show", "192.0.2.1"], ["forget", "192.0.2.1"]])
def test_the_state_of_each_worker_alone_cannot_be_asked(run, arguments):
    result = run(*arguments, toml=f'{SITE}[state]\nurl = "local:"\n')
    assert result.exit_code == 1
    assert "in the memory of each worker" in result.output


def test_without_a_store_process_nobody_answers(run):
    result = run("show", "192.0.2.1", "--json")
    assert result.exit_code == 5
    assert "not running: there is no " in result.output


def test_a_redis_that_does_not_answer_is_named_without_its_password(run):
    url = "redis://:secret@127.0.0.1:1"
    result = run("show", "192.0.2.1", toml=f'{SITE}[state]\nurl = "{url}"\n')
    assert result.exit_code == 5
    assert "redis://127.0.0.1:1 does not answer" in result.output
    assert "secret" not in result.output


def test_a_wrong_configuration_is_told_with_status_2(run):
    result = run("show", "192.0.2.1", toml=SITE.replace("concurrent = 5", "concurrent = 0"))
    assert result.exit_code == 2
    assert "concurrent" in result.output


def test_without_a_greylist_there_is_nothing_to_allow(run):
    # It is said before anybody is asked.
    toml = SITE.replace('[[middleware]]\nuse = "greylist"\n', "")
    result = run("allow", "192.0.2.0/24", toml=toml)
    assert result.exit_code == 2
    assert 'there is no [[middleware]] with use = "greylist"' in result.output


def test_help_says_what_each_command_does(run):
    result = CliRunner().invoke(main, ["state", "--help"])
    assert {"show", "forget", "allow"} <= set(result.output.split())
