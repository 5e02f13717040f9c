"""The peers: smtp-sink, aiosmtpd and Postfix."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from benchmarks.meter import ProcessTree
from benchmarks.server import START, STOP, Failed, NotHere, Server, answers


def program(name: str) -> str:
    """Return the path of a program of the system.

    :raises NotHere: when there is none.
    """
    found = shutil.which(name)
    if found is None:
        raise NotHere(f"{name} is not installed")
    return found


class SMTPSink(Server):
    """Postfix's own sink for benchmarks: one process in C that discards."""

    name = "smtp-sink"

    def command(self) -> list[str]:
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        sessions = ["-m", "10000"]
        return [program("smtp-sink"), *user, *sessions, f"127.0.0.1:{self.port}", "1024"]


class RefusingSink(Server):
    """smtp-sink that answers every connection with 450, and nothing else."""

    name = "smtp-sink"

    def command(self) -> list[str]:
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        return [program("smtp-sink"), *user, "-r", "CONNECT", f"127.0.0.1:{self.port}", "1024"]

    def greets(self) -> bool:
        return answers(self.port, b"450")


class Aiosmtpd(Server):
    """aiosmtpd under uvloop, one process that discards."""

    name = "aiosmtpd + uvloop"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.aiosmtpd_sink", str(self.port)]


class Postfix(Server):
    """An instance of Postfix of its own, that delivers to its virtual Maildir.

    Everything that it reads and writes is below its folder; a Postfix that the system has is
    neither asked nor touched.
    """

    name = "Postfix"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.mail = folder / "mail"

    def command(self) -> list[str]:
        program("postfix")
        if os.geteuid() != 0:
            raise NotHere("Postfix's master runs as root")
        try:
            owner = pwd.getpwnam("postfix")
        except KeyError:
            raise NotHere("there is no user postfix") from None
        config, spool, data = (self.folder / name for name in ("etc", "spool", "data"))
        for folder in (config, spool, data, self.mail):
            folder.mkdir()
        for folder in (data, self.mail):
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        # Postfix's daemons are not root: they must be able to pass.
        for folder in (self.folder, *self.folder.parents):
            if folder.stat().st_uid == os.geteuid() and folder.stat().st_mode & 0o001 == 0:
                folder.chmod(folder.stat().st_mode | 0o011)
        (config / "main.cf").write_text(
            _MAIN.format(folder=self.folder, mail=self.mail, uid=owner.pw_uid, gid=owner.pw_gid)
        )
        (config / "master.cf").write_text(_MASTER.format(port=self.port))
        return ["postfix", "-c", str(config), "start"]

    @property
    def tree(self) -> ProcessTree:
        return ProcessTree(int((self.folder / "spool/pid/master.pid").read_text()))

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        command = self.command()
        try:
            with self.log.open("ab") as log:
                subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    timeout=START,
                    check=True,
                )
            self.wait_until_it_greets()
        except (OSError, subprocess.SubprocessError, Failed) as error:
            self.stop()
            raise NotHere(f"Postfix did not start: {error}") from error
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        try:
            tree = self.tree
        except (OSError, ValueError):
            return
        with self.log.open("ab") as log:
            subprocess.run(
                ["postfix", "-c", str(self.folder / "etc"), "stop"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=START,
                check=False,
            )
        deadline = time.monotonic() + STOP
        while Path(f"/proc/{tree.root}").exists():
            if time.monotonic() > deadline:
                with suppress(ProcessLookupError):
                    os.kill(tree.root, 9)
                return
            time.sleep(0.05)


_MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/spool
data_directory = {folder}/data
maillog_file = {folder}/postfix.log
maillog_file_prefixes = {folder}
mail_owner = postfix
setgid_group = postdrop
myhostname = mx.bench.example
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
local_transport = error:no local mail
default_transport = error:no other mail
smtpd_peername_lookup = no
smtpd_relay_restrictions = permit_mynetworks, reject
virtual_mailbox_domains = bench.example
virtual_mailbox_base = {mail}
virtual_mailbox_maps = static:bench.example/joe/
virtual_mailbox_limit = 0
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
"""

_MASTER = """\
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
discard unix - - n - - discard
local unix - n n - - local
virtual unix - n n - - virtual
lmtp unix - - n - - lmtp
smtp unix - - n - - smtp
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""
