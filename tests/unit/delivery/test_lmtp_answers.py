"""LMTP's answers, one for each recipient, as the one that SMTP has: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio

import pytest
from next_hops import Backend, backend, client_of, relay

from preforkmx import Middleware, Server
from preforkmx.body import prepend, whole
from preforkmx.delivery.lmtp import lmtp
from preforkmx.delivery.nexthop.delivered import LocalDelivered
from preforkmx.errors import StoreUnavailable
from preforkmx.session.listener import Listener
from preforkmx.testing import Client

A, B, C = "a@example.com", "b@example.com", "c@example.com"
MESSAGE = b"Subject: hello\r\n\r\nhello\r\n"
FULL = "452 4.2.2 Mailbox full"
GONE = "550 5.2.1 Mailbox disabled"


async def offer(client, *recipients, message=MESSAGE, sender="from@example.org"):
    return await client.deliver(message, sender=sender, recipients=recipients)


def copies(hop: Backend) -> list[str]:
    return [name for name, _ in hop.delivered]


def with_memory(run, test, **options):
    async def inner():
        async with (
            backend(lmtp=True) as hop,
            client_of(relay(hop, lmtp_=True, **options)) as client,
        ):
            await test(hop, client)

    run(inner())


def test_all_taken_is_250(run):
    async def test(hop, client):
        assert (await offer(client, A, B, C)).code == 250
        assert copies(hop) == [A, B, C]
        assert hop.verbs()[0] == "LHLO"

    with_memory(run, test)


def test_5xx_for_some_is_a_5xx_that_names_them_and_nothing_is_remembered(run):
    async def test(hop, client):
        hop.answers[f".{B}"] = GONE
        for _ in range(2):
            reply = await offer(client, A, B, C)
            assert reply.code == 550
            assert f"<{B}>" in reply.text
            assert f"<{A}>" not in reply.text
        assert copies(hop) == [A, C, A, C]

    with_memory(run, test)


def test_4xx_for_some_is_451_and_the_retry_goes_to_the_others_only(run):
    async def test(hop, client):
        hop.answers[f".{B}"] = FULL
        reply = await offer(client, A, B, C)
        assert (reply.code, reply.text) == (451, "4.2.2 Mailbox full")
        assert (await offer(client, A, B, C)).code == 451
        hop.answers.clear()
        assert (await offer(client, A, B, C)).code == 250
        assert sorted(copies(hop)) == [A, B, C]

    with_memory(run, test)


def test_a_message_repeated_on_purpose_is_always_delivered(run):
    async def test(hop, client):
        hop.answers[f".{B}"] = FULL
        assert (await offer(client, A, B)).code == 451
        hop.answers.clear()
        assert (await offer(client, A, B)).code == 250
        # What was delivered was forgotten when the retry was answered.
        for _ in range(2):
            assert (await offer(client, A, B)).code == 250
        assert sorted(copies(hop)) == [A] * 3 + [B] * 3

    with_memory(run, test)


def test_another_message_to_the_same_recipients_is_delivered_to_all(run):
    async def test(hop, client):
        hop.answers[f".{B}"] = FULL
        assert (await offer(client, A, B)).code == 451
        hop.answers.clear()
        other = MESSAGE + b"more\r\n"
        assert (await offer(client, A, B, message=other)).code == 250
        assert (await offer(client, A, B, sender="x@example.org")).code == 250
        assert copies(hop) == [A, A, B, A, B]
        assert (await offer(client, A, B)).code == 250
        assert copies(hop) == [A, A, B, A, B, B]

    with_memory(run, test)


def test_two_messages_of_one_pair_that_are_both_half_delivered_are_told_apart(run):
    async def test(hop, client):
        messages = [MESSAGE + b"%d\r\n" % number for number in range(2)]
        hop.answers[f".{B}"] = FULL
        for message in messages:
            assert (await offer(client, A, B, message=message)).code == 451
        hop.answers.clear()
        for message in messages:
            assert (await offer(client, A, B, message=message)).code == 250
        assert sorted(copies(hop)) == [A, A, B, B]

    with_memory(run, test)


def test_a_retry_that_brings_only_those_who_have_it_sends_nothing(run):
    async def test(hop, client):
        hop.answers[f".{B}"] = FULL
        assert (await offer(client, A, B)).code == 451
        assert (await offer(client, A)).code == 250
        assert copies(hop) == [A]
        # And was forgotten for them.
        assert (await offer(client, A)).code == 250
        assert copies(hop) == [A, A]

    with_memory(run, test)


def test_a_retry_that_ends_with_5xx_is_final(run):
    async def test(hop, client):
        hop.answers[f".{B}"] = FULL
        assert (await offer(client, A, B)).code == 451
        hop.answers[f".{B}"] = GONE
        reply = await offer(client, A, B)
        assert reply.code == 550
        assert f"<{B}>" in reply.text
        assert (await offer(client, A)).code == 250
        assert copies(hop) == [A, A]

    with_memory(run, test)


def test_a_connection_lost_between_the_answers_counts_those_that_came(run):
    async def test(hop, client):
        hop.answers[f".{B}"] = None
        assert (await offer(client, A, B, C)).code == 451
        hop.answers.clear()
        assert (await offer(client, A, B, C)).code == 250
        assert sorted(copies(hop)) == [A, B, C]

    with_memory(run, test)


def test_nobody_taken_is_the_first_4xx_or_5xx(run):
    async def test(hop, client):
        hop.answers["."] = GONE
        reply = await offer(client, A, B)
        assert (reply.code, reply.text) == (550, "5.2.1 Mailbox disabled")
        hop.answers[f".{B}"] = FULL
        assert (await offer(client, A, B)).code == 452
        hop.answers.clear()
        assert (await offer(client, A, B)).code == 250
        assert copies(hop) == [A, B]

    with_memory(run, test)


def test_a_large_message_is_spooled_and_arrives_whole(run):
    async def test(hop, client):
        message = MESSAGE + (b"x" * 70 + b"\r\n.y\r\n") * 12_000
        hop.answers[f".{B}"] = FULL
        assert (await offer(client, A, B, message=message)).code == 451
        hop.answers.clear()
        assert (await offer(client, A, B, message=message)).code == 250
        (_, first), (_, second) = hop.delivered
        assert first.endswith(message)
        assert second.endswith(message)

    with_memory(run, test)


def test_what_is_hashed_is_the_message_as_the_client_sent_it(run):
    async def test():
        count = 0

        async def handler(ctx, peer, envelope):
            nonlocal count
            count += 1
            envelope.data = prepend(envelope.data, b"X-Count: %d\r\n" % count)

        async with backend(lmtp=True) as hop:
            server = relay(hop, lmtp_=True)
            server.use(Middleware(handler=handler))
            async with client_of(server) as client:
                hop.answers[f".{B}"] = FULL
                assert (await offer(client, A, B)).code == 451
                hop.answers.clear()
                assert (await offer(client, A, B)).code == 250
            assert sorted(copies(hop)) == [A, B]
            assert b"X-Count: 2\r\n" in hop.delivered[-1][1]

    run(test())


def test_messages_that_a_handler_puts_in_their_place_are_never_taken_for_one(run):
    async def test():
        async def handler(ctx, peer, envelope):
            envelope.data = whole(b"Subject: another\r\n\r\n")

        async with backend(lmtp=True) as hop:
            server = relay(hop, lmtp_=True)
            server.use(Middleware(handler=handler))
            async with client_of(server) as client:
                hop.answers[f".{B}"] = FULL
                assert (await offer(client, A, B)).code in (451, 452)
                hop.answers.clear()
                assert (await offer(client, A, B)).code == 250
            assert copies(hop) == [A, A, B]

    run(test())


class Away(LocalDelivered):
    """A store that is away."""

    async def known(self, keys):
        raise StoreUnavailable("away")

    async def remember(self, keys, seconds):
        raise StoreUnavailable("away")


def test_mail_goes_on_while_the_memory_is_away(run):
    async def test(hop, client):
        hop.answers[f".{B}"] = FULL
        assert (await offer(client, A, B)).code == 451
        hop.answers.clear()
        assert (await offer(client, A, B)).code == 250
        assert copies(hop) == [A, A, B]

    with_memory(run, test, memory=Away())


def test_a_client_that_speaks_lmtp_has_an_answer_for_each(run, tmp_path):
    async def test():
        async with backend(lmtp=True) as hop:
            server = Server(hostname="mx", handler=lmtp([hop.address], hostname="mx"))
            path = tmp_path / "s"
            server.listen(Listener(f"unix:{path}", protocol="lmtp"))
            hop.answers[f".{B}"] = FULL
            hop.answers[f".{C}"] = GONE
            async with (
                server,
                Client(*await asyncio.open_unix_connection(str(path))) as client,
            ):
                await client.reply()
                await client.command("LHLO x")
                await client.command("MAIL FROM:<f@example.org>")
                for name in (A, B, C):
                    await client.command(f"RCPT TO:<{name}>")
                await client.command("DATA")
                await client.send(MESSAGE + b".\r\n")
                assert await client.replies(3) == [250, 452, 550]
                await client.command("QUIT")

    run(test())


def test_the_memory_forgets_in_time_and_has_a_bound(run, monkeypatch):
    monkeypatch.setattr("preforkmx.delivery.nexthop.delivered.MAX_KEYS", 3)
    now = 0.0

    async def test():
        nonlocal now
        memory = LocalDelivered(lambda: now)
        await memory.remember([b"a", b"b"], 10.0)
        assert await memory.known([b"a", b"c"]) == {b"a"}
        now = 5.0
        await memory.remember([b"a"], 10.0)
        await memory.remember([b"c", b"d"], 10.0)
        assert await memory.known([b"a", b"b", b"c", b"d"]) == {b"a", b"c", b"d"}
        await memory.forget([b"c", b"x"])
        now = 15.0
        assert not await memory.known([b"a", b"b", b"c", b"d"])

    run(test())


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_answers_that_are_lost_are_never_250(run, lost):
    async def test(hop, client):
        hop.answers[f".{(A, B, C)[lost]}"] = None
        assert (await offer(client, A, B, C)).code == 451

    with_memory(run, test)
