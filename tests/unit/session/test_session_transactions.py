"""A transaction: its envelope, and when it is forgotten."""

from __future__ import annotations

import asyncio

import pytest

from preforkmx import Envelope, Middleware, Server, SMTPError, whole
from preforkmx.testing import Client, Recorder, running


@pytest.fixture
def recorder():
    return Recorder()


def converse(run, server, dialogue, **options):
    async def test():
        async with (
            running(server, **options) as address,
            await Client.connect(address) as client,
        ):
            return await dialogue(client)

    return run(test())


@pytest.mark.parametrize(
    "command", ["RSET", "EHLO again.example", "HELO again.example"], ids=str.lower
)
def test_reset_runs_after_rset_and_a_new_greeting_and_the_transaction_is_forgotten(
    run, recorder, command
):
    async def dialogue(client):
        await client.hello()
        await client.command("MAIL FROM:<a@example.org>")
        await client.command("RCPT TO:<b@example.com>")
        assert (await client.command(command)).code == 250
        assert recorder.phases[-1] == "reset"
        assert (await client.command("RCPT TO:<c@example.com>")).code == 503
        assert (await client.deliver(b"")).code == 250

    converse(run, Server(handler=recorder), dialogue)
    first, second = recorder.of("reset")
    assert first.context.sender is second.context.sender is None
    assert recorder.messages[0].sender == ""
    assert len(recorder.messages[0].recipients) == 1


def test_reset_does_not_run_at_the_first_greeting(run, recorder):
    async def dialogue(client):
        await client.hello()

    converse(run, Server(handler=recorder), dialogue)
    assert recorder.of("reset") == []


def test_reset_runs_at_a_new_greeting_without_a_transaction(run, recorder):
    async def dialogue(client):
        await client.hello()
        await client.command("EHLO again.example")

    converse(run, Server(handler=recorder), dialogue)
    (call,) = recorder.of("reset")
    assert call.peer.helo_name == "again.example"


def test_reset_does_not_run_at_a_new_greeting_that_is_refused(run, recorder):
    async def dialogue(client):
        await client.hello()
        await client.command("MAIL FROM:<a@example.org>")
        recorder.refuse("check_helo", SMTPError(550, "No"))
        assert (await client.command("EHLO again.example")).code == 550
        # The transaction is still there (RFC 5321 section 4.1.4).
        assert (await client.command("RCPT TO:<b@example.com>")).code == 250

    converse(run, Server(handler=recorder), dialogue)
    assert recorder.of("reset") == []


@pytest.mark.parametrize("refusal", [None, SMTPError(451, "Later")])
def test_reset_runs_after_each_delivery_whatever_its_outcome(run, recorder, refusal):
    async def deliver(ctx, peer, envelope):
        if refusal is not None:
            raise refusal

    async def dialogue(client):
        await client.hello()
        for _ in range(2):
            assert (await client.deliver(b"Hello\r\n")).code == (451 if refusal else 250)

    server = Server(handler=deliver)
    server.use(recorder)
    converse(run, server, dialogue)
    assert len(recorder.of("reset")) == 2


def test_the_reply_after_the_message_does_not_wait_for_the_reset_hooks(run):
    let_go = asyncio.Event()

    async def slow(ctx, peer):
        await let_go.wait()

    async def dialogue(client):
        await client.hello()
        assert (await client.deliver(b"Hello\r\n")).code == 250
        let_go.set()

    server = Server()
    server.use(Middleware(reset=slow))
    converse(run, server, dialogue)


@pytest.mark.parametrize("command", ["RSET", "EHLO again.example"])
def test_a_reset_hook_that_refuses_is_the_reply_and_the_transaction_is_gone_all_the_same(
    run, recorder, command
):
    async def dialogue(client):
        await client.hello()
        await client.command("MAIL FROM:<a@example.org>")
        await client.command("RCPT TO:<b@example.com>")
        recorder.refuse("reset", SMTPError(451, "Later"), times=1)
        assert (await client.command(command)).code == 451
        assert (await client.command("RCPT TO:<c@example.com>")).code == 503
        assert (await client.command("DATA")).code == 503
        assert (await client.deliver(b"")).code == 250

    converse(run, Server(handler=recorder), dialogue)
    assert len(recorder.messages) == 1


def test_a_reset_hook_that_refuses_after_a_delivery_does_not_touch_its_250(run, recorder):
    async def dialogue(client):
        await client.hello()
        recorder.refuse("reset", SMTPError(550, "No"))
        assert (await client.deliver(b"Hello\r\n")).code == 250
        assert (await client.reply()).code == 421
        assert await client.rest() == b""

    converse(run, Server(handler=recorder), dialogue)
    assert len(recorder.messages) == 1


def test_every_transaction_has_an_envelope_and_an_id_of_its_own(run, recorder):
    seen = []

    async def deliver(ctx, peer, envelope):
        seen.append(envelope)

    async def dialogue(client):
        await client.hello()
        return [await client.deliver(b"", sender="a@example.org") for _ in range(2)]

    replies = converse(run, Server(handler=deliver), dialogue)
    assert seen[0] is not seen[1]
    for envelope, reply in zip(seen, replies, strict=True):
        assert reply.text == f"2.0.0 Ok: queued as {envelope.id}"
    assert seen[0].id != seen[1].id


def test_the_envelope_holds_what_mail_and_rcpt_said(run):
    seen = []

    async def deliver(ctx, peer, envelope):
        seen.append((envelope.sender, list(envelope.recipients), envelope.size, envelope.body))

    async def dialogue(client):
        await client.hello()
        await client.command("MAIL FROM:<a@example.org> SIZE=77 BODY=8BITMIME")
        await client.command("RCPT TO:<b@example.com>")
        await client.command("RCPT TO:<Postmaster>")
        await client.command("DATA")
        assert (await client.command(".")).code == 250

    converse(run, Server(hostname="mx.example.com", handler=deliver), dialogue)
    assert seen == [
        ("a@example.org", ["b@example.com", "Postmaster@mx.example.com"], 77, "8BITMIME")
    ]


def test_hooks_and_handlers_share_the_envelope_and_may_change_it(run, recorder):
    async def rewrite(ctx, peer, envelope: Envelope):
        octets = await envelope.data.read_all(1000)
        envelope.recipients[:] = ["elsewhere@example.com"]
        envelope.data = whole(octets.upper())

    async def dialogue(client):
        await client.hello()
        assert (await client.deliver(b"Hello\r\n", recipients=["b@example.com"])).code == 250

    server = Server(handler=recorder)
    server.use(Middleware(handler=rewrite))
    converse(run, server, dialogue)
    (message,) = recorder.messages
    assert message.recipients == ("elsewhere@example.com",)
    assert message.octets == b"HELLO\r\n"


def test_handlers_run_in_the_order_of_use_and_the_server_s_own_runs_last(run):
    order = []

    def handler(name):
        async def handle(ctx, peer, envelope):
            order.append(name)

        return handle

    async def dialogue(client):
        await client.hello()
        assert (await client.deliver(b"")).code == 250

    server = Server(handler=handler("delivery"))
    server.use(Middleware(handler=handler("first")), Middleware(handler=handler("second")))
    converse(run, server, dialogue)
    assert order == ["first", "second", "delivery"]


def test_a_delivery_target_is_a_middleware_and_its_hooks_run_last(run, recorder):
    order = []

    def hook(name):
        async def note(ctx, peer, address):
            order.append(name)

        return note

    async def dialogue(client):
        await client.hello()
        assert (await client.deliver(b"")).code == 250

    server = Server(handler=Middleware(check_recipient=hook("delivery"), handler=recorder.handler))
    server.use(Middleware(check_recipient=hook("check")))
    converse(run, server, dialogue)
    assert order == ["check", "delivery"]
    assert len(recorder.messages) == 1


def test_a_server_without_a_handler_takes_messages_and_throws_them_away(run):
    async def dialogue(client):
        await client.hello()
        return await client.deliver(b"Hello\r\n" * 1000)

    server = Server()
    assert converse(run, server, dialogue).code == 250
    assert server.counters.messages == 1
    assert server.counters.octets == 7000


def test_the_replies_of_one_flight_leave_in_one_piece(run, recorder):
    async def dialogue(client):
        await client.hello()
        await client.send(
            b"MAIL FROM:<>\r\nRCPT TO:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n"
        )
        first = await client.reader.read(65536)
        await client.send(b"Hello\r\n.\r\nQUIT\r\n")
        return first, await client.rest()

    first, second = converse(run, Server(handler=recorder), dialogue)
    assert [line[:3] for line in first.splitlines()] == [b"250", b"250", b"250", b"354"]
    assert [line[:3] for line in second.splitlines()] == [b"250", b"221"]


def test_354_does_not_wait_for_a_handler_that_does_not_read_yet(run):
    let_go = asyncio.Event()

    async def slow(ctx, peer, envelope):
        await let_go.wait()

    async def dialogue(client):
        await client.hello()
        await client.command("MAIL FROM:<>")
        await client.command("RCPT TO:<a@example.com>")
        assert (await client.command("DATA")).code == 354
        let_go.set()
        assert (await client.command(".")).code == 250

    converse(run, Server(handler=slow), dialogue)


def test_in_data_counts_the_sessions_between_354_and_the_reply(run):
    seen = []

    async def deliver(ctx, peer, envelope):
        seen.append(server.in_data)
        await envelope.data.read_all(1000)

    async def dialogue(client):
        await client.hello()
        await client.command("MAIL FROM:<>")
        await client.command("RCPT TO:<a@example.com>")
        assert server.in_data == 0
        assert (await client.command("DATA")).code == 354
        assert server.in_data == 1
        assert (await client.command(".")).code == 250
        assert server.in_data == 0

    server = Server(handler=deliver)
    converse(run, server, dialogue)
    assert seen == [1]


def test_recipients_beyond_the_limit_get_452_and_the_others_their_mail(run, recorder):
    async def dialogue(client):
        await client.hello()
        await client.command("MAIL FROM:<>")
        for i in range(100):
            assert (await client.command(f"RCPT TO:<{i}@example.com>")).code == 250
        assert (await client.command("RCPT TO:<one.more@example.com>")).code == 452
        await client.command("DATA")
        assert (await client.command(".")).code == 250

    converse(run, Server(handler=recorder, recipients=100), dialogue)
    assert len(recorder.messages[0].recipients) == 100
