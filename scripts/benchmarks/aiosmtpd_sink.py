"""aiosmtpd under uvloop on one port of loopback, discarding: ``python -m … PORT``."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import Any

import uvloop
from aiosmtpd.smtp import SMTP


class Discard:
    """Takes every message and forgets it."""

    async def handle_DATA(self, _server: Any, _session: Any, _envelope: Any) -> str:  # noqa: N802
        return "250 2.0.0 Ok"


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(Discard(), hostname="mx.bench.example", loop=loop),
        "127.0.0.1",
        port,
        backlog=1024,
    )
    await server.serve_forever()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        uvloop.run(main(int(sys.argv[1])))
