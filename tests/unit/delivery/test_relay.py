"""What a relay's client is answered, and when its next hop is asked."""

from __future__ import annotations

from next_hops import backend, client_of, relay

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
