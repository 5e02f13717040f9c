from __future__ import annotations

import datetime as dt
import json
import tomllib

import click
import pytest
from click.testing import CliRunner

from preforkmx.cli import VERBS, common, main
from preforkmx.cli.control import ControlError, NotRunning
from preforkmx.cli.status import render

SMALL = """\
hostname = "mx.example.com"
domains = ["example.com"]
[[listener]]
address = "127.0.0.1:0"
[delivery]
use = "discard"
"""

STATUS = {
    "state": "ready",
    "hostname": "mx.example.com",
    "version": "1.2.3",
    "pid": 4711,
    "generation": 3,
    "started": "2024-05-01T12:00:00+00:00",
    "listeners": [
        {"address": "0.0.0.0:25", "tls": "starttls", "proxy_protocol": False, "queued": 12},
        {"address": "[::]:465", "tls": "implicit", "proxy_protocol": False, "queued": 0},
    ],
    "workers": [
        {
            "slot": 0,
            "pid": 4712,
            "state": "ready",
            "generation": 3,
            "sessions": 118,
            "in_data": 4,
            "loop_lag_ms": 2,
            "messages": 90210,
        },
        {
            "slot": 1,
            "pid": None,
            "state": "gone",
            "generation": 3,
            "sessions": 0,
            "in_data": 0,
            "loop_lag_ms": 0,
            "messages": 0,
        },
    ],
    "totals": {"connections": 1234, "messages_refused": 5},
    "store": {"url": "embedded:", "state": "ready", "away": 0, "process": "ready"},
}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run():
    def run(*arguments):
        return CliRunner().invoke(main, arguments)

    return run


class Answers:
    """Stands for the control socket: notes what was asked, answers as told."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []
        self.waited = False
        self.exits = True

    def __call__(self, path):
        self.path = path
        if isinstance(self.answer, Exception):
            raise self.answer
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, command, seconds=0):
        self.asked.append(command)
        return self.answer

    def wait_for_exit(self):
        self.waited = True
        return self.exits


@pytest.fixture
def server(monkeypatch):
    """Let the verbs reach a server that answers this."""

    def server(answer):
        import preforkmx.cli.drain
        import preforkmx.cli.reload
        import preforkmx.cli.status
        import preforkmx.cli.upgrade

        answers = Answers(answer)
        cli = preforkmx.cli
        for module in (cli.drain, cli.reload, cli.status, cli.upgrade):
            monkeypatch.setattr(module, "Control", answers)
        return answers

    return server


def test_every_verb_of_the_interface_is_there(run):
    assert list(VERBS) == [
        "serve",
        "check-config",
        "config",
        "status",
        "reload",
        "upgrade",
        "drain",
        "stop",
        "state",
        "explain",
        "spf",
        "hash-password",
    ]
    context = click.Context(main)
    for name in VERBS:
        verb = main.get_command(context, name)
        assert verb.name == name
        assert verb.help
        assert run(name, "--help").exit_code == 0
    assert run("frobnicate").exit_code == 2


@pytest.mark.parametrize(
    ("state", "exit_status"), [("ready", 0), ("reloading", 0), ("draining", 4)]
)
def test_status_exits_with_the_servers_state(run, server, state, exit_status):
    server({**STATUS, "state": state})
    assert run("status").exit_code == exit_status
    assert run("status", "--json").exit_code == exit_status


@pytest.mark.parametrize(
    "verb", [["status"], ["status", "--json"], ["reload"], ["upgrade"], ["drain"], ["stop"]]
)
def test_a_server_that_does_not_run_is_status_5(run, server, verb):
    server(NotRunning("not running: nobody answers"))
    result = run(*verb)
    assert (result.exit_code, result.stdout) == (5, "")
    assert "not running" in result.stderr


@pytest.mark.parametrize("verb", ["status", "reload", "upgrade", "drain", "stop"])
def test_a_server_that_may_not_be_asked_is_status_1(run, server, verb):
    server(ControlError("cannot be used: Permission denied"))
    result = run(verb)
    assert result.exit_code == 1
    assert "Permission denied" in result.stderr


def test_status_as_json_is_the_servers_document(run, server):
    server(STATUS)
    assert json.loads(run("status", "--json").stdout) == STATUS


def test_status_for_people_is_a_table():
    now = dt.datetime(2024, 5, 3, 13, 7, tzinfo=dt.UTC)
    assert render(STATUS, now).splitlines() == [
        "mx.example.com is ready: generation 3, up 2 d 1 h, process 4711, preforkmx 1.2.3",
        "",
        "LISTENER    TLS       QUEUED",
        "0.0.0.0:25  starttls      12",
        "[::]:465    implicit       0",
        "",
        "SLOT  PROCESS  STATE  GENERATION  SESSIONS  IN DATA  LAG   MESSAGES",
        "   0     4712  ready           3       118        4  2 ms     90210",
        "   1        -  gone            3         0        0  0 ms         0",
        "",
        "store embedded: is ready",
        "",
        "SINCE THE START   COUNT",
        "connections        1234",
        "messages refused      5",
    ]


def test_a_reload_that_was_done_names_the_generation(run, server):
    answers = server({"ok": True, "generation": 4})
    result = run("reload")
    assert (result.exit_code, result.stdout) == (0, "generation 4 serves\n")
    assert answers.asked == ["reload"]


def test_a_refused_reload_prints_every_reason(run, server):
    server({"ok": False, "problems": ["my.toml:3: a", "my.toml:9: b"]})
    result = run("reload")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "the reload is refused:",
        "my.toml:3: a",
        "my.toml:9: b",
    ]


@pytest.mark.parametrize(
    ("verb", "command"),
    [(["drain"], "drain"), (["stop"], "stop"), (["stop", "--now"], "stop-now")],
)
def test_a_stop_waits_for_the_exit(run, server, verb, command):
    answers = server({"ok": True, "pid": 4711})
    assert run(*verb).exit_code == 0
    assert answers.asked == [command]
    assert answers.waited


@pytest.mark.parametrize("verb", ["drain", "stop"])
def test_a_server_that_does_not_exit_is_not_called_stopped(run, server, verb):
    answers = server({"ok": True, "pid": 4711})
    answers.exits = False
    result = run(verb)
    assert result.exit_code == 1
    assert "process 4711 has ended its connections, and did not exit within 5 s" in result.output
    assert "has exited" not in result.output


def test_a_stop_that_is_refused_fails(run, server):
    answers = server({"ok": False, "problems": ["no"]})
    assert run("stop").exit_code == 1
    assert not answers.waited


def test_without_a_file_the_demos_socket_is_asked(run, server, tmp_path):
    answers = server(STATUS)
    run("status")
    assert answers.path == tmp_path / "preforkmx-data" / "control.sock"


def test_the_file_in_the_working_directory_names_the_socket(run, server, tmp_path):
    answers = server(STATUS)
    (tmp_path / "preforkmx.toml").write_text('[admin]\ncontrol = "here.sock"')
    run("status")
    assert answers.path == tmp_path / "here.sock"


def test_a_server_with_a_broken_configuration_can_still_be_asked(run, server, tmp_path):
    answers = server(STATUS)
    (tmp_path / "my.toml").write_text('hostname = 5\n[admin]\ncontrol = "here.sock"\nx = 1')
    assert run("status", "-c", "my.toml").exit_code == 0
    assert answers.path == tmp_path / "here.sock"


def test_the_socket_can_be_named_by_the_environment_and_by_an_option(run, server, tmp_path):
    answers = server(STATUS)
    result = CliRunner(env={"PREFORKMX_ADMIN__CONTROL": "/run/a.sock"}).invoke(main, ["status"])
    assert result.exit_code == 0
    assert str(answers.path) == "/run/a.sock"
    run("status", "--control", "/run/b.sock")
    assert str(answers.path) == "/run/b.sock"


@pytest.mark.parametrize("text", ["[admin", "[admin]\ncontrol = 5"])
def test_a_configuration_that_does_not_name_the_socket_is_status_2(run, tmp_path, text):
    (tmp_path / "my.toml").write_text(text)
    result = run("stop", "-c", "my.toml")
    assert result.exit_code == 2
    assert "my.toml:" in result.stderr
    assert "--control" in result.stderr


def test_a_right_configuration_is_status_0(run, tmp_path):
    (tmp_path / "my.toml").write_text(SMALL)
    result = run("check-config", "-c", "my.toml")
    assert (result.exit_code, result.stdout) == (0, "my.toml: nothing is wrong\n")


def test_check_config_prints_every_problem_and_is_status_2(run, tmp_path):
    (tmp_path / "preforkmx.toml").write_text(SMALL + "[workers]\ncuont = 1\nloop = 2")
    result = run("check-config")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        'preforkmx.toml:8: workers.cuont: unknown key (got 1; did you mean "count"?)',
        'preforkmx.toml:9: workers.loop: must be "auto", "uvloop" or "asyncio" (got 2)',
    ]


def test_check_config_imports_the_sites_code(run, tmp_path):
    (tmp_path / "my.toml").write_text(SMALL + '[[middleware]]\nuse = "no_such_module:x"')
    result = run("check-config", "-c", "my.toml")
    assert result.exit_code == 2
    assert "my.toml:8: middleware[0].use: cannot be imported" in result.stderr


@pytest.mark.parametrize("verb", [["check-config"], ["config", "show"], ["serve"]])
def test_a_file_that_is_not_there_is_status_2(run, verb):
    result = run(*verb, "-c", "no.toml")
    assert result.exit_code == 2
    assert result.stderr == "no.toml: No such file or directory\n"


def test_without_a_configuration_the_demo_is_in_order_and_leaves_no_files(run, tmp_path):
    assert run("check-config").exit_code == 0
    assert run("config", "show").exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_config_show_prints_toml_with_origins(run, tmp_path):
    (tmp_path / "preforkmx.toml").write_text(SMALL)
    result = run("config", "show")
    assert tomllib.loads(result.stdout)["hostname"] == "mx.example.com"
    assert "# preforkmx.toml:1\n" in result.stdout


def test_config_schema_is_json_and_config_example_is_toml(run):
    assert json.loads(run("config", "schema").stdout)["type"] == "object"
    assert tomllib.loads(run("config", "example").stdout)["domains"] == ["example.com"]


def test_an_app_beside_a_delivery_is_status_2(run, tmp_path):
    (tmp_path / "preforkmx.toml").write_text(SMALL)
    result = run("check-config", "--app", "mymx:server")
    assert result.exit_code == 2
    assert "delivery: belongs to the application" in result.stderr


def test_the_exit_statuses_are_those_of_the_interface():
    assert {each.name: each.value for each in common.Exit} == {
        "OK": 0,
        "FAILED": 1,
        "CONFIGURATION": 2,
        "DRAINING": 4,
        "NOT_RUNNING": 5,
    }


def test_an_upgrade_says_what_serves_or_every_reason_why_not(run, server):
    server({"ok": True, "generation": 7, "version": "2.0"})
    result = run("upgrade")
    assert (result.exit_code, result.stdout) == (0, "version 2.0: generation 7 serves\n")
    server({"ok": False, "problems": ["mx.toml:1: bad", "mx.toml:2: worse"]})
    result = run("upgrade")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "the upgrade is refused:",
        "mx.toml:1: bad",
        "mx.toml:2: worse",
    ]
