"""Exim as a client: hands one message to a server, at once, and tells what its log says."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.integration.peers.programs import peer_program, run

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "exim4-daemon-light"
NOBODY = 65534
CONFIGURATION = """
exim_path = {folder}/exim4
spool_directory = {folder}/spool
log_file_path = {folder}/log/%slog
log_selector = +all
# It runs as an ordinary user, and never needs to be anybody else.
deliver_drop_privilege
# Without these it does not find its user when it starts itself again.
keep_environment = LD_PRELOAD:NSS_WRAPPER_PASSWD:NSS_WRAPPER_GROUP
primary_hostname = exim.example.org
disable_ipv6
# The test's sender and headers are taken as they are.
untrusted_set_sender = *
no_local_from_check

begin routers
everything:
  driver = manualroute
  route_list = * 127.0.0.1
  self = send
  transport = to_the_server

begin transports
to_the_server:
  driver = smtp
  port = {port}
  allow_localhost
  hosts_try_chunking = *
  hosts_try_fastopen =
  hosts_avoid_tls = {avoid_tls}
"""


@dataclass
class Exim:
    """An Exim with its own spool, log and configuration."""

    folder: Path
    user: int

    def send(self, message: bytes, recipient: str, *, sender: str = "sender@example.org") -> str:
        """Send a message, with LF as its line end, and return the main log's lines about it."""
        log = self.folder / "log" / "mainlog"
        already = log.stat().st_size if log.exists() else 0
        source = self.folder / "message"
        source.write_bytes(message)
        with source.open("rb") as standard_input:
            ran = run(
                *(self.folder / "exim4", "-C", self.folder / "configure"),
                # In the foreground, and a dot alone does not end the message.
                *("-odf", "-oi", "-f", sender, recipient),
                stdin=standard_input,
                cwd=self.folder,
                # Only root can be somebody else; anybody else is himself.
                **({"user": self.user, "group": self.user, "extra_groups": []} if _root() else {}),
                env={
                    "PATH": os.environ["PATH"],
                    "LD_PRELOAD": "libnss_wrapper.so",
                    "NSS_WRAPPER_PASSWD": str(self.folder / "passwd"),
                    "NSS_WRAPPER_GROUP": str(self.folder / "group"),
                },
            )
        assert ran.returncode == 0, f"exim: {ran.stdout}"
        assert log.exists(), f"exim wrote no log: {ran.stdout}"
        return log.read_bytes()[already:].decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def exim(port: int, *, tls: bool = False) -> Iterator[Exim]:
    """Have an Exim that sends everything to this port of 127.0.0.1."""
    # Not below pytest's own folder: Exim's user could not enter it.
    folder = Path(tempfile.mkdtemp(prefix="exim-"))
    user = NOBODY if _root() else os.getuid()
    try:
        folder.chmod(0o755)
        # The checkout may be in a folder that Exim's user cannot enter either.
        shutil.copy(peer_program(f"{PACKAGE}/usr/sbin/exim4"), folder / "exim4")
        (folder / "exim4").chmod(0o755)
        # Debian's Exim looks for this user at every start, and ends where there is none.
        (folder / "passwd").write_text(f"Debian-exim:x:{user}:{user}::/:/bin/sh\n")
        (folder / "group").write_text(f"Debian-exim:x:{user}:\n")
        avoid_tls = "" if tls else "*"
        (folder / "configure").write_text(
            CONFIGURATION.format(folder=folder, port=port, avoid_tls=avoid_tls)
        )
        for name in ("spool", "log"):
            (folder / name).mkdir()
            if _root():
                os.chown(folder / name, user, user)
        yield Exim(folder, user)
    finally:
        shutil.rmtree(folder)


def _root() -> bool:
    return os.geteuid() == 0
