"""What hooks see of the transaction before its message: the envelope, and what RCPT asks."""

from __future__ import annotations

from preforkmx import Middleware, Server, SMTPError
from preforkmx.body import prepend
from preforkmx.delivery.discard import discard
from preforkmx.testing import Client, running

OPTIONS = {"smtputf8": True, "dsn": True}


def converse(run, server, *lines):
    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            for line in lines:
                await client.command(line)
            await client.command("QUIT")

    run(test())


def test_the_envelope_stands_on_the_context_from_mail_to_the_end(run):
    seen = []

    def note(phase):
        async def hook(ctx, peer, *_):
            envelope = ctx.envelope
            seen.append(
                (phase, envelope and (envelope.sender, envelope.size, len(envelope.recipients)))
            )

        return hook

    phases = ("check_helo", "check_sender", "check_recipient", "handler", "reset", "disconnect")
    server = Server(handler=discard(), **OPTIONS)
    server.use(Middleware(**{phase: note(phase) for phase in phases}))
    converse(
        run, server, "MAIL FROM:<a@example.org> SIZE=9", "RCPT TO:<b@example.com>", "DATA", "x\r\n."
    )
    assert seen == [
        ("check_helo", None),
        ("check_sender", ("a@example.org", 9, 0)),
        ("check_recipient", ("a@example.org", 9, 0)),
        ("handler", ("a@example.org", 9, 1)),
        ("reset", None),
        ("disconnect", None),
    ]


def test_what_rcpt_asks_about_notifications_is_known_in_its_check(run):
    seen = []

    async def check(ctx, peer, address):
        seen.append(ctx.recipient_dsn and ctx.recipient_dsn.notify)
        if address.startswith("no"):
            raise SMTPError(550, "no")

    server = Server(handler=discard(), **OPTIONS)
    server.use(Middleware(check_recipient=check))
    converse(
        run,
        server,
        "MAIL FROM:<a@example.org>",
        "RCPT TO:<no@example.com> NOTIFY=NEVER",
        "RCPT TO:<b@example.com>",
        "RCPT TO:<c@example.com> NOTIFY=DELAY",
    )
    assert seen == [{"NEVER"}, None, {"DELAY"}]


def test_a_tap_sees_the_client_s_octets_and_their_end(run):
    seen = []

    async def tap(ctx, peer, address):
        ctx.envelope.tap = seen.append

    async def handler(ctx, peer, envelope):
        envelope.data = prepend(envelope.data, b"X-Added: yes\r\n")

    server = Server(handler=discard(), **OPTIONS)
    server.use(Middleware(check_sender=tap, handler=handler))
    lines = ("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA", "..x\r\n.")
    converse(run, server, *lines)
    assert b"".join(seen) == b".x\r\n"
    assert seen[-1] == b""
    assert b"" not in seen[:-1]


def test_a_tap_hears_of_no_end_where_there_is_none(run):
    seen = []

    async def tap(ctx, peer, address):
        ctx.envelope.tap = seen.append

    server = Server(handler=discard(), **OPTIONS)
    server.use(Middleware(check_sender=tap))

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            # A bare newline is found when the message is whole.
            assert (await client.deliver(b"x\ny\r\n")).code == 550

    run(test())
    assert b"" not in seen
