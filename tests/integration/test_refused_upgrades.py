"""Programs that cannot take over from the running master, and one that can."""

from __future__ import annotations

import shutil
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mx import COMMAND, MX, serving
from test_upgrade import greet, until, upgrade

import preforkmx

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration


@pytest.fixture
def changeable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[MX, Path]]:
    """Give a server that runs a copy of the package, and the copy's folder."""
    copy = tmp_path / "site"
    package = Path(preforkmx.__file__).parent
    shutil.copytree(package, copy / "preforkmx", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("PYTHONPATH", str(copy))
    with serving(tmp_path, "") as running:
        yield running, copy / "preforkmx"


def refused(mx: MX, *reasons: str) -> None:
    """Check that an upgrade is refused for these reasons, and that nothing has changed."""
    before = mx.status()
    done = mx.run("upgrade")
    assert done.returncode == 2, done
    for reason in reasons:
        assert reason in done.stderr
        assert reason in mx.log
    status = mx.status()
    for key in ("state", "pid", "generation", "version", "started"):
        assert status[key] == before[key]
    assert [w["pid"] for w in status["workers"]] == [w["pid"] for w in before["workers"]]
    greet(mx.ports[0]).close()


def test_a_new_version_takes_over(changeable: tuple[MX, Path]) -> None:
    mx, package = changeable
    version = mx.status()["version"]
    (package / "_version.py").write_text('__version__ = "99.1"\n')
    assert upgrade(mx) == "99.1"
    assert mx.status()["version"] == "99.1" != version
    assert f"version 99.1 took over from version {version}" in mx.log


def test_a_program_with_a_syntax_error_is_refused(changeable: tuple[MX, Path]) -> None:
    mx, package = changeable
    module = package / "master" / "supervisor.py"
    whole = module.read_text()
    module.write_text(whole + "\ndef broken(:\n")
    # The command itself is a new program too: ask as an older one would.
    reply = mx.command("upgrade")
    assert reply["ok"] is False
    text = "\n".join(reply["problems"])
    assert "the new program failed its check: exit status 1" in text
    assert "supervisor.py" in text
    assert "SyntaxError" in text
    greet(mx.ports[0]).close()
    module.write_text(whole)
    upgrade(mx)


def test_a_program_that_reads_another_format_is_refused(changeable: tuple[MX, Path]) -> None:
    mx, package = changeable
    module = package / "master" / "handover.py"
    module.write_text(module.read_text().replace("FORMAT = 1\n", "FORMAT = 2\n"))
    refused(mx, "its state has format 1, and this program reads 2")


def test_a_program_that_knows_no_upgrade_is_refused(changeable: tuple[MX, Path]) -> None:
    mx, package = changeable
    module = package / "cli" / "serve.py"
    module.write_text(
        module.read_text().replace("handover = take_handover(os.environ)", "handover = None")
    )
    refused(mx, "the new program failed its check: exit status 2", "PREFORKMX_TAKE_OVER")


@pytest.fixture
def mx(tmp_path: Path) -> Iterator[MX]:
    with serving(tmp_path, "") as running:
        yield running


def test_a_configuration_that_is_wrong_is_refused_with_every_reason(mx: MX) -> None:
    whole = mx.config.read_text()
    mx.config.write_text(
        whole.replace("count = 2", 'count = "many"').replace('use = "maildir"', 'use = "nothing"')
    )
    refused(mx, "workers.count", "delivery.use")
    mx.config.write_text(whole)
    upgrade(mx)


def test_a_change_that_takes_a_restart_is_refused(mx: MX) -> None:
    whole = mx.config.read_text()
    mx.config.write_text(f'{whole}\n[state]\nurl = "local:"\n')
    refused(
        mx, "a change of state.url that ends, begins or moves the store process takes a restart"
    )
    mx.config.write_text(whole)
    upgrade(mx)


def test_ports_that_are_taken_are_refused_before_the_new_program_takes_over(mx: MX) -> None:
    whole = mx.config.read_text()
    with socket.create_server(("127.0.0.1", 0)) as mail, socket.create_server(("", 0)) as admin:
        taken = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in (mail, admin)]
        mx.config.write_text(
            whole.replace('address = ""', f'address = "{taken[1]}"')
            + f'\n[[listener]]\naddress = "{taken[0]}"\n'
        )
        refused(mx, *(f"{address} is taken" for address in taken))
    assert "the new program takes over" not in mx.log
    upgrade(mx)
    assert len(mx.status()["listeners"]) == 2
    # Both are its own by now.
    upgrade(mx)


def test_an_interpreter_that_is_gone_is_refused(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(Path(sys.executable).resolve())
    (tmp_path / "pyvenv.cfg").write_text((Path(sys.prefix) / "pyvenv.cfg").read_text())
    (tmp_path / "lib").symlink_to(Path(sys.prefix) / "lib")
    with serving(tmp_path / "mx", "", command=(str(python), *COMMAND[1:])) as mx:
        python.rename(python.with_name("moved"))
        refused(mx, f"{python} cannot be run: No such file or directory")
        python.with_name("moved").rename(python)
        upgrade(mx)


def test_a_new_program_that_fails_after_the_execution_lets_the_workers_drain(
    changeable: tuple[MX, Path],
) -> None:
    mx, package = changeable
    module = package / "master" / "holdings.py"
    text = module.read_text()
    # No try sees this: it takes the holdings over.
    module.write_text(
        text.replace("holdings = cls.__new__(cls)\n", "raise RuntimeError('no, after all')\n")
    )
    workers = mx.pids()
    with greet(mx.ports[0]) as client:
        mx.process.send_signal(signal.SIGUSR2)
        assert client.recv(200).startswith(b"421 ")
    assert mx.process.wait(20) == 1
    assert "the new program cannot take over" in mx.log
    assert "no, after all" in mx.log
    for pid in workers:
        until(partial(lambda pid: not Path(f"/proc/{pid}").exists(), pid))
    with pytest.raises(ConnectionRefusedError):
        greet(mx.ports[0])
    module.write_text(text)
    with serving(mx.directory, "") as again:
        greet(again.ports[0]).close()
