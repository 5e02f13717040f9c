"""Asking a server for a recipient: against real servers of this library's."""

from __future__ import annotations

import asyncio
import socket

import pytest

from preforkmx import Server, SMTPError
from preforkmx.delivery.callout import Callout
from preforkmx.middleware.call_forward import BackEndAnswer, BackEndAway, CallForward, Verdict
from preforkmx.middleware.recipients import recipients
from preforkmx.testing import Client, Recorder, running

REPLIES = {
    "joe": None,
    "unknown": SMTPError(550, "No such user", enhanced=(5, 1, 1)),
    "moved": SMTPError(551, "Not local", enhanced=(5, 1, 6)),
    "sender": SMTPError(550, "Bad sender", enhanced=(5, 1, 7)),
    "domain": SMTPError(553, "Sender domain not found", enhanced=(5, 1, 8)),
    "full": SMTPError(552, "Mailbox full", enhanced=(5, 2, 2)),
    "relay": SMTPError(550, "Relaying denied", enhanced=(5, 7, 1)),
    "later": SMTPError(450, "Greylisted", enhanced=(4, 7, 1)),
    "closing": SMTPError(421, "Busy", enhanced=(4, 3, 2)),
    "auth": SMTPError(530, "Authentication required", enhanced=(5, 7, 0)),
}


class Judge(Recorder):
    """Answers RCPT by the name of the mailbox."""

    def __init__(self):
        super().__init__()

        async def check(ctx, peer, address):
            await self._check_recipient(ctx, peer, address)
            error = REPLIES.get(address.partition("@")[0], REPLIES["unknown"])
            if error is not None:
                raise error

        object.__setattr__(self, "check_recipient", check)

    def asked(self, phase="check_recipient"):
        return [call.arguments[0] for call in self.calls if call.phase == phase]


def callout(servers, **options):
    return Callout(servers, hostname="mx.example.com", lmtp=False, deadline=5, **options)


def answers(*addresses, judge=None):
    judge = judge or Judge()

    async def scenario():
        server = Server(hostname="mail.example.com", handler=judge, smtputf8=True)
        async with running(server) as address:
            asker = callout([f"{address.host}:{address.port}"])
            async with asker.lifespan():
                return [await answer(asker, each) for each in addresses]

    return asyncio.run(scenario())


async def answer(asker, address):
    try:
        return await asker.ask(address)
    except BackEndAway as error:
        return str(error)


def test_replies_about_the_address_count_and_others_do_not():
    judge = Judge()
    names = ["joe", "unknown", "moved", "relay", "later", "auth", "closing", "joe"]
    found = answers(*(f"{name}@example.com" for name in names), judge=judge)
    assert found[:3] == [
        BackEndAnswer(Verdict.KNOWN),
        BackEndAnswer(Verdict.UNKNOWN),
        BackEndAnswer(Verdict.UNKNOWN),
    ]
    assert found[3] == "RCPT is refused: 550 5.7.1 Relaying denied"
    assert found[4] == "RCPT is refused: 450 4.7.1 Greylisted"
    assert "530 5.7.0" in found[5]
    assert "421 4.3.2" in found[6]
    assert found[7] == BackEndAnswer(Verdict.KNOWN)
    assert set(judge.asked("check_sender")) == {""}
    assert judge.messages == []


def test_a_refusal_of_the_senders_address_says_nothing_of_the_recipient():
    assert answers("sender@example.com", "domain@example.com") == [
        "RCPT is refused: 550 5.1.7 Bad sender",
        "RCPT is refused: 553 5.1.8 Sender domain not found",
    ]


def test_a_mailbox_that_takes_no_mail_is_answered_as_the_server_does():
    (found,) = answers("full@example.com")
    assert found.verdict is Verdict.REFUSED
    assert (found.refusal.code, found.refusal.enhanced) == (552, (5, 2, 2))
    assert found.refusal.message == "Mailbox full"


def test_many_questions_go_over_one_connection():
    judge = Judge()
    answers(*["joe@example.com", "unknown@example.com", "full@example.com"] * 5, judge=judge)
    assert judge.phases.count("check_connection") == 1
    assert len(judge.asked()) == 15


def test_an_address_in_utf8_is_asked_for():
    judge = Judge()
    assert answers("grå@example.com", judge=judge) == [BackEndAnswer(Verdict.UNKNOWN)]
    assert judge.asked() == ["grå@example.com"]


def test_a_server_that_refuses_the_null_reverse_path_says_nothing_of_recipients():
    judge = Judge()
    judge.refuse("check_sender", SMTPError(550, "No bounces", enhanced=(5, 7, 1)))
    assert answers("joe@example.com", judge=judge) == [
        "MAIL FROM:<> is refused: 550 5.7.1 No bounces"
    ]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def test_where_nobody_listens_there_is_no_answer():
    async def scenario():
        asker = callout([f"127.0.0.1:{free_port()}"])
        async with asker.lifespan():
            with pytest.raises(BackEndAway):
                await asker.ask("joe@example.com")

    asyncio.run(scenario())


def test_the_next_server_is_asked_where_the_first_is_away():
    async def scenario():
        server = Server(hostname="mail.example.com", handler=Judge())
        async with running(server) as address:
            asker = callout([f"127.0.0.1:{free_port()}", f"{address.host}:{address.port}"])
            async with asker.lifespan():
                assert await asker.ask("joe@example.com") == BackEndAnswer(Verdict.KNOWN)

    asyncio.run(scenario())


def test_a_server_that_says_nothing_costs_the_deadline():
    async def scenario():
        with socket.create_server(("127.0.0.1", 0)) as silent:
            asker = Callout(
                [f"127.0.0.1:{silent.getsockname()[1]}"],
                hostname="mx.example.com",
                lmtp=False,
                deadline=0.2,
            )
            async with asker.lifespan():
                with pytest.raises(BackEndAway):
                    await asker.ask("joe@example.com")

    asyncio.run(scenario())


def test_an_lmtp_server_on_a_unix_socket_is_asked(tmp_path):
    judge = Judge()
    path = tmp_path / "lmtp"

    async def scenario():
        server = Server(hostname="mail.example.com", handler=judge)
        server.listen(f"unix:{path}", protocol="lmtp", tls="off")
        async with server:
            asker = Callout([f"unix:{path}"], hostname="mx.example.com", lmtp=True)
            async with asker.lifespan():
                return [await asker.ask(f"{name}@example.com") for name in ("joe", "jo")]

    assert [found.verdict for found in asyncio.run(scenario())] == [
        Verdict.KNOWN,
        Verdict.UNKNOWN,
    ]
    assert judge.calls[-1].peer.protocol == "LMTP"


def test_servers_without_an_address_are_refused():
    for servers in ([], ["example.com"], ["unix:relative"]):
        with pytest.raises(ValueError, match=r"server|is not"):
            callout(servers)


def test_a_session_is_answered_by_the_back_end_and_while_that_is_away_with_451():
    judge, recorder = Judge(), Recorder()

    async def scenario():
        port = free_port()
        asker = callout([f"127.0.0.1:{port}"])
        source = CallForward(asker, deadline=5)
        front = Server(hostname="mx.example.com", handler=recorder)
        front.use(recipients([source], hostname="mx.example.com"))
        async with running(front) as address, await Client.connect(address) as client:
            await client.hello()
            await client.command("MAIL FROM:<>")
            away = await client.command("RCPT TO:<joe@example.com>")
            back = Server(hostname="mail.example.com", handler=judge)
            back.listen(f"127.0.0.1:{port}")
            async with back:
                # Its rest is a second; whoever asks after that finds it.
                for _ in range(200):
                    reply = await client.command("RCPT TO:<joe@example.com>")
                    if reply.code == 250:
                        break
                    await asyncio.sleep(0.05)
                found = [
                    (await client.command(f"RCPT TO:<{name}@example.com>")).text
                    for name in ("jo", "full")
                ]
            # It is gone, and what it said is remembered.
            again = await client.command("RCPT TO:<joe@example.com>")
            return away.text, found, again.code

    away, found, again = asyncio.run(scenario())
    assert away == "4.4.1 Recipients cannot be looked up at the moment"
    assert found == ["5.1.1 No such recipient here", "5.2.2 Mailbox full"]
    assert again == 250
