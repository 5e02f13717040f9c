"""The commands as an operator types them: real processes, real sockets, real exit statuses."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import smtplib
import socket
import ssl
import stat
import subprocess
from pathlib import Path

import pytest

from tests.integration.mx import COMMAND, serving

pytestmark = pytest.mark.integration

ANY_PORTS = {
    "PREFORKMX_LISTENER__0__ADDRESS": "127.0.0.1:0",
    "PREFORKMX_LISTENER__1__ADDRESS": "127.0.0.1:0",
    "PREFORKMX_ADMIN__ADDRESS": "127.0.0.1:0",
}
CHECKS = """
from preforkmx import Middleware, Server, SMTPError

async def refuse(ctx, peer, address):
    raise SMTPError(550, "{word}")

words = Middleware(check_sender=refuse, name="words")

async def deliver(ctx, peer, envelope):
    async for chunk in envelope.data:
        pass

server = Server(hostname="app.example.com", handler=deliver)
"""


def preforkmx(*arguments, cwd, environ=None):
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(_paths()),
            "PREFORKMX_ADMIN__ADDRESS": "",
            **(environ or {}),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _paths():
    """The folder of the package under test: it need not be installed where the command runs."""
    import preforkmx

    return [str(Path(preforkmx.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]


@contextlib.contextmanager
def demo(folder, *arguments, **environ):
    """Run serve without a configuration; yields the process and what it announced."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*COMMAND, "serve", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(_paths()), **ANY_PORTS, **environ},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        announced = []
        for line in process.stdout:
            announced.append(line)
            if line == "\n" and "stop" in announced[-2]:
                break
        else:
            raise AssertionError((folder / "log").read_text())
        if not arguments:
            while not announced[-1].startswith("python3 "):
                announced.append(process.stdout.readline())
        yield process, "".join(announced)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGQUIT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stdout.close()


def ports(announced):
    return [int(port) for port in re.findall(r"listens on +127\.0\.0\.1:(\d+)", announced)]


def test_the_demo_greylists_the_pasted_line_and_then_delivers_it(tmp_path):
    with demo(tmp_path, PREFORKMX_MIDDLEWARE__2__DELAY="1s") as (_, announced):
        line = announced.splitlines()[-1]
        pasted = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, timeout=30, check=True
        )
        first, second, data = pasted.stdout.splitlines()
        assert first.startswith("451 4.7.1 Greylisted, try again in 1 s")
        assert second.startswith("250 2.1.5")
        assert data.startswith("250 2.0.0 Ok: queued as ")
        [message] = (tmp_path / "preforkmx-data/mail/example.com/friend/new").iterdir()
        assert b"It works." in message.read_bytes()


def test_the_demo_serves_both_kinds_of_tls_with_its_certificate(tmp_path):
    with demo(tmp_path) as (_, announced):
        starttls, implicit = ports(announced)
        context = ssl.create_default_context(cafile=tmp_path / "preforkmx-data/certificate.pem")
        with smtplib.SMTP("localhost", starttls, timeout=10) as client:
            client.starttls(context=context)
            assert client.noop()[0] == 250
        with smtplib.SMTP_SSL("localhost", implicit, context=context, timeout=10) as client:
            assert client.noop()[0] == 250


def test_what_the_demo_writes_is_for_its_user_alone(tmp_path):
    with demo(tmp_path):
        data = tmp_path / "preforkmx-data"
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
        assert stat.S_IMODE((data / "key.pem").stat().st_mode) == 0o600
        assert stat.S_IMODE((data / "control.sock").stat().st_mode) == 0o600


def test_the_other_verbs_find_the_demo_and_end_it(tmp_path):
    with demo(tmp_path) as (process, announced):
        status = preforkmx("status", "--json", cwd=tmp_path)
        document = json.loads(status.stdout)
        assert (status.returncode, document["state"], document["pid"]) == (0, "ready", process.pid)
        assert [worker["state"] for worker in document["workers"]] == ["ready", "ready"]
        assert [listener["tls"] for listener in document["listeners"]] == ["starttls", "implicit"]
        assert document["store"] == {
            "url": "embedded:",
            "state": "ready",
            "away": 0,
            "process": "ready",
        }
        assert f"127.0.0.1:{ports(announced)[0]}" in preforkmx("status", cwd=tmp_path).stdout
        stopped = preforkmx("stop", cwd=tmp_path)
        assert (stopped.returncode, process.wait(10)) == (0, 0)
        gone = preforkmx("status", cwd=tmp_path)
        assert (gone.returncode, gone.stdout) == (5, "")
        for verb in ("reload", "drain", "stop"):
            assert preforkmx(verb, cwd=tmp_path).returncode == 5


@pytest.mark.parametrize("how", [["drain"], ["stop"], ["stop", "--now"], "TERM", "INT", "QUIT"])
def test_every_stop_that_was_asked_for_is_status_0(tmp_path, how):
    with serving(tmp_path, "") as mx:
        if isinstance(how, str):
            mx.process.send_signal(signal.Signals[f"SIG{how}"])
        else:
            assert mx.run(*how).returncode == 0
        assert mx.process.wait(30) == 0


def test_status_is_4_while_a_transaction_holds_up_the_drain(tmp_path):
    with serving(tmp_path, "") as mx:
        client = smtplib.SMTP("127.0.0.1", mx.ports[0], timeout=30)
        client.ehlo()
        client.mail("me@example.org")
        mx.process.send_signal(signal.SIGTERM)
        while (status := mx.run("status", "--json")).returncode != 4:
            assert status.returncode == 0
        assert json.loads(status.stdout)["state"] == "draining"
        assert client.rcpt("joe@example.com")[0] == 250
        assert client.data("Subject: late\n\nbut in time\n")[0] == 250
        assert mx.process.wait(30) == 0
        assert len(mx.delivered()) == 1
        client.close()


def test_a_reload_takes_a_new_configuration_and_new_code(tmp_path):
    (tmp_path / "mychecks.py").write_text(CHECKS.format(word="first"))
    toml = '[[middleware]]\nuse = "mychecks:words"\n'
    with serving(tmp_path, toml) as mx:
        before = set(mx.pids())
        assert refusal(mx) == b"5.0.0 first"
        (tmp_path / "mychecks.py").write_text(CHECKS.format(word="second"))
        reloaded = mx.run("reload")
        assert (reloaded.returncode, reloaded.stdout) == (0, "generation 2 serves\n")
        assert refusal(mx) == b"5.0.0 second"
        serves = {w["pid"] for w in mx.status()["workers"] if w["generation"] == 2}
        assert len(serves) == 2
        assert not serves & before


def refusal(mx):
    with smtplib.SMTP("127.0.0.1", mx.ports[0], timeout=10) as client:
        client.ehlo()
        code, text = client.mail("me@example.org")
        assert code == 550
        return text


@pytest.mark.parametrize(
    ("broken", "problems"),
    [
        ("hostname = [", ["TOML syntax"]),
        ('[workers]\ncuont = 3\n[log]\nlevel = "loud"\n', ["workers.cuont", "log.level"]),
        ('[[middleware]]\nuse = "no_such_module:x"\n', ["no module no_such_module"]),
        ('[admin]\ncontrol = "elsewhere.sock"\n', ["admin.control", "takes a restart"]),
        ('[state]\nurl = "local:"\n', ["state.url that ends", "takes a restart"]),
    ],
)
def test_a_refused_reload_prints_every_reason_and_the_old_workers_go_on(tmp_path, broken, problems):
    with serving(tmp_path, "") as mx:
        before = mx.pids()
        text = mx.config.read_text()
        for section in re.findall(r"^\[(\w+)\]", broken, re.MULTILINE):
            text = re.sub(rf"^\[{section}\]\n(?:\w.*\n)*", "", text, flags=re.MULTILINE)
        mx.config.write_text(f"{text}\n{broken}")
        control = str(tmp_path / "control.sock")
        refused = preforkmx("reload", "--control", control, cwd=tmp_path)
        assert refused.returncode == 2
        assert "the reload is refused:" in refused.stderr
        for problem in problems:
            assert problem in refused.stderr
        status = json.loads(
            preforkmx("status", "--json", "--control", control, cwd=tmp_path).stdout
        )
        assert [worker["pid"] for worker in status["workers"]] == before
        assert status["generation"] == 1


def configuration(folder, extra=""):
    path = folder / "preforkmx.toml"
    path.write_text(
        'hostname = "mx.example.com"\ndomains = ["example.com"]\n'
        '[[listener]]\naddress = "127.0.0.1:0"\n[delivery]\nuse = "discard"\n'
        f'[admin]\ncontrol = "control.sock"\n{extra}'
    )
    return path


def test_a_wrong_configuration_is_status_2_with_every_problem(tmp_path):
    configuration(tmp_path, '[workers]\ncount = 0\nloop = "fast"\n')
    for verb in ("serve", "check-config"):
        result = preforkmx(verb, cwd=tmp_path)
        assert result.returncode == 2
        assert [line.split(": ")[1] for line in result.stderr.splitlines()] == [
            "workers.count",
            "workers.loop",
        ]


def test_site_code_that_cannot_be_imported_is_status_2(tmp_path):
    (tmp_path / "mychecks.py").write_text("import no_such_module")
    configuration(tmp_path, '[[middleware]]\nuse = "mychecks:x"\n')
    for verb in ("serve", "check-config"):
        result = preforkmx(verb, cwd=tmp_path)
        assert result.returncode == 2, result.stderr
        assert "preforkmx.toml:10: middleware[0].use: cannot be imported" in result.stderr


def test_a_worker_that_cannot_start_is_status_3(tmp_path):
    (tmp_path / "mychecks.py").write_text(
        "from contextlib import asynccontextmanager\n"
        "from preforkmx import Middleware\n"
        "@asynccontextmanager\n"
        "async def pool():\n"
        "    raise RuntimeError('no database')\n"
        "    yield\n"
        "x = Middleware(lifespan=pool)\n"
    )
    configuration(tmp_path, '[[middleware]]\nuse = "mychecks:x"\n')
    assert preforkmx("check-config", cwd=tmp_path).returncode == 0
    result = preforkmx("serve", cwd=tmp_path)
    assert result.returncode == 3
    assert "no database" in result.stderr


def test_a_port_that_is_taken_is_status_1(tmp_path):
    configuration(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = preforkmx(
            "serve", cwd=tmp_path, environ={"PREFORKMX_LISTENER__0__ADDRESS": address}
        )
    assert result.returncode == 1, result.stderr
    assert address in result.stderr


def test_a_second_server_with_the_same_control_socket_is_status_1(tmp_path):
    with serving(tmp_path, "") as mx:
        result = preforkmx("serve", "-c", str(mx.config), cwd=tmp_path)
        assert result.returncode == 1
        assert mx.run("status").returncode == 0


def test_a_folder_for_the_control_socket_that_cannot_be_made_is_status_1(tmp_path):
    configuration(tmp_path)
    (tmp_path / "file").write_text("")
    environ = {"PREFORKMX_ADMIN__CONTROL": str(tmp_path / "file" / "control.sock")}
    result = preforkmx("serve", cwd=tmp_path, environ=environ)
    assert result.returncode == 1
    assert "the control socket's folder cannot be made" in result.stderr


@pytest.mark.parametrize("arguments", [["serv"], ["serve", "--workers", "2"], ["stop", "now"]])
def test_a_command_line_that_is_wrong_is_status_2(tmp_path, arguments):
    assert preforkmx(*arguments, cwd=tmp_path).returncode == 2


def test_an_application_is_served_on_the_demos_listeners(tmp_path):
    (tmp_path / "mymx.py").write_text(CHECKS)
    with demo(tmp_path, "--app", "mymx:server") as (process, announced):
        port, _ = ports(announced)
        with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
            assert b"app.example.com" in client.ehlo()[1]
            assert client.has_extn("starttls")
            client.sendmail("me@example.org", "joe@example.com", "Subject: x\n\nx\n")
        assert preforkmx("drain", cwd=tmp_path).returncode == 0
        assert process.wait(10) == 0
        assert not (tmp_path / "preforkmx-data" / "mail").exists()


def test_an_application_that_is_none_is_status_2(tmp_path):
    (tmp_path / "mymx.py").write_text("server = 5")
    result = preforkmx("serve", "--app", "mymx:server", cwd=tmp_path, environ=ANY_PORTS)
    assert result.returncode == 2
    assert "--app mymx:server: is no preforkmx.Server (it is int)" in result.stderr
