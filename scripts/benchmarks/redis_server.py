"""A Redis for the rows about policy, and what it counts."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from hiredis import Reader, ReplyError, pack_command

from benchmarks.server import NotHere, Server

REDIS_SERVER = Path(__file__).parents[2] / ".venv/peers/redis-tools/usr/bin/redis-server"


class Redis(Server):
    """redis-server without files. Its CPU is shown, and is nobody's."""

    name = "redis-server"

    @property
    def url(self) -> str:
        """What ``[state] url`` says."""
        return f"redis://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        if not REDIS_SERVER.exists():
            raise NotHere(f"{REDIS_SERVER} is not there")
        options = ["--bind", "127.0.0.1", "--port", str(self.port), "--save", ""]
        return [str(REDIS_SERVER), "--dir", str(self.folder), *options]

    def greets(self) -> bool:
        try:
            return bool(self.ask(("PING",)) == ["PONG"])
        except OSError:
            return False

    def ask(self, *commands: tuple[str | bytes | int, ...]) -> list[Any]:
        """Ask it all of this at once, and return the replies."""
        reader = Reader(encoding="utf-8", errors="replace")
        replies: list[Any] = []
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as client:
            client.sendall(b"".join(map(pack_command, commands)))
            while len(replies) < len(commands):
                reply = reader.gets()
                if reply is not False:
                    if isinstance(reply, ReplyError):
                        raise reply
                    replies.append(reply)
                    continue
                data = client.recv(1 << 16)
                if not data:
                    raise ConnectionResetError("redis-server closed the connection")
                reader.feed(data)
        return replies

    def scripts_run(self) -> int:
        """Return how many scripts were run so far: operations of a store."""
        (text,) = self.ask(("INFO", "commandstats"))
        calls = 0
        for line in text.splitlines():
            name, _, rest = line.partition(":")
            if name in {"cmdstat_eval", "cmdstat_evalsha"}:
                calls += int(rest.partition(",")[0].removeprefix("calls="))
        return calls
