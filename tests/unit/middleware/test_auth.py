"""authenticator and require_auth."""

from __future__ import annotations

import asyncio

import pytest

from preforkmx import Middleware, Server, SMTPError
from preforkmx.middleware import authenticator, require_auth
from preforkmx.testing import Client, Recorder, running

PLAIN = "AUTH PLAIN AGpvZQBzZWNyZXQ="  # NUL joe NUL secret
WRONG = "AUTH PLAIN AGpvZQB3cm9uZw=="  # NUL joe NUL wrong


async def check(ctx, peer, user, password):
    if (user, password) != ("joe", "secret"):
        raise SMTPError(535, "Authentication credentials invalid", enhanced=(5, 7, 8))
    return ctx.with_value("user", user)


def converse(run, server, dialogue):
    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            return await dialogue(client)

    return run(test())


def test_who_is_let_in_is_the_username_of_the_peer_and_the_context_is_replaced(run):
    recorder = Recorder()
    server = Server(allow_insecure_auth=True, handler=recorder)
    server.use(authenticator(check))

    async def dialogue(client):
        assert (await client.command(PLAIN)).code == 235
        await client.command("MAIL FROM:<>")

    converse(run, server, dialogue)
    (mail,) = recorder.of("check_sender")
    assert mail.peer.username == "joe"
    assert mail.context.value("user") == "joe"


def test_who_is_refused_is_nobody(run):
    recorder = Recorder()
    server = Server(allow_insecure_auth=True, handler=recorder)
    server.use(authenticator(check))

    async def dialogue(client):
        reply = await client.command(WRONG)
        assert (reply.code, reply.text[:5]) == (535, "5.7.8")
        await client.command("MAIL FROM:<>")

    converse(run, server, dialogue)
    assert recorder.of("check_sender")[0].peer.username is None
    assert server.counters.auth_failures == 1


def test_too_many_failures_end_the_session(run):
    server = Server(allow_insecure_auth=True, auth_failures=2)
    server.use(authenticator(check))

    async def dialogue(client):
        assert (await client.command(WRONG)).code == 535
        assert (await client.command(WRONG)).code == 421
        assert await client.rest() == b""

    converse(run, server, dialogue)


@pytest.mark.parametrize("result", [False, True])
def test_an_authenticator_that_returns_a_verdict_lets_nobody_in(run, result):
    async def mistaken(ctx, peer, user, password):
        return result

    server = Server(allow_insecure_auth=True)
    server.use(authenticator(mistaken))

    async def dialogue(client):
        return (await client.command(PLAIN)).code

    assert converse(run, server, dialogue) == 502


def test_several_authenticators_have_to_agree(run):
    async def nobody(ctx, peer, user, password):
        raise SMTPError(535, "Nobody", enhanced=(5, 7, 8))

    server = Server(allow_insecure_auth=True)
    server.use(authenticator(check), authenticator(nobody))

    async def dialogue(client):
        return (await client.command(PLAIN)).code

    assert converse(run, server, dialogue) == 535


def test_auth_is_offered_in_plain_text_only_where_that_is_allowed(run, server_tls, client_tls):
    server = Server(tls=server_tls)
    server.use(authenticator(check))

    async def dialogue(client):
        assert (await client.command(PLAIN)).code == 538
        await client.starttls(client_tls)
        assert "AUTH PLAIN LOGIN" in (await client.command("EHLO x")).lines
        assert (await client.command(PLAIN)).code == 235

    converse(run, server, dialogue)


# --- require_auth -----------------------------------------------------------------------------------

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
def test_require_auth_refuses_whoever_has_not_authenticated(run, at):
    server = Server(allow_insecure_auth=True)
    server.use(authenticator(check), require_auth(at=at))

    async def dialogue(client):
        refused = await say(client, STAGES[at])
        # It may still authenticate, and then pass.
        await client.command("RSET")
        assert (await client.command(PLAIN)).code == 235
        return refused, await say(client, STAGES["data"])

    refused, passed = converse(run, server, dialogue)
    assert (refused.code, refused.text) == (530, "5.7.0 Authentication required")
    assert passed.code == 250


def test_require_auth_is_at_mail_when_nothing_else_is_said():
    middleware = require_auth()
    assert middleware.check_sender is not None
    assert middleware.check_recipient is middleware.handler is None
    assert middleware.name == "require_auth"


@pytest.mark.parametrize("at", ["helo", "MAIL", ""])
def test_require_auth_is_at_mail_rcpt_or_data(at):
    with pytest.raises(ValueError, match="require_auth is at"):
        require_auth(at=at)


def test_the_null_reverse_path_has_to_authenticate_too(run):
    server = Server(allow_insecure_auth=True)
    server.use(require_auth())

    async def dialogue(client):
        return (await client.command("MAIL FROM:<>")).code

    assert converse(run, server, dialogue) == 530


def test_an_authenticator_that_waits_does_not_hold_up_other_sessions(run):
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(ctx, peer, user, password):
        asked.set()
        await go_on.wait()

    server = Server(allow_insecure_auth=True)
    server.use(Middleware(authenticate=slow))

    async def test():
        async with (
            running(server) as address,
            await Client.connect(address) as first,
            await Client.connect(address) as second,
        ):
            await first.hello()
            await second.hello()
            await first.send(f"{PLAIN}\r\n".encode())
            await asked.wait()
            assert (await second.command("NOOP")).code == 250
            go_on.set()
            assert (await first.reply()).code == 235

    run(test())
