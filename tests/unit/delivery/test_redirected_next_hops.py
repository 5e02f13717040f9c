"""Aliases in front of a next hop: it is asked for the targets, and its answers are the aliases'."""

from __future__ import annotations

import pytest
from next_hops import Backend, backend, client_of, relay

from preforkmx.middleware.recipients import recipients
from preforkmx.middleware.recipients_map import RecipientMap

A, B, C = "a@example.com", "b@example.com", "c@example.com"
HERE = RecipientMap({"@example.com": (), "list@example.com": (A, B), "alias@example.com": (B,)})
MESSAGE = b"Subject: hello\r\n\r\nhello\r\n"


def through(run, test, *, lmtp):
    async def inner():
        async with backend(lmtp=lmtp) as hop:
            server = relay(hop, lmtp_=lmtp)
            server.use(recipients([HERE], hostname="mx.example.com"))
            async with client_of(server) as client:
                await test(hop, client)

    run(inner())


def asked(hop: Backend) -> list[str]:
    return [line.partition("<")[2].partition(">")[0] for line in hop.said if "RCPT" in line]


async def offer(client, *names):
    addresses = [f"{name}@example.com" for name in names]
    return await client.deliver(MESSAGE, sender="from@example.org", recipients=addresses)


@pytest.mark.parametrize("lmtp", [True, False])
def test_the_next_hop_is_asked_for_the_targets_and_has_each_of_them_once(run, lmtp):
    async def test(hop, client):
        assert (await offer(client, "list", "c")).code == 250
        assert asked(hop) == [A, B, C]
        assert [names for _, names, _ in hop.messages] == [[A, B, C]]

    through(run, test, lmtp=lmtp)


@pytest.mark.parametrize("lmtp", [True, False])
def test_a_target_that_two_recipients_lead_to_has_one_copy(run, lmtp):
    async def test(hop, client):
        assert (await offer(client, "list", "alias", "b")).code == 250
        assert [names for _, names, _ in hop.messages] == [[A, B]]

    through(run, test, lmtp=lmtp)


@pytest.mark.parametrize("lmtp", [True, False])
def test_a_target_that_is_refused_refuses_the_alias_and_the_others_have_their_mail(run, lmtp):
    async def test(hop, client):
        hop.answers[f"RCPT TO:<{B}>"] = "550 5.1.1 No b"
        await client.command("MAIL FROM:<from@example.org>")
        replies = [
            (await client.command(f"RCPT TO:<{name}@example.com>")).code
            for name in ("list", "c", "alias")
        ]
        assert replies == [550, 250, 550]
        assert (await client.command("DATA")).code == 354
        await client.send(MESSAGE + b".\r\n")
        assert (await client.reply()).code == 250
        # a was asked for as a part of the list, which was refused.
        assert [names for _, names, _ in hop.messages] == [[C]]

    through(run, test, lmtp=lmtp)


def test_a_reply_names_the_alias_and_never_its_targets(run):
    async def test(hop, client):
        hop.answers[f".{A}"] = "550 5.2.1 <A@example.com> is disabled"
        reply = await offer(client, "list", "c")
        assert reply.code == 550
        assert "<list@example.com> is disabled" in reply.text
        assert "<list@example.com>" in reply.text
        assert A not in reply.text.lower()
        assert [name for name, _ in hop.delivered] == [B, C]
        hop.answers[f"RCPT TO:<{B}>"] = "550 5.1.1 <b@Example.com>: no such user"
        await client.command("MAIL FROM:<from@example.org>")
        reply = await client.command("RCPT TO:<Alias@example.com>")
        assert reply.text == "5.1.1 <Alias@example.com>: no such user"

    through(run, test, lmtp=True)


def test_a_message_that_comes_again_reaches_only_the_targets_without_a_copy(run):
    async def test(hop, client):
        hop.answers[f".{A}"] = "452 4.2.2 Mailbox full"
        assert (await offer(client, "list", "c")).code == 451
        del hop.answers[f".{A}"]
        assert (await offer(client, "list", "c")).code == 250
        assert [name for name, _ in hop.delivered] == [B, C, A]

    through(run, test, lmtp=True)
