"""A DNS server on one port of loopback: ``python -m … PORT``.

It answers every A query alike. A TXT query gets an SPF record with eight includes, or for a name
that is included one without.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import cast

import uvloop

# A compressed name, A, IN, an hour, 127.0.0.2.
_RECORD = b"\xc0\x0c\0\1\0\1" + (3600).to_bytes(4) + b"\0\4\x7f\0\0\2"

_TXT = 16
_INCLUDED = b"v=spf1 ip4:198.51.100.0/24 ip4:203.0.113.0/24 -all"


def _text(question: bytes) -> bytes:
    """Return a TXT record; `question` is the name, the type and the class."""
    text = _INCLUDED
    if question[1:2] != b"i":
        labels, at = [], 0
        while question[at]:
            labels.append(question[at + 1 : at + 1 + question[at]])
            at += 1 + question[at]
        name = b".".join(labels)
        terms = b" ".join(b"include:i%d.%s" % (number, name) for number in range(8))
        text = b"v=spf1 %s ~all" % terms
    strings = [text[at : at + 255] for at in range(0, len(text), 255)]
    data = b"".join(bytes((len(string),)) + string for string in strings)
    return b"\xc0\x0c\0\x10\0\1" + (3600).to_bytes(4) + len(data).to_bytes(2) + data


class _Answers(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is not derived from it.
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        # The question ends with type and class, behind the root's empty label.
        end = data.index(b"\0", 12) + 5
        header = data[:2] + b"\x81\x80\0\1\0\1\0\0\0\0"
        question = data[12:end]
        record = _text(question) if question[-3] == _TXT else _RECORD
        self._transport.sendto(header + question + record, addr)


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
