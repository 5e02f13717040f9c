"""preforkmx, as an operator starts it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Literal

from benchmarks.server import Server, free_port

if TYPE_CHECKING:
    from pathlib import Path


class Preforkmx(Server):
    """``preforkmx serve`` with a configuration of its own.

    :param workers: worker processes.
    :param delivery: what happens to a message; a Maildir is below the folder.
    :param tls: open a second port with implicit TLS.
    :param toml: more tables of the configuration.
    """

    def __init__(
        self,
        folder: Path,
        *,
        workers: int = 1,
        delivery: Literal["discard", "maildir"] = "discard",
        tls: bool = False,
        toml: str = "",
    ) -> None:
        super().__init__(folder)
        self.workers = workers
        self.delivery = delivery
        self.toml = toml
        self.name = f"preforkmx, {workers} worker{'s' if workers > 1 else ''}"
        self.mail = folder / "mail"
        self.tls_port = free_port() if tls else 0

    def command(self) -> list[str]:
        lines = [
            'hostname = "mx.bench.example"',
            'domains = ["*"]',
            "[workers]",
            f"count = {self.workers}",
            "drain_seconds = 5",
            "[[listener]]",
            f'address = "127.0.0.1:{self.port}"',
        ]
        if self.tls_port:
            certificate = self._certificate()
            lines += [
                "[[listener]]",
                f'address = "127.0.0.1:{self.tls_port}"',
                'tls = "implicit"',
                "[tls]",
                f'certificate = "{certificate}"',
                f'key = "{certificate}"',
            ]
        lines += ["[delivery]", f'use = "{self.delivery}"']
        if self.delivery == "maildir":
            lines.append(f'path = "{self.mail}"')
        lines += ["[admin]", 'address = ""', f'control = "{self.folder}/control.sock"']
        lines.append(self.toml)
        configuration = self.folder / "preforkmx.toml"
        configuration.write_text("\n".join(lines) + "\n")
        return [sys.executable, "-m", "preforkmx", "serve", "-c", str(configuration)]

    def busiest_worker(self) -> int:
        """Return the process that has used the most CPU: a worker, once there was a load."""
        used = self.tree.cpu().processes
        used.pop(self.tree.root, None)
        return max(used, key=lambda pid: used[pid])

    def _certificate(self) -> Path:
        path = self.folder / "certificate.pem"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"),
                *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=mx.bench.example"),
                *("-keyout", path, "-out", path.with_suffix(".crt")),
            ],
            check=True,
            capture_output=True,
            timeout=30,
        )
        with path.open("ab") as both:
            both.write(path.with_suffix(".crt").read_bytes())
        return path
