"""What a session spent, as its hooks see it, and what a client sees who spends too much."""

from __future__ import annotations

from preforkmx import Middleware, Server, SMTPError, Usage
from preforkmx.middleware import authenticator
from preforkmx.middleware.rate_limit import rate_limit
from preforkmx.observe.log import AccessLog
from preforkmx.state.decisions import Rate
from preforkmx.state.local import LocalStore
from preforkmx.testing import Client, running

PLAIN = "AUTH PLAIN AGpvZQBzZWNyZXQ="  # NUL joe NUL secret
WRONG = "AUTH PLAIN AGpvZQB3cm9uZw=="  # NUL joe NUL wrong
MESSAGE = b"Subject: hello\r\n\r\nhello\r\n"


async def check(_ctx, _peer, user, password):
    if (user, password) != ("joe", "secret"):
        raise SMTPError(535, "Authentication credentials invalid", enhanced=(5, 7, 8))


def converse(run, server, dialogue):
    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.reply()
            await client.command("EHLO client.example")
            return await dialogue(client)

    return run(test())


async def transaction(client, *recipients, sender="joe@example.org"):
    """Return the codes of MAIL, RCPT …, DATA and the message, up to one that stops it."""
    codes = [(await client.command(f"MAIL FROM:<{sender}>")).code]
    for recipient in recipients or ("ann@example.com",):
        if codes[0] == 250:
            codes.append((await client.command(f"RCPT TO:<{recipient}>")).code)
    if 250 in codes[1:]:
        codes.append((await client.command("DATA")).code)
        if codes[-1] == 354:
            await client.send(MESSAGE + b".\r\n")
            codes.append((await client.reply()).code)
    return codes


# --- ctx.usage ---------------------------------------------------------------------------------


class Spy:
    """Remembers the context's usage at each phase, and the last one of the session."""

    def __init__(self, refuse=()):
        self.seen = []
        self.refuse = refuse

    async def name(self, ctx, _peer, text):
        self.seen.append(ctx.usage)
        if text in self.refuse:
            raise SMTPError(550, "no")

    async def handle(self, ctx, _peer, envelope):
        await envelope.data.read()
        if envelope.sender in self.refuse:
            raise SMTPError(554, "no")

    async def disconnect(self, ctx, _peer, _error):
        self.seen.append(ctx.usage)

    @property
    def middleware(self):
        return Middleware(
            check_sender=self.name,
            check_recipient=self.name,
            handler=self.handle,
            disconnect=self.disconnect,
        )


def usage_of(run, dialogue, *, refuse=(), **options):
    """Run a dialogue and return the usage at its end."""
    spy = Spy(refuse)
    server = Server(allow_insecure_auth=True, **options)
    server.use(spy.middleware, authenticator(check))
    converse(run, server, dialogue)
    return spy.seen[-1]


def test_a_hook_sees_at_any_time_what_was_spent_until_then(run):
    spy = Spy()
    server = Server()
    server.use(spy.middleware)

    async def dialogue(client):
        await transaction(client, "a@example.com", "b@example.com")
        await transaction(client)
        await client.command("QUIT")

    converse(run, server, dialogue)
    size = len(MESSAGE)
    assert spy.seen == [
        Usage(),
        Usage(),
        Usage(recipients=1),
        Usage(messages=1, recipients=2, octets=size),
        Usage(messages=1, recipients=2, octets=size),
        Usage(messages=2, recipients=3, octets=2 * size),
    ]


def test_a_refused_recipient_is_an_error_and_no_recipient(run):
    async def dialogue(client):
        await transaction(client, "no@example.com", "ann@example.com")

    assert usage_of(run, dialogue, refuse={"no@example.com"}) == Usage(
        messages=1, recipients=1, octets=len(MESSAGE), errors=1
    )


def test_a_refused_message_is_an_error_and_its_octets_came(run):
    async def dialogue(client):
        assert (await transaction(client, sender="bad@example.org"))[-1] == 554

    # Its handler refuses it; MAIL does not.
    spy = Spy()
    server = Server()
    spy.refuse = ()

    async def handler(_ctx, _peer, _envelope):
        raise SMTPError(554, "no")

    server.use(spy.middleware, Middleware(handler=handler))
    converse(run, server, dialogue)
    assert spy.seen[-1] == Usage(recipients=1, octets=len(MESSAGE), errors=1)


def test_a_temporary_refusal_is_no_error(run):
    spy = Spy()
    server = Server()

    async def later(_ctx, _peer, _address):
        raise SMTPError(450, "later")

    server.use(spy.middleware, Middleware(check_recipient=later))

    async def dialogue(client):
        await transaction(client)

    converse(run, server, dialogue)
    assert spy.seen[-1] == Usage()


def test_what_is_no_command_is_an_error(run):
    async def dialogue(client):
        await client.command("NONSENSE")
        await client.command("RCPT TO:<early@example.com>")

    assert usage_of(run, dialogue) == Usage(errors=2)


def test_refused_credentials_are_failures_and_errors(run):
    async def dialogue(client):
        await client.command(WRONG)
        await client.command(WRONG)
        await client.command(PLAIN)

    assert usage_of(run, dialogue) == Usage(auth_failures=2, errors=2)


def test_a_transaction_that_is_reset_keeps_its_recipients(run):
    async def dialogue(client):
        await client.command("MAIL FROM:<joe@example.org>")
        await client.command("RCPT TO:<ann@example.com>")
        await client.command("RSET")
        await transaction(client)

    assert usage_of(run, dialogue) == Usage(messages=1, recipients=2, octets=len(MESSAGE))


def test_in_lmtp_a_refused_message_is_one_error_however_many_recipients_it_has(run):
    spy = Spy()

    async def handler(_ctx, _peer, envelope):
        for index in range(2):
            envelope.reject_recipient(index, SMTPError(550, "no"))

    server = Server()
    server.use(spy.middleware, Middleware(handler=handler))
    server.listen("127.0.0.1:0", protocol="lmtp")

    async def test():
        async with server, await Client.connect(server.addresses[0]) as client:
            await client.reply()
            await client.command("LHLO client.example")
            await client.command("MAIL FROM:<joe@example.org>")
            for name in "abc":
                await client.command(f"RCPT TO:<{name}@example.com>")
            await client.command("DATA")
            await client.send(MESSAGE + b".\r\n")
            assert await client.replies(3) == [550, 550, 250]

    run(test())
    assert spy.seen[-1] == Usage(messages=1, recipients=3, octets=len(MESSAGE), errors=1)


def test_a_context_of_no_session_has_spent_nothing():
    from preforkmx import Context

    assert Context().usage == Usage()


# --- check_auth --------------------------------------------------------------------------------


async def not_now(_ctx, _peer):
    raise SMTPError(421, "not now")


def test_a_check_of_auth_offers_no_auth(run):
    server = Server(allow_insecure_auth=True)
    server.use(Middleware(check_auth=not_now))

    async def dialogue(client):
        reply = await client.command("EHLO client.example")
        assert not any(line.startswith("AUTH") for line in reply.lines)
        assert (await client.command(PLAIN)).code == 502

    converse(run, server, dialogue)


def test_a_check_of_auth_comes_before_the_credentials_wherever_it_stands(run):
    asked = []

    async def authenticate(_ctx, _peer, user, _password):
        asked.append(user)

    server = Server(allow_insecure_auth=True)
    server.use(authenticator(authenticate), Middleware(check_auth=not_now))

    async def dialogue(client):
        assert (await client.command(PLAIN)).code == 421
        assert await client.rest() == b""

    converse(run, server, dialogue)
    assert asked == []
    assert server.counters.auth_failures == 0


def test_a_check_of_auth_lets_nobody_in(run):
    async def fine(_ctx, _peer):
        pass

    server = Server(allow_insecure_auth=True)
    server.use(Middleware(check_auth=fine), authenticator(check))

    async def dialogue(client):
        assert (await client.command(WRONG)).code == 535
        assert (await client.command(PLAIN)).code == 235

    converse(run, server, dialogue)


# --- what a client sees ------------------------------------------------------------------------


def limited(**limits):
    """A server with limits that nobody can wait for, and the lines of its log."""
    lines = []
    server = Server(
        allow_insecure_auth=True, access_log=AccessLog(lines.append, "logfmt", clock=lambda: 0.0)
    )
    server.use(rate_limit(LocalStore(), **limits), authenticator(check))
    return server, lines


def rate(count):
    return Rate(count, 1e6, count)


def test_450_at_mail_and_the_session_goes_on(run):
    server, lines = limited(messages=rate(2))

    async def dialogue(client):
        for _ in range(2):
            assert (await transaction(client))[-1] == 250
        reply = await client.command("MAIL FROM:<joe@example.org>")
        assert reply.code == 450
        assert reply.text.startswith("4.7.1 Too many messages from your address (limit: messages)")
        assert (await client.command("NOOP")).code == 250
        await client.command("QUIT")

    converse(run, server, dialogue)
    (line,) = [line for line in lines if "limit=messages" in line]
    for part in ("event=transaction", "by=rate_limit", "verdict=deferred", "try again in"):
        assert part in line


def test_450_at_rcpt_and_the_message_has_the_others(run):
    server, lines = limited(recipients=rate(2))

    async def dialogue(client):
        codes = await transaction(client, "a@example.com", "b@example.com", "c@example.com")
        assert codes == [250, 250, 250, 450, 354, 250]
        assert await transaction(client) == [250, 450]
        await client.command("RSET")

    converse(run, server, dialogue)
    taken, refused, _ = lines
    for part in ("verdict=accepted", "not_taken=1", "limit=recipients"):
        assert part in taken
    for part in ("verdict=deferred", "by=rate_limit", "limit=recipients", "try again in"):
        assert part in refused


def test_421_at_auth_and_nothing_was_verified(run):
    server, lines = limited(auth_failures=rate(2))

    async def dialogue(client):
        for _ in range(2):
            assert (await client.command(WRONG)).code == 535
        reply = await client.command(PLAIN)
        assert reply.code == 421
        assert reply.text.startswith(
            "4.7.0 Too many failed authentications from your address (limit: auth_failures)"
        )
        assert await client.rest() == b""

    converse(run, server, dialogue)
    assert server.counters.auth_successes == 0
    (line,) = [line for line in lines if "limit=auth_failures" in line]
    assert "event=auth" in line
    assert "by=rate_limit" in line


def test_421_instead_of_the_greeting_once_a_session_has_spent_it_all(run):
    server, lines = limited(errors=rate(3))

    async def test():
        async with running(server) as address:
            async with await Client.connect(address) as client:
                await client.reply()
                for _ in range(4):
                    await client.command("NONSENSE")
                await client.command("QUIT")
                await client.rest()
            async with await Client.connect(address) as client:
                reply = await client.reply()
                assert reply.code == 421
                assert "(limit: errors), try again in" in reply.text
                assert await client.rest() == b""

    run(test())
    (line,) = [line for line in lines if "event=refused" in line]
    assert "limit=errors" in line
    assert "by=rate_limit" in line


def test_a_lost_session_books_what_it_spent(run, until):
    store = LocalStore()
    server = Server()
    server.use(rate_limit(store, messages=rate(10), concurrent=5))

    async def test():
        async with running(server) as address:
            async with await Client.connect(address) as client:
                await client.reply()
                await client.command("EHLO client.example")
                for _ in range(3):
                    await transaction(client)
                client.reset()
            await until(lambda: not server.sessions)
            sent = 0
            async with await Client.connect(address) as client:
                await client.reply()
                await client.command("EHLO client.example")
                while (await transaction(client))[-1] == 250:
                    sent += 1
            assert sent == 7

    run(test())


def test_after_starttls_the_budgets_are_the_same(run, server_tls, client_tls):
    server = Server(hostname="localhost", tls=server_tls)
    server.use(rate_limit(LocalStore(), messages=rate(2)))

    async def dialogue(client):
        assert (await transaction(client))[-1] == 250
        await client.starttls(client_tls)
        await client.command("EHLO client.example")
        assert (await transaction(client))[-1] == 250
        assert await transaction(client) == [450]

    converse(run, server, dialogue)
