"""Dovecot's LMTP server, unpacked and not installed."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.integration.peers.programs import PEERS, answers, peer_program
from tests.integration.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

BUILT_IN = b"/usr/lib/dovecot"
"""Where its programs look for libraries and each other, whatever their configuration says."""

CONFIGURATION = """
base_dir = {folder}/run
state_dir = {folder}/run
log_path = {folder}/log
protocols = lmtp
ssl = no
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {user}
first_valid_uid = 0
first_valid_gid = 0
mail_location = maildir:{folder}/mail/%u
mail_fsync = always
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={folder}/home/%u allow_all_users=yes
}}
passdb {{
  driver = static
  args = nopassword=y
}}
service lmtp {{
  user = {user}
  chroot =
  process_limit = 20
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {port}
  }}
  unix_listener lmtp {{
    mode = 0600
  }}
}}
service anvil {{
  chroot =
}}
service stats {{
  chroot =
}}
protocol lmtp {{
  postmaster_address = postmaster@example.com
}}
"""


class Dovecot:
    """One site of Dovecot's, which may be killed and started again."""

    def __init__(self, folder: Path, programs: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        """The unix socket on which it speaks LMTP too."""
        return self.folder / "run" / "lmtp"

    @property
    def log(self) -> str:
        parts = (self.folder / name for name in ("output", "log"))
        return "".join(part.read_text() for part in parts if part.exists())

    def start(self) -> None:
        """Start it, and wait until it greets."""
        configuration = self.folder / "dovecot.conf"
        # doveconf reads the configuration for the master, which would look for it in /usr/bin.
        command = [
            *(self._programs / "doveconf", "-c", configuration, "-m", "master", "-e"),
            *(self._programs / "dovecot", "-F", "-c", configuration),
        ]
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True
            )
        until(lambda: answers(self.port), self)

    def kill(self) -> None:
        """Kill the master and everything it started, in the middle of whatever they do."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            until(lambda: not answers(self.port), "Dovecot's end")
            # A lock whose owner was killed can be waited for for minutes: as after a reboot,
            # there is none.
            for lock in (self.folder / "mail").glob("*/*.lock"):
                lock.unlink()

    def messages(self, user: str) -> list[bytes]:
        """Return what is in a user's mailbox."""
        mailbox = self.folder / "mail" / user
        return [path.read_bytes() for path in sorted(mailbox.glob("new/*"))]


@contextlib.contextmanager
def dovecot(port: int) -> Iterator[Dovecot]:
    """Run Dovecot on a port of 127.0.0.1."""
    with contextlib.ExitStack() as stack:
        # Its name is as long as the one that is built in, and takes its place.
        programs = Path(tempfile.mkdtemp(prefix="dv-", dir="/tmp"))
        stack.callback(shutil.rmtree, programs)
        assert len(os.fsencode(programs)) == len(BUILT_IN)
        for package in ("dovecot-core", "dovecot-lmtpd"):
            # The master wants to see the programs of all services that it knows.
            tree = PEERS / package / "usr" / "lib" / "dovecot"
            for source in tree.rglob("*"):
                if source.is_file():
                    _place(source, programs / source.relative_to(tree).parent, programs)
        _place(peer_program("dovecot-core/usr/sbin/dovecot"), programs, programs)
        _place(peer_program("dovecot-core/usr/bin/doveconf"), programs, programs)
        folder = Path(tempfile.mkdtemp(prefix="dovecot-"))
        stack.callback(shutil.rmtree, folder)
        us = pwd.getpwuid(os.getuid())
        # It stores no mail as root.
        owner = us if us.pw_uid else pwd.getpwnam("nobody")
        folder.chmod(0o711)
        for name in ("mail", "home"):
            (folder / name).mkdir()
            os.chown(folder / name, owner.pw_uid, owner.pw_gid)
        (folder / "dovecot.conf").write_text(
            CONFIGURATION.format(
                folder=folder,
                port=port,
                user=us.pw_name,
                group=grp.getgrgid(us.pw_gid).gr_name,
                uid=owner.pw_uid,
                gid=owner.pw_gid,
            )
        )
        running = Dovecot(folder, programs, port)
        stack.callback(running.kill)
        running.start()
        yield running


def _place(source: Path, folder: Path, programs: Path) -> None:
    """Copy a program, which then finds the others below `programs`."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / source.name
    target.write_bytes(source.read_bytes().replace(BUILT_IN, os.fsencode(programs)))
    target.chmod(0o755)
