"""A DNS server on one port of loopback that answers every A query alike: ``python -m … PORT``."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import cast

import uvloop

# A compressed name, A, IN, an hour, 127.0.0.2.
_RECORD = b"\xc0\x0c\0\1\0\1" + (3600).to_bytes(4) + b"\0\4\x7f\0\0\2"


class _Answers(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is not derived from it.
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        # The question ends with type and class, behind the root's empty label.
        end = data.index(b"\0", 12) + 5
        header = data[:2] + b"\x81\x80\0\1\0\1\0\0\0\0"
        self._transport.sendto(header + data[12:end] + _RECORD, addr)


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(_Answers, ("127.0.0.1", port))
    print("ready", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        transport.close()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        uvloop.run(main(int(sys.argv[1])))
