"""Postfix, an instance of its own: a next hop with mailboxes, or a sender in front."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.integration.mx import program
from tests.integration.peers.programs import answers
from tests.integration.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/spool
data_directory = {folder}/data
maillog_file = {folder}/log
maillog_file_prefixes = {folder}
mail_owner = postfix
setgid_group = postdrop
myhostname = postfix.example
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
local_transport = error:no local mail
smtpd_peername_lookup = no
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_recipient_restrictions = check_recipient_access inline:{{ nobody@example.com=REJECT }}
virtual_mailbox_base = {folder}/mail
virtual_mailbox_maps = static:box/
virtual_mailbox_limit = 0
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
queue_run_delay = 1s
minimal_backoff_time = 1s
maximal_backoff_time = 2s
{role}
"""
MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
smtp unix - - n - - smtp
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


class Postfix:
    """A Postfix that may be killed and started again."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def start(self) -> None:
        """Start it, and wait until it greets."""
        path = self.folder / "output"
        with path.open("ab") as output:
            started = self._control("start", output)
        assert started == 0, f"{path.read_text()[-2000:]}{self.log[-2000:]}"
        until(lambda: answers(self.port), "Postfix's greeting")

    def _control(self, command: str, output: IO[bytes] | int = subprocess.DEVNULL) -> int:
        return subprocess.run(
            [program("postfix"), "-c", self.folder / "etc", command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=30,
            check=False,
        ).returncode

    def kill(self) -> None:
        """Kill its master and all daemons, in the middle of whatever they do."""
        path = self.folder / "spool" / "pid" / "master.pid"
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            # The master leads a process group of its own, and its daemons are in it.
            pid = int(path.read_text())
            if os.getpgid(pid) == pid:
                os.killpg(pid, signal.SIGKILL)
        until(lambda: not answers(self.port), "Postfix's end")
        # Its lock may be held a moment longer than its port, and would forbid the next start.
        until(lambda: self._control("status") != 0, "Postfix's lock")

    def messages(self) -> list[bytes]:
        """Return what was delivered into the mailbox that all recipients have."""
        return [path.read_bytes() for path in (self.folder / "mail").glob("box/new/*")]


@contextlib.contextmanager
def postfix(port: int, *, relay_to: int | None = None) -> Iterator[Postfix]:
    """Run Postfix on a port of 127.0.0.1. It has to be started as root.

    :param relay_to: hand all mail to this port of 127.0.0.1; None: deliver that of example.com.
    """
    folder = Path(tempfile.mkdtemp(prefix="postfix-"))
    owner = pwd.getpwnam("postfix")
    folder.chmod(0o755)
    for name in ("etc", "spool", "data", "mail"):
        (folder / name).mkdir()
    for name in ("data", "mail"):
        os.chown(folder / name, owner.pw_uid, owner.pw_gid)
    role = (
        "virtual_mailbox_domains = example.com\ndefault_transport = error:no other mail"
        if relay_to is None
        else f"relayhost = [127.0.0.1]:{relay_to}\nvirtual_mailbox_domains ="
    )
    (folder / "etc" / "main.cf").write_text(
        MAIN.format(folder=folder, uid=owner.pw_uid, gid=owner.pw_gid, role=role)
    )
    (folder / "etc" / "master.cf").write_text(MASTER.format(port=port))
    # After a kill postsuper writes to it, as the user that owns the queue.
    (folder / "log").touch()
    os.chown(folder / "log", owner.pw_uid, owner.pw_gid)
    running = Postfix(folder, port)
    try:
        running.start()
        yield running
    finally:
        running.kill()
        shutil.rmtree(folder)
