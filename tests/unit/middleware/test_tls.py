"""require_tls."""

from __future__ import annotations

import pytest

from preforkmx import Server
from preforkmx.middleware import require_tls
from preforkmx.testing import Client, running

STAGES = {
    "mail": ["MAIL FROM:<>"],
    "rcpt": ["MAIL FROM:<>", "RCPT TO:<a@example.com>"],
    "data": ["MAIL FROM:<>", "RCPT TO:<a@example.com>", "DATA", "."],
}


async def say(client, commands):
    replies = [await client.command(command) for command in commands]
    assert all(reply.code < 400 for reply in replies[:-1])
    return replies[-1]


@pytest.mark.parametrize("at", list(STAGES))
def test_plain_text_is_refused_with_530_until_starttls(run, at, server_tls, client_tls):
    server = Server(tls=server_tls)
    server.use(require_tls(at=at))

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            refused = await say(client, STAGES[at])
            await client.command("RSET")
            # The session stays, so that the client can do what it was asked to.
            assert (await client.starttls(client_tls)).code == 220
            await client.command("EHLO again.example")
            return refused, await say(client, STAGES["data"])

    refused, passed = run(test())
    assert refused.code == 530
    # The words of RFC 3207 section 4.
    assert refused.text == "5.7.0 Must issue a STARTTLS command first"
    assert passed.code == 250


def test_implicit_tls_is_tls(run, server_tls, client_tls):
    server = Server(tls=server_tls)
    server.use(require_tls())

    async def test():
        async with (
            running(server, tls="implicit") as address,
            await Client.connect(address, tls=client_tls) as client,
        ):
            await client.hello()
            return await say(client, STAGES["data"])

    assert run(test()).code == 250


@pytest.mark.parametrize("command", ["NOOP", "EHLO x", "RSET", "HELP", "QUIT"])
def test_what_rfc_3207_allows_in_plain_text_is_allowed(run, command):
    server = Server()
    server.use(require_tls())

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            return await client.command(command)

    assert run(test()).code < 400


def test_require_tls_is_at_mail_when_nothing_else_is_said():
    middleware = require_tls()
    assert middleware.check_sender is not None
    assert middleware.check_recipient is middleware.handler is None
    assert middleware.name == "require_tls"


@pytest.mark.parametrize("at", ["helo", "MAIL", ""])
def test_require_tls_is_at_mail_rcpt_or_data(at):
    with pytest.raises(ValueError, match="require_tls is at"):
        require_tls(at=at)
