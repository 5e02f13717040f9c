"""What a relay's client is answered, and when its next hop is asked."""

from __future__ import annotations

import asyncio

import pytest
from next_hops import backend, client_of, relay

from preforkmx.delivery.nexthop import pool, servers
from preforkmx.delivery.nexthop.offers import Offers
from preforkmx.delivery.nexthop.settings import Timeouts
from preforkmx.testing import Client, running

MESSAGE = b"Subject: hello\r\n\r\n.dots and\r\n..\r\nlines\r\n"


def received(message: bytes) -> tuple[bytes, bytes]:
    """The Received header in front of a message, and the rest."""
    head, _, rest = message.partition(b"+0000\r\n")
    assert head.startswith(b"Received: from client.example ([127.0.0.1])")
    return head, rest


def test_a_message_is_handed_on_with_a_received_header(run):
    async def test():
        async with backend() as hop, client_of(relay(hop)) as client:
            reply = await client.deliver(
                MESSAGE, sender="a@example.org", recipients=["b@example.com"]
            )
            assert reply.code == 250
        ((sender, recipients, message),) = hop.messages
        assert (sender, recipients) == ("a@example.org", ["b@example.com"])
        head, rest = received(message)
        assert rest == MESSAGE
        assert b"for <b@example.com>" in head

    run(test())


def test_mail_and_rcpt_are_asked_before_they_are_answered(run):
    async def test():
        async with backend() as hop, client_of(relay(hop)) as client:
            hop.answers["MAIL FROM:<bad@"] = "550 5.7.1 Not you"
            hop.answers["RCPT TO:<nobody@"] = "550 5.1.1 No such user here"
            hop.answers["RCPT TO:<full@"] = "452 4.2.2 Mailbox full"
            reply = await client.command("MAIL FROM:<bad@example.org>")
            assert (reply.code, reply.text) == (550, "5.7.1 Not you")
            assert (await client.command("MAIL FROM:<a@example.org>")).code == 250
            reply = await client.command("RCPT TO:<nobody@example.com>")
            assert (reply.code, reply.text) == (550, "5.1.1 No such user here")
            reply = await client.command("RCPT TO:<full@example.com>")
            assert (reply.code, reply.text) == (452, "4.2.2 Mailbox full")
            assert (await client.command("RCPT TO:<b@example.com>")).code == 250
            assert (await client.command("DATA")).code == 354
            assert (await client.command("x\r\n.")).code == 250
        assert [recipients for _, recipients, _ in hop.messages] == [["b@example.com"]]

    run(test())


async def offer(client, *recipients, message=MESSAGE, sender="a@example.org"):
    return await client.deliver(message, sender=sender, recipients=recipients or ["b@example.com"])


# --- who may say 5xx ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "answer", "code", "text"),
    [
        ("MAIL", "553 5.1.8 No such sender", 553, "5.1.8 No such sender"),
        ("MAIL", "451 4.7.1 Later", 451, "4.7.1 Later"),
        ("MAIL", "421 4.3.2 Closing", 451, "4.4.2 The next hop is not available, try again later"),
        ("MAIL", "530 5.7.0 Log in", 451, "4.4.1 The next hop is not available, try again later"),
        ("MAIL", "503 Order", 451, "4.4.1 The next hop is not available, try again later"),
        ("MAIL", "354 what", 451, "4.5.0 The next hop is not available, try again later"),
        ("MAIL", "hello", 451, "4.5.0 The next hop is not available, try again later"),
        ("MAIL", "550-a\r\n551 b", 451, "4.5.0 The next hop is not available, try again later"),
        ("RCPT", "550 No", 550, "5.0.0 No"),
        ("RCPT", "550-5.1.1 No\r\n550 5.1.1 such user", 550, "5.1.1 No such user"),
        ("RCPT", "502 Bug", 451, "4.4.1 The next hop is not available, try again later"),
        ("RCPT", "421 bye", 451, "4.4.2 The next hop is not available, try again later"),
        ("DATA", "554 5.7.1 No mail", 554, "5.7.1 No mail"),
        ("DATA", "250 what", 451, "4.5.0 The next hop is not available, try again later"),
        ("DATA", None, 451, "4.4.2 The next hop is not available, try again later"),
        (".", "554 5.6.0 Spam", 554, "5.6.0 Spam"),
        (".", "452 4.3.1 Full", 452, "4.3.1 Full"),
        (".", "421 4.3.2 Closing", 451, "4.3.2 Closing"),
        (".", None, 451, "4.4.2 The next hop is not available, try again later"),
        (".", "what", 451, "4.5.0 The next hop is not available, try again later"),
    ],
)
def test_a_refusal_of_the_next_hop_is_the_clients_and_everything_else_is_451(
    run, at, answer, code, text
):
    async def test():
        async with backend() as hop, client_of(relay(hop)) as client:
            hop.answers[at] = answer
            reply = await offer(client)
            assert (reply.code, reply.text) == (code, text)
            # The session goes on, and the next message is taken.
            hop.answers.clear()
            await client.command("RSET")
            assert (await offer(client)).code == 250

    run(test())


@pytest.mark.parametrize(
    ("at", "answer"),
    [
        ("EHLO", "550 5.7.1 Not you"),
        ("EHLO", None),
        ("EHLO", "hello"),
        ("HELO", "550 no"),
    ],
)
def test_a_next_hop_that_cannot_be_used_is_451(run, at, answer):
    async def test():
        async with backend() as hop:
            hop.answers[at] = answer
            hop.answers["EHLO"] = answer if at == "EHLO" else "502 5.5.1 What"
            hop.answers["HELO"] = answer
            async with client_of(relay(hop)) as client:
                reply = await client.command("MAIL FROM:<a@example.org>")
                assert reply.code == 451

    run(test())


@pytest.mark.parametrize("greeting", ["554 5.7.1 Go away", "421 Busy", "SSH-2.0", None])
def test_a_greeting_that_is_none_is_451(run, greeting):
    async def test():
        async with backend() as hop:
            hop.greeting = greeting
            async with client_of(relay(hop)) as client:
                assert (await client.command("MAIL FROM:<a@example.org>")).code == 451

    run(test())


def test_nobody_there_is_451(run):
    async def test():
        async with backend() as hop:
            address = hop.address
        async with client_of(relay(address, "unix:/nonexistent/socket")) as client:
            reply = await client.command("MAIL FROM:<a@example.org>")
            assert (reply.code, reply.text[:5]) == (451, "4.4.1")

    run(test())


def test_a_server_without_ehlo_is_greeted_with_helo(run):
    async def test():
        async with backend() as hop:
            hop.answers["EHLO"] = "502 5.5.1 What"
            async with client_of(relay(hop)) as client:
                assert (await offer(client)).code == 250
            assert "MAIL FROM:<a@example.org>" in hop.said

    run(test())


@pytest.mark.parametrize("phase", ["greeting", "command", "data", "end"])
def test_a_silent_next_hop_costs_its_phases_time_and_451(run, phase):
    async def test():
        timeouts = Timeouts(**{phase: 0.1})
        async with backend() as hop:
            if phase == "greeting":
                hop.greeting = ""
            at = {"command": "MAIL", "data": "DATA", "end": "."}.get(phase)
            if at:
                hop.answers[at] = ""
            async with client_of(relay(hop, timeouts=timeouts)) as client:
                reply = await offer(client)
                assert reply.code == 451

    run(test())


# --- connections ----------------------------------------------------------------------------------


def test_a_connection_is_used_again_and_reset_where_a_transaction_was_given_up(run):
    async def test():
        async with backend() as hop, client_of(relay(hop)) as client:
            assert (await offer(client)).code == 250
            assert (await offer(client)).code == 250
            await client.command("MAIL FROM:<x@example.org>")
            await client.command("RSET")
            assert (await offer(client)).code == 250
            assert hop.connections == 1
            one = ["MAIL", "RCPT", "DATA"]
            assert hop.verbs() == ["EHLO", *one, *one, "MAIL", "RSET", *one]

    run(test())


def test_a_connection_that_died_while_it_was_idle_costs_nothing(run):
    async def test():
        async with backend() as hop, client_of(relay(hop)) as client:
            for _ in range(3):
                assert (await offer(client)).code == 250
                hop.drop_all()
            assert hop.connections == 3

    run(test())


def test_a_transaction_outlives_its_connection_until_the_message_begins(run):
    async def test():
        async with backend() as hop, client_of(relay(hop)) as client:
            await client.command("MAIL FROM:<a@example.org>")
            hop.drop_all()
            assert (await client.command("RCPT TO:<b@example.com>")).code == 250
            assert (await client.command("RCPT TO:<c@example.com>")).code == 250
            hop.drop_all()
            assert (await client.command("DATA")).code == 354
            assert (await client.command("x\r\n.")).code == 250
            assert [m[1] for m in hop.messages] == [["b@example.com", "c@example.com"]]
            assert hop.connections == 3

    run(test())


def test_a_recipient_that_is_refused_on_the_second_connection_is_named(run):
    async def test():
        async with backend() as hop, client_of(relay(hop)) as client:
            await client.command("MAIL FROM:<a@example.org>")
            await client.command("RCPT TO:<b@example.com>")
            await client.command("RCPT TO:<c@example.com>")
            hop.answers["RCPT TO:<c@"] = "550 5.1.1 Gone"
            hop.drop_all()
            assert (await client.command("DATA")).code == 354
            reply = await client.command("x\r\n.")
            assert reply.code == 550
            assert "<c@example.com>" in reply.text
            assert [m[1] for m in hop.messages] == [["b@example.com"]]
            # With a 4xx nobody gets it: it comes again for both.
            hop.answers.clear()
            await client.command("MAIL FROM:<a@example.org>")
            await client.command("RCPT TO:<b@example.com>")
            await client.command("RCPT TO:<c@example.com>")
            hop.answers["RCPT TO:<c@"] = "452 4.2.2 Full"
            hop.drop_all()
            assert (await client.command("DATA")).code == 354
            reply = await client.command("x\r\n.")
            assert (reply.code, reply.text) == (452, "4.2.2 Full")
            assert len(hop.messages) == 1

    run(test())


def test_a_client_that_goes_in_its_message_leaves_nothing_at_the_next_hop(run, until):
    async def test():
        async with backend() as hop:
            server = relay(hop)
            async with running(server) as address, await Client.connect(address) as client:
                await client.hello()
                await client.command("MAIL FROM:<a@example.org>")
                await client.command("RCPT TO:<b@example.com>")
                await client.command("DATA")
                await client.send(b"half\r\nand")
                await hop.piece(b"half\r\n")
                client.reset()
                await until(lambda: not server.sessions)
            assert hop.messages == []

    run(test())


def test_a_message_is_streamed_while_it_arrives(run):
    async def test():
        async with backend() as hop, client_of(relay(hop)) as client:
            await client.command("MAIL FROM:<a@example.org>")
            await client.command("RCPT TO:<b@example.com>")
            await client.command("DATA")
            await client.send(b"line ")
            for number in range(5):
                # The end of its last line may be that of the message.
                await client.send(b"%d\r\nline " % number)
                await hop.piece(b"line %d\r\n" % number)
            assert (await client.command("5\r\n.")).code == 250

    run(test())


def test_links_are_bounded_and_those_that_wait_are_served(run):
    async def test():
        async with backend() as hop:
            server = relay(hop, connections=2)
            async with running(server) as address:

                async def one(number):
                    async with await Client.connect(address) as client:
                        await client.hello()
                        reply = await offer(client, sender=f"s{number}@example.org")
                        await client.command("QUIT")
                        return reply.code

                assert await asyncio.gather(*map(one, range(20))) == [250] * 20
            assert hop.connections <= 3

    run(test())


def test_a_client_that_idles_in_its_transaction_keeps_no_link_from_others(run, monkeypatch):
    monkeypatch.setattr(pool, "LEND_SECONDS", 0.05)
    monkeypatch.setattr(pool, "LOOK_SECONDS", 0.02)

    async def test():
        async with backend() as hop:
            server = relay(hop, connections=1)
            async with (
                running(server) as address,
                await Client.connect(address) as idle,
                await Client.connect(address) as busy,
            ):
                await idle.hello()
                await idle.command("MAIL FROM:<idle@example.org>")
                await idle.command("RCPT TO:<b@example.com>")
                await busy.hello()
                assert (await offer(busy)).code == 250
                assert (await idle.command("DATA")).code == 354
                assert (await idle.command("x\r\n.")).code == 250
            assert [m[0] for m in hop.messages] == ["a@example.org", "idle@example.org"]

    run(test())


# --- several servers ------------------------------------------------------------------------------


def test_the_first_server_that_works_is_asked(run):
    async def test():
        async with backend() as first, backend() as second:
            server = relay(first, second)
            async with client_of(server) as client:
                assert (await offer(client)).code == 250
                assert (len(first.messages), len(second.messages)) == (1, 0)
                await first.stop()
                assert (await offer(client)).code == 250
                assert (await offer(client)).code == 250
                assert (len(first.messages), len(second.messages)) == (1, 2)
            await first.start()

    run(test())


def test_a_server_that_comes_back_is_found_by_a_probe(run, monkeypatch, until):
    monkeypatch.setattr(servers, "FIRST_REST", 0.05)

    async def test():
        async with backend() as first, backend() as second:
            first.greeting = "421 Busy"
            async with client_of(relay(first, second)) as client:
                assert (await offer(client)).code == 250
                first.greeting = "220 back"

                async def served():
                    assert (await offer(client)).code == 250
                    return bool(first.messages)

                async with asyncio.timeout(10):
                    while not await served():  # noqa: ASYNC110 - each look is a message
                        await asyncio.sleep(0.02)

    run(test())


def test_pauses_grow_and_one_trial_ends_them():
    server = servers.Server("127.0.0.1:25")
    pauses = []
    now = 0.0
    for _ in range(9):
        server.failed(server.trying(), now, "x")
        begin = now
        while not server.may_be_asked(now):
            now += 0.5
        pauses.append(now - begin)
        attempt = server.trying()
        assert not server.may_be_asked(now)
        server.given_up()
        assert attempt == server.failures
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    server.worked(Offers(), verified=False)
    assert server.may_be_asked(now)


def test_of_failures_at_the_same_time_one_counts():
    server = servers.Server("127.0.0.1:25")
    attempts = [server.trying() for _ in range(5)]
    for attempt in attempts:
        server.failed(attempt, 0.0, "x")
    assert server.failures == 1


# --- a next hop that takes nothing ----------------------------------------------------------------


def test_a_next_hop_that_takes_no_octets_holds_the_client_back(run):
    async def test():
        async with backend() as hop:
            server = relay(hop, message_size=1 << 30)
            async with running(server) as address, await Client.connect(address) as client:
                await client.hello()
                await client.command("MAIL FROM:<a@example.org>")
                await client.command("RCPT TO:<b@example.com>")
                hop.reading.clear()
                await client.command("DATA")
                client.seconds = 1.0
                sent = 0
                with pytest.raises(TimeoutError):
                    while sent < 200 << 20:
                        await client.send((b"x" * 70 + b"\r\n") * 1000)
                        sent += 72_000
                # The sockets of three programs hold something too.
                assert sent < 40 << 20
                (link,) = server.delivery.lifespan.__self__.pool._lent
                assert link.transport.get_write_buffer_size() < 1 << 20
                client.reset()

    run(test())


def test_a_next_hop_that_takes_no_octets_for_too_long_is_451(run):
    async def test():
        async with backend() as hop:
            server = relay(hop, message_size=1 << 30, timeouts=Timeouts(block=0.2))
            async with running(server) as address, await Client.connect(address) as client:
                await client.hello()
                await client.command("MAIL FROM:<a@example.org>")
                await client.command("RCPT TO:<b@example.com>")
                hop.reading.clear()
                await client.command("DATA")
                for _ in range(400):
                    await client.send((b"x" * 70 + b"\r\n") * 1000)
                assert (await client.command(".")).code == 451
                await client.command("QUIT")

    run(test())
