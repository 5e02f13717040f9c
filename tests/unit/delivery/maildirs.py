"""Messages, and Maildirs to deliver them into."""

from __future__ import annotations

import asyncio
import os
from ipaddress import ip_address
from pathlib import Path

from preforkmx.body import MessageStream, wrap
from preforkmx.context import Context
from preforkmx.delivery.maildir import MaildirDelivery
from preforkmx.errors import SMTPError
from preforkmx.model import Envelope, Peer

HOSTNAME = "mx.example.com"
NOON = 1_700_000_000.0
PEER = Peer(
    address=ip_address("192.0.2.1"),
    port=1234,
    server_name=HOSTNAME,
    listener="0.0.0.0:25",
    helo_name="mail.example.org",
    protocol="ESMTP",
)
BODY = b"Subject: hello\r\n\r\n.dots and\r\nlines\r\n"


def stream(*chunks: bytes | BaseException) -> MessageStream:
    """A message that arrives in these chunks; an exception is raised where it stands."""

    async def arrive():
        for chunk in chunks:
            if isinstance(chunk, BaseException):
                raise chunk
            await asyncio.sleep(0)
            yield chunk

    return wrap(arrive())


def envelope(*recipients: str, body=(BODY,), sender: str = "from@example.org") -> Envelope:
    return Envelope(
        sender=sender,
        data=stream(*body),
        recipients=list(recipients) or ["joe@example.com"],
        id="T1",
    )


class Maildirs:
    """A Maildir delivery below one path, and what is in its mailboxes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def delivery(self, **options) -> MaildirDelivery:
        return MaildirDelivery(self.path, hostname=HOSTNAME, clock=lambda: NOON, **options)

    def deliver(self, *envelopes: Envelope, **options) -> list[SMTPError | None]:
        """Deliver the envelopes at the same time; return None or the reply for each."""

        async def run():
            delivery = self.delivery(**options)

            async def one(envelope):
                try:
                    await delivery.handle(Context(session_id="s"), PEER, envelope)
                except SMTPError as error:
                    return error

            async with delivery.lifespan():
                return await asyncio.gather(*map(one, envelopes))

        return asyncio.run(run())

    def files(self, directory: str) -> list[Path]:
        """The files in every mailbox's `directory`: tmp, new or cur."""
        return sorted(self.path.glob(f"*/*/{directory}/*"))

    def mailboxes(self) -> list[str]:
        return sorted(str(new.parent.relative_to(self.path)) for new in self.path.glob("*/*/new"))

    def message(self) -> bytes:
        """The only message there is."""
        (path,) = self.files("new")
        return path.read_bytes()

    def is_empty(self) -> bool:
        return not self.files("tmp") and not self.files("new")


def in_child(work) -> int:
    """Run `work` in a forked process; return its wait status."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]
