"""Recipients that are redirected: what the delivery has, and what it refuses for whom."""

from __future__ import annotations

import asyncio

import pytest

from preforkmx import Middleware, Server, SMTPError
from preforkmx.body import whole
from preforkmx.context import Context
from preforkmx.middleware.redirect import redirected
from preforkmx.model import DSN, Envelope, RecipientDSN
from preforkmx.testing import Client, Recorder, running
from tests.unit.middleware.test_recipients import PEER

TARGETS = {
    "list@x.example": ("a@x.example", "b@x.example"),
    "alias@x.example": ("b@x.example",),
}


def envelope(*recipients, **fields):
    made = Envelope("s@y.example", whole(b""), recipients=list(recipients), **fields)
    for name, targets in TARGETS.items():
        made.redirect(name, *targets)
    return made


def deliver(outer, handler):
    asyncio.run(redirected(Middleware(handler=handler)).handler(Context(), PEER, outer))
    return {index: error.code for index, error in outer.rejections.items()}


def rejecting(**codes):
    """A delivery that rejects recipients by the first letter of their name."""

    async def handler(_ctx, _peer, inner):
        for index, recipient in enumerate(inner.recipients):
            if recipient[0] in codes:
                inner.reject_recipient(index, SMTPError(codes[recipient[0]], "no"))

    return handler


@pytest.mark.parametrize(
    ("codes", "rejections"),
    [
        ({}, {}),
        ({"a": 550}, {0: 550}),
        ({"b": 550}, {0: 550, 1: 550}),
        ({"a": 550, "b": 450}, {0: 450, 1: 450}),
        ({"a": 450, "b": 550}, {0: 450, 1: 550}),
        ({"c": 550}, {2: 550}),
    ],
)
def test_what_is_rejected_for_a_target_is_rejected_for_whoever_leads_there(codes, rejections):
    outer = envelope("list@x.example", "alias@x.example", "c@x.example")
    assert deliver(outer, rejecting(**codes)) == rejections
    assert outer.recipients == ["list@x.example", "alias@x.example", "c@x.example"]


def test_wishes_about_notifications_go_with_the_mail():
    asked, other = RecipientDSN(frozenset({"NEVER"})), RecipientDSN(frozenset({"FAILURE"}))
    outer = envelope(
        "list@x.example",
        "alias@x.example",
        "c@x.example",
        dsn=DSN("HDRS", "id", {"alias@x.example": asked, "c@x.example": other}),
    )
    seen = []

    async def handler(_ctx, _peer, inner):
        seen.append(inner.dsn)

    deliver(outer, handler)
    assert seen == [DSN("HDRS", "id", {"b@x.example": asked, "c@x.example": other})]


def test_an_envelope_that_nobody_redirected_is_the_deliverys_own():
    seen = []

    async def handler(_ctx, _peer, inner):
        seen.append(inner)

    outer = Envelope("s@y.example", whole(b""), recipients=["a@x.example"])
    deliver(outer, handler)
    assert seen[0] is outer


def test_what_a_handler_raises_is_raised():
    async def handler(_ctx, _peer, _inner):
        raise SMTPError(451, "not now")

    with pytest.raises(SMTPError, match="not now"):
        deliver(envelope("list@x.example"), handler)


def test_what_a_handler_raises_names_nobody_behind_the_recipient():
    async def handler(_ctx, _peer, _inner):
        raise SMTPError(550, "<A@x.example> and <b@x.example> are full")

    with pytest.raises(SMTPError) as caught:
        deliver(envelope("list@x.example"), handler)
    assert caught.value.code == 550
    assert caught.value.message == "<list@x.example> and <list@x.example> are full"


def test_a_recipient_is_redirected_to_somebody():
    with pytest.raises(ValueError, match="at least one"):
        envelope("a@x.example").redirect("a@x.example")


def test_a_delivery_that_refuses_a_target_at_rcpt_refuses_the_recipient():
    recorder = Recorder()

    async def check(ctx, _peer, address):
        if address in TARGETS:
            ctx.envelope.redirect(address, *TARGETS[address])

    async def refuse_b(ctx, peer, address):
        await recorder.check_recipient(ctx, peer, address)
        if address.startswith("b@"):
            raise SMTPError(550, "No b", enhanced=(5, 1, 1))

    server = Server(
        hostname="mx.example.com",
        handler=Middleware(check_recipient=refuse_b, handler=recorder.handler, name="hop"),
    )
    server.use(Middleware(check_recipient=check))

    async def scenario():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            await client.command("MAIL FROM:<>")
            replies = [
                (await client.command(f"RCPT TO:<{name}@x.example>")).text
                for name in ("list", "a", "alias")
            ]
            await client.command("DATA")
            await client.send(b"x\r\n.\r\n")
            return replies, await client.reply()

    replies, last = asyncio.run(scenario())
    assert replies[0] == replies[2] == "5.1.1 No b"
    assert replies[1].startswith("2.1.5 ")
    assert last.code == 250
    # That a was asked for as a part of the list gives it nothing twice.
    assert [each.recipients for each in recorder.messages] == [("a@x.example",)]


def test_the_log_names_the_hook_and_not_what_is_around_it():
    async def deliver_it(_ctx, _peer, _envelope):
        pass

    hook = redirected(Middleware(handler=deliver_it)).handler
    assert hook.__qualname__.endswith("deliver_it")


def test_lmtp_answers_each_recipient_that_was_given(tmp_path):
    async def check(ctx, _peer, address):
        if address in TARGETS:
            ctx.envelope.redirect(address, *TARGETS[address])

    server = Server(hostname="mx.example.com", handler=rejecting(a=550))
    server.use(Middleware(check_recipient=check))
    socket = tmp_path / "lmtp"
    server.listen(f"unix:{socket}", protocol="lmtp", tls="off")

    async def scenario():
        async with server:
            client = Client(*await asyncio.open_unix_connection(str(socket)))
            async with client:
                await client.reply()
                await client.command("LHLO client.example")
                await client.command("MAIL FROM:<>")
                for name in ("list", "alias", "c"):
                    await client.command(f"RCPT TO:<{name}@x.example>")
                await client.command("DATA")
                await client.send(b"x\r\n.\r\n")
                return await client.replies(3)

    assert asyncio.run(scenario()) == [550, 250, 250]
