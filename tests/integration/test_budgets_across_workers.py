"""What a host may spend holds over all workers and all its sessions at once, to the unit."""

from __future__ import annotations

import asyncio
import re

import pytest

from preforkmx.testing import Client
from tests.integration.mx import serving

pytestmark = pytest.mark.integration

SESSIONS = 50

# A store that is late once would let a worker count by itself.
SITE = """
[state]
deadline = "10s"

[[middleware]]
use = "rate_limit"
{limit}

[delivery]
use = "discard"
"""


async def messages(client):
    """Send messages until one is not taken; return how many were."""
    taken = 0
    while True:
        if (await client.command(f"MAIL FROM:<{taken}@example.org>")).code != 250:
            return taken
        if (await client.command("RCPT TO:<box@example.com>")).code != 250:
            return taken
        await client.command("DATA")
        await client.send(b"Subject: hello\r\n\r\nhello\r\n.\r\n")
        if (await client.reply()).code != 250:
            return taken
        taken += 1


async def recipients(client):
    """Name recipients until one is not taken; return how many were."""
    taken = 0
    if (await client.command("MAIL FROM:<joe@example.org>")).code == 250:
        while (await client.command(f"RCPT TO:<{taken}@example.com>")).code == 250:
            taken += 1
    return taken


async def mails_of_one_sender(client):
    """MAIL and RSET until MAIL is refused; return how often it was not."""
    taken = 0
    while (await client.command("MAIL FROM:<joe@example.org>")).code == 250:
        taken += 1
        await client.command("RSET")
    return taken


def over_sessions(port, spend):
    """Let all sessions `spend` at once; return what each had, and the reply to a newcomer."""

    async def session(ready):
        async with await Client.connect(("127.0.0.1", port)) as client:
            if (await client.reply()).code != 220:
                ready.release()
                return 0
            await client.command("EHLO client.example")
            ready.release()
            await begin.wait()
            taken = await spend(client)
            await client.command("QUIT")
            return taken

    begin = asyncio.Event()

    async def everybody():
        ready = asyncio.Semaphore(0)
        async with asyncio.TaskGroup() as group:
            sessions = [group.create_task(session(ready)) for _ in range(SESSIONS)]
            for _ in range(SESSIONS):
                await ready.acquire()
            begin.set()
        async with await Client.connect(("127.0.0.1", port)) as client:
            newcomer = await client.reply()
        return [each.result() for each in sessions], newcomer

    return asyncio.run(asyncio.wait_for(everybody(), 120))


@pytest.mark.parametrize("limit", [300, 30])
def test_messages_of_many_sessions_over_four_workers_are_exactly_the_limit(tmp_path, limit):
    with serving(tmp_path, SITE.format(limit=f'messages = "{limit}/day"'), workers=4) as mx:
        taken, newcomer = over_sessions(mx.ports[0], messages)
        assert sum(taken) == limit
        assert newcomer.code == 421
        assert "(limit: messages), try again in" in newcomer.text
        assert mx.stop() == 0
        assert " limit=messages " in mx.log
        # The kernel spread them, also those that were refused: it was no single worker's limit.
        met = [line for line in mx.log.splitlines() if re.search("event=(session|refused)", line)]
        assert len({re.findall(r' worker="?([^" ]+)', line)[0] for line in met}) == 4
        # Nobody was given a 5xx for it, and no session failed.
        assert "ended=error" not in mx.log


def test_recipients_of_many_sessions_over_four_workers_are_exactly_the_limit(tmp_path):
    with serving(tmp_path, SITE.format(limit='recipients = "1000/day"'), workers=4) as mx:
        taken, newcomer = over_sessions(mx.ports[0], recipients)
        assert sum(taken) == 1000
        assert newcomer.code == 421
        assert mx.stop() == 0


def test_a_sender_s_rate_is_one_over_four_workers(tmp_path):
    with serving(tmp_path, SITE.format(limit='per_sender = "40/day"'), workers=4) as mx:
        taken, newcomer = over_sessions(mx.ports[0], mails_of_one_sender)
        assert sum(taken) == 40
        assert newcomer.code == 220
        assert mx.stop() == 0
