"""However a client's octets are cut into segments, a session does and says the same."""

from __future__ import annotations

import asyncio
import random

import pytest

from preforkmx import Middleware, Server, SMTPError
from preforkmx.testing import Client, Recorder, running

MESSAGE = b"Subject: x\r\n\r\n" + b"..dots and lines\r\n" * 50 + b".\r\n"

DIALOGUE = (
    b"EHLO client.example\r\n"
    b"NOOP\r\n"
    b"MAIL FROM:<a@example.org> SIZE=100\r\n"
    b"RCPT TO:<b@example.com>\r\n"
    b"RCPT TO:<refused@example.com>\r\n"
    b"DATA\r\n" + MESSAGE + b"VRFY joe\r\n"
    b"BOGUS\r\n"
    b"MAIL FROM:<a@example.org>\r\n"
    b"RSET\r\n"
    b"AUTH LOGIN\r\n"
    b"am9l\r\n"
    b"c2VjcmV0\r\n" + b"HELP\r\n" * 150 + b"MAIL FROM:<>\r\n"
    b"RCPT TO:<refused@example.com>\r\n"
    b"DATA\r\n"
    b"RCPT TO:<c@example.com>\r\n"
    b"DATA\r\n.\r\n"
    b"HELO again.example\r\n"
    b"QUIT\r\n"
)


async def refuse(ctx, peer, address):
    if address.startswith("refused"):
        raise SMTPError(550, "Unknown")


async def turn(ctx, peer, *arguments):
    """A hook that lets the loop have turns, so that octets arrive while it runs."""
    for _ in range(3):
        await asyncio.sleep(0)


def make_server(hooks):
    recorder = Recorder(authenticate=True)
    # Commands that no hook wants to see are answered where their octets arrive.
    alone = Middleware(handler=recorder.handler, authenticate=recorder.authenticate)
    server = Server(
        hostname="mx.example.com",
        allow_insecure_auth=True,
        handler=recorder if hooks == "everywhere" else alone,
    )
    if hooks == "everywhere":
        phases = ("check_helo", "check_sender", "check_recipient", "verify", "reset", "handler")
        server.use(Middleware(check_recipient=refuse), Middleware(**dict.fromkeys(phases, turn)))
    return server, recorder


async def said(server, recorder, segments):
    recorder.clear()
    async with running(server) as address, await Client.connect(address) as client:
        await client.reply()
        for segment in segments:
            client.writer.write(segment)
            for _ in range(len(segment) % 3):
                await asyncio.sleep(0)
        text = (await client.rest()).decode()
    for message in recorder.messages:
        # Ids differ from session to session.
        text = text.replace(message.id, "ID")
    return text, [(m.sender, m.recipients, m.octets) for m in recorder.messages]


def cuts(seed):
    """Cut the dialogue into segments: of one octet each, or of random sizes."""
    rng = random.Random(seed)
    longest = rng.choice([1, 2, 7, 40, 200, 1000, 5000])
    at = 0
    while at < len(DIALOGUE):
        size = rng.randint(1, longest)
        yield DIALOGUE[at : at + size]
        at += size


@pytest.mark.parametrize("hooks", ["nowhere", "everywhere"])
def test_the_same_replies_and_messages_come_of_the_same_octets(run, hooks):
    async def test():
        server, recorder = make_server(hooks)
        whole = await said(server, recorder, [DIALOGUE])
        for seed in range(15):
            assert await said(server, recorder, cuts(seed)) == whole
        return whole

    text, messages = run(test())
    assert messages[0][2] == MESSAGE[:-3].replace(b"..dots", b".dots")
    assert len(messages) == 2
    assert text.count("\r\n214 ") == 150
    assert text.endswith("221 Bye\r\n")
