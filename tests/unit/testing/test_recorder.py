"""The Recorder: what it remembers, and what it refuses when told to."""

from __future__ import annotations

import asyncio
import smtplib
import threading

import pytest

from preforkmx import Middleware, Server, SMTPError, whole
from preforkmx.testing import Client, Recorder, ThreadedServer, running


def converse(run, server, dialogue):
    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            return await dialogue(client)

    return run(test())


def test_it_is_a_middleware_and_starts_empty():
    recorder = Recorder()
    assert isinstance(recorder, Middleware)
    assert (recorder.calls, recorder.messages, recorder.phases) == ([], [], [])
    assert repr(recorder) == "<Recorder 0 calls, 0 messages>"


def test_two_recorders_are_not_the_same():
    first, second = Recorder(), Recorder()
    assert first != second
    assert len({first, second}) == 2


def test_it_records_phase_peer_arguments_and_context(run):
    recorder = Recorder()

    async def dialogue(client):
        await client.command("VRFY joe")
        await client.command("QUIT")

    server = Server(handler=recorder)
    converse(run, server, dialogue)
    assert recorder.phases == ["check_connection", "check_helo", "verify", "disconnect"]
    (helo,) = recorder.of("check_helo")
    assert helo.arguments == ("client.example",)
    assert helo.peer.host == "127.0.0.1"
    assert helo.context.session_id == recorder.calls[0].context.session_id


def test_a_message_is_recorded_whole_with_its_transaction(run):
    recorder = Recorder()

    async def dialogue(client):
        octets = b"Subject: x\r\n\r\n.dots\r\n" + b"x" * 300_000 + b"\r\n"
        reply = await client.deliver(
            octets, sender="a@example.org", recipients=["b@example.com", "c@example.com"]
        )
        return octets, reply

    octets, reply = converse(run, Server(handler=recorder), dialogue)
    (message,) = recorder.messages
    assert message.octets == octets
    assert message.sender == "a@example.org"
    assert message.recipients == ("b@example.com", "c@example.com")
    assert message.id in reply.text
    assert message.context.sender == "a@example.org"


def test_among_other_middleware_it_hands_the_message_on(run):
    before, after = Recorder(), Recorder()

    async def shout(ctx, peer, envelope):
        envelope.data = whole((await envelope.data.read_all(100)).upper())

    async def dialogue(client):
        assert (await client.deliver(b"hello\r\n")).code == 250

    server = Server(handler=after)
    server.use(before, Middleware(handler=shout))
    converse(run, server, dialogue)
    assert before.messages[0].octets == b"hello\r\n"
    assert after.messages[0].octets == b"HELLO\r\n"


def test_a_message_that_is_aborted_is_a_call_and_no_message(run):
    recorder = Recorder()

    async def dialogue(client):
        for command in ("MAIL FROM:<>", "RCPT TO:<a@example.com>", "DATA"):
            await client.command(command)
        await client.send(b"half")
        await recorder.happened("handler")

    converse(run, Server(handler=recorder), dialogue)
    assert len(recorder.of("handler")) == 1
    assert recorder.messages == []


def test_a_message_that_is_too_large_to_keep_is_refused(run):
    recorder = Recorder(message_size=10)

    async def dialogue(client):
        return (await client.deliver(b"0123456789\r\n")).code

    assert converse(run, Server(handler=recorder), dialogue) == 552
    assert recorder.messages == []


def test_a_refusal_lasts_until_it_is_taken_back(run):
    recorder = Recorder()

    async def dialogue(client):
        recorder.refuse("check_sender", SMTPError(450, "Later"))
        for _ in range(2):
            assert (await client.command("MAIL FROM:<>")).code == 450
        recorder.accept("check_sender")
        recorder.accept("check_sender")
        assert (await client.command("MAIL FROM:<>")).code == 250

    converse(run, Server(handler=recorder), dialogue)
    # What was refused was recorded too.
    assert len(recorder.of("check_sender")) == 3


def test_a_refusal_may_last_so_many_calls(run):
    recorder = Recorder()

    async def dialogue(client):
        recorder.refuse("check_sender", SMTPError(451, "Greylisted"), times=2)
        return [(await client.command("MAIL FROM:<>")).code for _ in range(3)]

    assert converse(run, Server(handler=recorder), dialogue) == [451, 451, 250]


def test_a_refused_delivery_is_no_message(run):
    recorder = Recorder()

    async def dialogue(client):
        recorder.refuse("handler", SMTPError(554, "No"))
        return (await client.deliver(b"hello\r\n")).code

    assert converse(run, Server(handler=recorder), dialogue) == 554
    assert recorder.messages == []


def test_any_other_exception_is_a_hook_that_crashes(run):
    recorder = Recorder()

    async def dialogue(client):
        recorder.refuse("check_sender", RuntimeError("a bug"))
        return (await client.command("MAIL FROM:<>")).code

    assert converse(run, Server(handler=recorder), dialogue) == 502


def test_auth_is_offered_only_by_a_recorder_that_was_told_to(run):
    async def dialogue(client):
        return (await client.command("AUTH PLAIN AGpvZQBzZWNyZXQ=")).code

    quiet, taking_part = Recorder(), Recorder(authenticate=True)
    assert converse(run, Server(handler=quiet, allow_insecure_auth=True), dialogue) == 502
    server = Server(handler=taking_part, allow_insecure_auth=True)
    assert converse(run, server, dialogue) == 235
    assert taking_part.of("authenticate")[0].arguments == ("joe", "secret")


def test_clear_forgets_calls_and_messages_and_keeps_refusals(run):
    recorder = Recorder()

    async def dialogue(client):
        await client.deliver(b"hello\r\n")
        recorder.refuse("check_sender", SMTPError(450, "Later"))
        recorder.clear()
        assert (recorder.calls, recorder.messages) == ([], [])
        assert (await client.command("MAIL FROM:<>")).code == 450

    converse(run, Server(handler=recorder), dialogue)


@pytest.mark.parametrize("method", ["refuse", "accept", "of", "wait_for"])
def test_a_phase_that_does_not_exist_is_a_typo(method):
    arguments = (SMTPError(450, "Later"),) if method == "refuse" else ()
    with pytest.raises(ValueError, match="is no phase"):
        getattr(Recorder(), method)("check_mail", *arguments)


def test_times_is_at_least_one():
    with pytest.raises(ValueError, match="1 or more"):
        Recorder().refuse("reset", SMTPError(450, "Later"), times=0)


# --- waiting ----------------------------------------------------------------------------------------


def test_a_coroutine_waits_for_what_happens_later(run):
    recorder = Recorder()

    async def dialogue(client):
        waiting = asyncio.ensure_future(recorder.happened("reset", 2))
        for expected in (False, True):
            await asyncio.sleep(0)
            assert not waiting.done()
            await client.command("RSET")
            async with asyncio.timeout(10):
                await recorder.happened("reset", 1 + expected)
        return await waiting

    assert len(converse(run, Server(handler=recorder), dialogue)) == 2
    assert recorder._waiters == []


def test_a_coroutine_waits_for_a_server_in_another_thread_too(run):
    recorder = Recorder()

    async def test(address):
        async with await Client.connect(address) as client:
            await client.reply()
        return await recorder.happened("disconnect")

    with ThreadedServer(Server(handler=recorder)) as server:
        assert len(run(test(server.address))) == 1


def test_a_wait_for_what_does_not_happen_says_so(run):
    recorder = Recorder()
    with pytest.raises(TimeoutError, match=r"0 of 1 reset within 0\.01 s"):
        run(recorder.happened("reset", seconds=0.01))
    with pytest.raises(TimeoutError, match=r"0 of 2 reset within 0\.01 s"):
        recorder.wait_for("reset", 2, seconds=0.01)
    with pytest.raises(TimeoutError, match=r"0 of 1 message within 0\.01 s"):
        recorder.wait_for_message(seconds=0.01)


def test_a_test_blocks_until_the_server_s_thread_got_there():
    recorder = Recorder()
    with ThreadedServer(Server(handler=recorder)) as server:

        def send():
            with smtplib.SMTP(*server.address) as client:
                client.sendmail("a@example.org", ["b@example.com"], b"hello\r\n")

        sender = threading.Thread(target=send)
        sender.start()
        assert recorder.wait_for_message().octets == b"hello\r\n"
        assert len(recorder.wait_for("disconnect")) == 1
        sender.join(10)
