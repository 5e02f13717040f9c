"""Root starts the server; everything but the master runs as another user."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import smtplib
import sys
import tempfile
from pathlib import Path

import pytest
import trustme

import preforkmx
from tests.integration.mx import running
from tests.integration.processes import children, dead, title
from tests.integration.waiting import until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else"),
]

USER = "nobody"
UID = pwd.getpwnam(USER).pw_uid
SITE = """
hostname = "mx.example.com"
domains = ["example.com"]
[workers]
count = 2
user = "nobody"
[[listener]]
address = "127.0.0.1:0"
[delivery]
use = "maildir"
path = "{folder}/mail"
[admin]
address = "127.0.0.1:0"
control = "{folder}/control.sock"
[[middleware]]
use = "greylist"
delay = "1s"
window = "1h"
exempt_private = false
[[middleware]]
use = "{module}:probe"
"""
MODULE = """
import ctypes
import os

from preforkmx.middleware.base import Middleware

PR_GET_PDEATHSIG = 2
told = ctypes.c_int()
ctypes.CDLL(None).prctl(PR_GET_PDEATHSIG, ctypes.byref(told), 0, 0, 0)
# It is imported by whoever needs it, which the master never does.
with open(os.environ["PROBE"], "a") as file:
    file.write(f"{os.getuid()} {os.getgid()} {told.value}\\n")


def probe():
    return Middleware()
"""


def interpreter() -> list[str]:
    """Return a Python whose library the dropped user can read, of this version."""
    base = Path(sys.base_prefix)
    if all(parent.stat().st_mode & 0o005 == 0o005 for parent in (base, *base.parents)):
        return [sys.executable]
    found = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    assert Path(found).exists(), f"{USER} cannot read {base}, and there is no {found}"
    return [found]


@pytest.fixture
def folder():
    # pytest's own folders are open to nobody else.
    folder = Path(tempfile.mkdtemp(prefix="preforkmx-"))
    folder.chmod(0o755)
    mail = folder / "mail"
    mail.mkdir()
    os.chown(mail, UID, -1)
    (folder / "probes").touch()
    (folder / "probes").chmod(0o666)
    (folder / "probing.py").write_text(MODULE)
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def serving(folder, text=SITE, **options):
    config = folder / "preforkmx.toml"
    config.write_text(text.format(folder=folder, module="probing"))
    packages = [path for path in sys.path if path.endswith("site-packages")]
    root = str(Path(preforkmx.__file__).parent.parent)
    environ = {
        **os.environ,
        "PYTHONPATH": ":".join([str(folder), root, *packages]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PROBE": str(folder / "probes"),
    }
    command = [*interpreter(), "-m", "preforkmx", "serve", "-c", config]
    with running(config, command, env=environ, **options) as mx:
        yield mx


def refused(folder, text=SITE, **options):
    """Start a server that refuses to; return its exit status and its log."""
    with serving(folder, text, ready=False, **options) as mx:
        return mx.process.wait(30), mx.log


def status_of(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def deliver(port):
    with smtplib.SMTP("127.0.0.1", port, timeout=20, local_hostname="client.example") as client:
        try:
            client.sendmail("a@example.org", "box@example.com", "Subject: x\n\nhello\n")
        except smtplib.SMTPRecipientsRefused as error:
            return error.recipients["box@example.com"][0]
    return 250


def with_tls(folder, text):
    pair = trustme.CA().issue_cert("mx.example.com")
    # Root's alone: the master reads it, and no worker has to.
    pair.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "key.pem").chmod(0o600)
    pair.cert_chain_pems[0].write_to_path(folder / "chain.pem")
    return text + '[tls]\ncertificate = "chain.pem"\nkey = "key.pem"\n'


def until_children(pid, count):
    return until(lambda: len(children(pid)) == count and children(pid), f"{count} children")


def test_every_process_but_the_master_is_another_user(folder):
    with serving(folder) as mx:
        pids = until_children(mx.process.pid, 4)
        assert status_of(mx.process.pid)["Uid"].split()[1] == "0"
        kinds = sorted(title(pid).split()[1] for pid in pids)
        assert kinds == ["admin", "store", "worker", "worker"]
        for pid in pids:
            status = status_of(pid)
            assert status["Uid"].split() == [str(UID)] * 4, title(pid)
            assert status["Gid"].split()[0] != "0"
            assert "0" not in status["Groups"].split()
            assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
            assert status["NoNewPrivs"] == "1"
        assert "workers run as root" not in mx.log
        # The checker imported the site's code, and then each worker: none of them was root. The
        # kernel forgets in a change of user what it is to tell of a parent's death.
        probes = [line.split() for line in (folder / "probes").read_text().splitlines()]
        assert [user for user, _, _ in probes] == [str(UID)] * 3
        assert [told for _, _, told in probes] == [
            str(int(number)) for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGTERM)
        ]
        # The store is reached, and mail is stored: its files are the user's.
        assert deliver(mx.ports[0]) == 451
        until(lambda: deliver(mx.ports[0]) == 250, "the greylist lets it pass", seconds=20)
        (message,) = mx.delivered()
        assert message.stat().st_uid == UID
        database = folder / "control.sock.state" / "store.db"
        assert database.stat().st_uid == UID
        assert database.parent.stat().st_mode & 0o777 == 0o700
        # The control socket stays the master's.
        assert (folder / "control.sock").stat().st_uid == 0
        assert folder.stat().st_uid == 0
        assert mx.command("reload")["ok"], mx.log
        assert status_of(mx.pids()[0])["Uid"].split() == [str(UID)] * 4
        assert mx.stop() == 0, mx.log
    # What the store knew is there after a restart.
    with serving(folder) as mx:
        assert deliver(mx.ports[0]) == 250


def test_workers_of_a_killed_master_end_and_a_restart_serves(folder):
    """They see the end of their channel as well, whatever user they are: nobody is left."""
    with serving(folder) as mx:
        pids = until_children(mx.process.pid, 4)
        mx.process.kill()
        mx.process.wait()
        until(lambda: all(dead(pid) for pid in pids), "their end")
    with serving(folder) as mx:
        assert deliver(mx.ports[0]) in (250, 451)


def test_a_file_that_only_root_can_read_is_found_before_the_start(folder):
    users = folder / "users"
    users.write_text("")
    users.chmod(0o600)
    text = with_tls(folder, SITE + f'[[middleware]]\nuse = "users"\nfile = "{users}"\n')
    status, log = refused(folder, text)
    assert status == 2, log
    assert str(users) in log
    assert "ermission denied" in log


def test_a_database_folder_that_the_user_cannot_write_is_found_before_the_start(folder):
    status, log = refused(folder, SITE + f'[state]\nurl = "embedded:{folder}/greylist.db"\n')
    assert status == 2, log
    assert f"the folder {folder} cannot be written by this user" in log


def test_mailboxes_that_the_user_cannot_write_are_a_boot_failure_that_says_so(folder):
    os.chown(folder / "mail", 0, 0)
    status, log = refused(folder)
    assert status == 3, log
    assert f"mail cannot be stored in {folder}/mail" in log


def test_a_user_that_does_not_exist_is_a_configuration_error(folder):
    status, log = refused(folder, SITE.replace('"nobody"', '"no-such-user-here"'))
    assert status == 2
    assert "workers.user: does not exist on this machine" in log


def test_another_user_than_root_cannot_become_somebody_else(folder):
    folder.chmod(0o777)
    other = SITE.replace('"nobody"', '"daemon"')
    status, log = refused(folder, other, user=USER, group="nogroup")
    assert status == 2
    assert "workers.user: takes root" in log


def test_who_starts_it_as_the_user_itself_needs_no_root(folder):
    folder.chmod(0o777)
    with serving(folder, user=USER, group="nogroup", extra_groups=[]) as mx:
        assert status_of(mx.pids()[0])["Uid"].split() == [str(UID)] * 4
        assert mx.stop() == 0


def test_root_without_a_user_is_warned_once(folder):
    with serving(folder, SITE.replace('user = "nobody"\n', "")) as mx:
        assert mx.command("reload")["ok"]
        assert mx.log.count("workers run as root") == 1


def test_another_user_takes_a_restart(folder):
    with serving(folder) as mx:
        mx.config.write_text(mx.config.read_text().replace('"nobody"', '"daemon"'))
        text = "a change of workers.user or workers.group takes a restart"
        assert any(text in problem for problem in mx.command("reload")["problems"])
