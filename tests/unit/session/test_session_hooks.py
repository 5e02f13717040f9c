"""Hooks: when they run, what they are given, and what their verdicts do."""

from __future__ import annotations

import asyncio
import logging

import pytest

from preforkmx import Context, Middleware, Server, SMTPError, Verification
from preforkmx.testing import Client, Recorder, running

PHASES = ("check_connection", "check_helo", "check_sender", "check_recipient", "handler")


def note(log, label, *, refuse=None):
    """Return a hook for any phase that notes `label`."""

    async def hook(ctx, peer, *arguments):
        log.append(label)
        if refuse is not None:
            raise refuse

    return hook


async def through_all_phases(client):
    assert (await client.reply()).code == 220
    assert (await client.command("EHLO client.example")).code == 250
    assert (await client.deliver(b"Hello\r\n", sender="a@example.org")).code == 250
    assert (await client.command("QUIT")).code == 221


@pytest.mark.parametrize("phase", [*PHASES, "reset", "disconnect"])
def test_the_hooks_of_a_phase_run_in_the_order_of_use(run, phase):
    log = []
    recorder = Recorder()
    server = Server(hostname="mx.example.com")
    for label in "abc":
        server.use(Middleware(**{phase: note(log, label)}))
    server.use(recorder)

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await through_all_phases(client)
            await recorder.happened("disconnect")

    run(test())
    assert log == ["a", "b", "c"]


def test_every_phase_is_asked_once_and_in_the_order_of_the_session(run):
    recorder = Recorder()
    server = Server(hostname="mx.example.com", handler=recorder)

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await through_all_phases(client)
            await recorder.happened("disconnect")

    run(test())
    assert recorder.phases == [*PHASES, "reset", "disconnect"]
    assert [call.arguments for call in recorder.calls][:4] == [
        (),
        ("client.example",),
        ("a@example.org",),
        ("postmaster@mx.example.com",),
    ]


@pytest.mark.parametrize(
    ("phase", "commands"),
    [
        ("check_connection", []),
        ("check_helo", ["EHLO x"]),
        ("check_sender", ["EHLO x", "MAIL FROM:<>"]),
        ("check_recipient", ["EHLO x", "MAIL FROM:<>", "RCPT TO:<a@example.com>"]),
        ("handler", ["EHLO x", "MAIL FROM:<>", "RCPT TO:<a@example.com>", "DATA", "."]),
        ("verify", ["EHLO x", "VRFY a"]),
    ],
)
def test_the_first_smtp_error_ends_its_phase_and_is_the_reply(run, phase, commands):
    log = []
    refusal = SMTPError(554, "Not today", enhanced=(5, 7, 1))
    server = Server()
    server.use(
        Middleware(**{phase: note(log, "first")}),
        Middleware(**{phase: note(log, "second", refuse=refusal)}),
        Middleware(**{phase: note(log, "third")}),
    )

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            reply = await client.reply()
            for command in commands:
                assert reply.code < 400
                reply = await client.command(command)
            return reply

    reply = run(test())
    assert log == ["first", "second"]
    assert reply.code == 554
    # The greeting and the reply to EHLO carry no enhanced code (RFC 2034 section 4).
    assert reply.lines[0].endswith("Not today")


def test_a_refused_connection_is_closed_after_its_reply(run):
    recorder = Recorder()
    recorder.refuse("check_connection", SMTPError(554, "No service here"))
    server = Server(handler=recorder)

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            octets = await client.rest()
            await client.close()
            (call,) = await recorder.happened("disconnect")
            return octets, call

    octets, disconnect = run(test())
    assert octets == b"554 No service here\r\n"
    assert disconnect.arguments == (None,)
    assert server.counters.connections_refused == 1


def test_a_refused_helo_leaves_the_peer_as_it_was(run):
    recorder = Recorder()
    server = Server()
    server.use(recorder)

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello("first.example")
            recorder.refuse("check_helo", SMTPError(550, "Not you"), times=1)
            assert (await client.command("HELO second.example")).code == 550
            assert (await client.command("MAIL FROM:<>")).code == 250

    run(test())
    first, second = recorder.of("check_helo")
    # The check sees the name of this HELO, and what comes after sees the accepted one.
    assert (first.peer.helo_name, second.peer.helo_name) == ("first.example", "second.example")
    (mail,) = recorder.of("check_sender")
    assert (mail.peer.helo_name, mail.peer.protocol) == ("first.example", "ESMTP")


def test_a_refused_sender_begins_no_transaction(run):
    recorder = Recorder()
    server = Server(handler=recorder)
    recorder.refuse("check_sender", SMTPError(550, "Not you"), times=1)

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            assert (await client.command("MAIL FROM:<bad@example.org>")).code == 550
            assert (await client.command("RCPT TO:<a@example.com>")).code == 503
            assert (await client.deliver(b"", sender="good@example.org")).code == 250

    run(test())
    (message,) = recorder.messages
    assert message.sender == "good@example.org"


def test_a_refused_recipient_is_not_in_the_envelope(run):
    recorder = Recorder()
    server = Server(handler=recorder)

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            assert (await client.command("MAIL FROM:<>")).code == 250
            assert (await client.command("RCPT TO:<a@example.com>")).code == 250
            recorder.refuse("check_recipient", SMTPError(550, "Unknown"), times=1)
            assert (await client.command("RCPT TO:<b@example.com>")).code == 550
            assert (await client.command("RCPT TO:<c@example.com>")).code == 250
            await client.command("DATA")
            assert (await client.command(".")).code == 250

    run(test())
    assert recorder.messages[0].recipients == ("a@example.com", "c@example.com")


def test_a_message_of_which_no_recipient_was_taken_is_refused_with_554(run):
    recorder = Recorder()
    recorder.refuse("check_recipient", SMTPError(550, "Unknown"))
    server = Server(handler=recorder)

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            await client.command("MAIL FROM:<>")
            await client.command("RCPT TO:<b@example.com>")
            return await client.command("DATA")

    assert run(test()).code == 554


# --- the Context --------------------------------------------------------------------------------


def test_the_context_that_a_hook_returns_is_the_next_hooks(run):
    seen = {}

    def remember(phase):
        async def hook(ctx, peer, *arguments):
            seen[phase] = ctx.value("phases", ())
            return ctx.with_value("phases", (*ctx.value("phases", ()), phase))

        return hook

    recorder = Recorder()
    server = Server()
    phases = (*PHASES, "reset")
    server.use(Middleware(**{phase: remember(phase) for phase in phases}), recorder)

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await through_all_phases(client)
            return await recorder.happened("disconnect")

    (disconnect,) = run(test())
    for i, phase in enumerate(phases):
        assert seen[phase] == phases[:i]
    assert disconnect.context.value("phases") == phases


def test_a_hook_that_returns_none_leaves_the_context(run):
    async def put(ctx, peer):
        return ctx.with_value("key", "value")

    async def nothing(ctx, peer, name):
        return None

    recorder = Recorder()
    server = Server()
    server.use(Middleware(check_connection=put, check_helo=nothing), recorder)

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()

    run(test())
    assert recorder.of("check_helo")[0].context.value("key") == "value"


def test_the_sender_is_in_the_context_from_mail_to_the_end_of_its_transaction(run):
    recorder = Recorder()
    server = Server(handler=recorder)

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await through_all_phases(client)
            await recorder.happened("disconnect")

    run(test())
    senders = {call.phase: call.context.sender for call in recorder.calls}
    assert senders == {
        "check_connection": None,
        "check_helo": None,
        "check_sender": "a@example.org",
        "check_recipient": "a@example.org",
        "handler": "a@example.org",
        "reset": None,
        "disconnect": None,
    }


def test_the_null_reverse_path_is_an_empty_sender_and_not_none(run):
    recorder = Recorder()
    server = Server(handler=recorder)

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            await client.command("MAIL FROM:<>")

    run(test())
    (call,) = recorder.of("check_sender")
    assert (call.context.sender, call.arguments) == ("", ("",))


def test_each_session_starts_from_the_base_context_and_conn_context(run):
    recorder = Recorder()

    def conn_context(ctx, peer):
        return ctx.with_value("client", (ctx.value("site"), peer.port))

    server = Server(base_context=Context({"site": "here"}), conn_context=conn_context)
    server.use(recorder)

    async def test():
        async with running(server) as address:
            async with await Client.connect(address) as client:
                await client.reply()
                port = client.writer.get_extra_info("sockname")[1]
            async with await Client.connect(address) as client:
                await client.reply()
        return port

    port = run(test())
    first, second = recorder.of("check_connection")
    assert first.context.value("client") == ("here", port)
    assert first.context.session_id != second.context.session_id
    assert first.context.session_id


def test_the_context_s_logger_puts_the_session_on_its_records(run, caplog):
    ids = []

    async def say(ctx, peer):
        ids.append(ctx.session_id)
        ctx.logger.warning("seen")

    server = Server()
    server.use(Middleware(check_connection=say))

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.reply()

    run(test())
    (record,) = [record for record in caplog.records if record.message == "seen"]
    assert record.session == ids[0]
    assert record.name == "preforkmx.session"


def test_closed_is_set_when_the_client_is_gone_while_a_handler_works(run):
    outcome = []
    reading = asyncio.Event()

    async def handler(ctx, peer, envelope):
        await envelope.data.read_all(1000)
        assert not ctx.closed
        reading.set()
        async with asyncio.timeout(10):
            await ctx.closed
        outcome.append(bool(ctx.closed))

    server = Server(handler=handler)
    recorder = Recorder()
    server.use(recorder)

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            sending = asyncio.ensure_future(client.deliver(b"Hello\r\n"))
            await reading.wait()
            client.reset()
            await recorder.happened("disconnect")
            with pytest.raises((EOFError, ConnectionError)):
                await sending

    run(test())
    assert outcome == [True]


# --- the Peer -----------------------------------------------------------------------------------


def test_a_peer_is_a_value_that_is_replaced_as_the_session_learns(run):
    recorder = Recorder(authenticate=True)
    server = Server(hostname="mx.example.com", allow_insecure_auth=True, handler=recorder)

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            port = client.writer.get_extra_info("sockname")[1]
            await client.hello()
            assert (await client.command("AUTH PLAIN AGpvZQBzZWNyZXQ=")).code == 235
            assert (await client.deliver(b"")).code == 250
        return address, port

    address, port = run(test())
    at = {call.phase: call.peer for call in recorder.calls}
    first = at["check_connection"]
    assert (first.host, first.port) == ("127.0.0.1", port)
    assert (first.server_name, first.listener) == ("mx.example.com", f"127.0.0.1:{address.port}")
    assert (first.helo_name, first.protocol, first.username, first.tls) == ("", "", None, None)
    assert (at["check_helo"].helo_name, at["check_helo"].protocol) == ("client.example", "ESMTP")
    assert at["authenticate"].username is None
    assert (at["check_sender"].username, at["check_sender"].protocol) == ("joe", "ESMTPA")


def test_helo_is_plain_smtp(run):
    recorder = Recorder()
    server = Server(handler=recorder)

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.reply()
            return await client.command("HELO old.example")

    reply = run(test())
    assert len(reply.lines) == 1
    assert recorder.of("check_helo")[0].peer.protocol == "SMTP"


# --- AUTH and VRFY --------------------------------------------------------------------------------


def test_authenticate_is_given_user_and_password_and_its_refusal_is_the_reply(run):
    recorder = Recorder(authenticate=True)
    recorder.refuse("authenticate", SMTPError(535, "No", enhanced=(5, 7, 8)), times=1)
    server = Server(allow_insecure_auth=True, handler=recorder)

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            hello = await client.hello()
            assert "AUTH PLAIN LOGIN" in hello.lines
            refused = await client.command("AUTH PLAIN AGpvZQBzZWNyZXQ=")
            assert (refused.code, refused.text) == (535, "5.7.8 No")
            assert (await client.command("AUTH LOGIN")).code == 334
            assert (await client.command("am9l")).code == 334
            assert (await client.command("c2VjcmV0")).code == 235

    run(test())
    assert [call.arguments for call in recorder.of("authenticate")] == [("joe", "secret")] * 2
    assert (server.counters.auth_failures, server.counters.auth_successes) == (1, 1)


def test_auth_is_not_offered_without_anybody_to_ask(run):
    server = Server(allow_insecure_auth=True)

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            hello = await client.hello()
            return hello, await client.command("AUTH PLAIN AGpvZQBzZWNyZXQ=")

    hello, reply = run(test())
    assert not any(line.startswith("AUTH") for line in hello.lines)
    assert reply.code == 502


def test_the_first_verify_hook_that_names_a_mailbox_answers_vrfy(run):
    async def cannot_say(ctx, peer, text):
        return None

    async def names(ctx, peer, text):
        return Verification(f"{text}@example.com") if text == "joe" else None

    server = Server()
    server.use(Middleware(verify=cannot_say), Middleware(verify=names))

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            return await client.command("VRFY joe"), await client.command("VRFY jane")

    known, unknown = run(test())
    assert (known.code, known.text) == (250, "2.1.5 <joe@example.com>")
    assert unknown.code == 252


# --- hooks that crash -------------------------------------------------------------------------------

SECRET = "the-password-of-the-database"


class VeryPrivateError(Exception):
    pass


async def crash(ctx, peer, *arguments):
    raise VeryPrivateError(SECRET)


COMMANDS_TO = {
    "check_connection": [],
    "check_helo": ["EHLO x"],
    "authenticate": ["EHLO x", "AUTH PLAIN AGpvZQBzZWNyZXQ="],
    "verify": ["EHLO x", "VRFY a"],
    "check_sender": ["EHLO x", "MAIL FROM:<>"],
    "check_recipient": ["EHLO x", "MAIL FROM:<>", "RCPT TO:<a@example.com>"],
    "handler": ["EHLO x", "MAIL FROM:<>", "RCPT TO:<a@example.com>", "DATA", "."],
    "reset": ["EHLO x", "MAIL FROM:<>", "RSET"],
}


async def converse(client, commands):
    """Say `commands`; return all that the server said, up to its close."""
    said = []
    for command in (None, *commands):
        if command is not None:
            await client.send(command.encode() + b"\r\n")
        said.append(await client.reply())
    return said, await client.rest()


@pytest.mark.parametrize("phase", list(COMMANDS_TO))
def test_a_hook_that_crashes_ends_only_its_session(run, phase, caplog):
    recorder = Recorder()
    server = Server(allow_insecure_auth=True)
    server.use(Middleware(**{phase: crash}), recorder)

    async def test():
        async with running(server) as address, await Client.connect(address) as other:
            if phase != "check_connection":
                await other.hello() if phase != "check_helo" else await other.reply()
            async with await Client.connect(address) as client:
                said, rest = await converse(client, COMMANDS_TO[phase])
            if phase != "check_connection":
                assert (await other.command("NOOP")).code == 250
            (call, *_) = await recorder.happened("disconnect")
            return said, rest, call

    said, rest, disconnect = run(test())
    # Its reply is the seed's 502, the last there is, and says nothing of what happened.
    assert said[-1].code == 502
    everything = "\n".join(reply.text for reply in said) + rest.decode()
    assert SECRET not in everything
    assert "VeryPrivateError" not in everything
    # The log has all of it, and the disconnect hooks get the exception.
    records = [record for record in caplog.records if record.exc_info]
    assert records
    assert all(record.exc_info[0] is VeryPrivateError for record in records)
    assert records[0].session == disconnect.context.session_id
    assert "in crash" in logging.Formatter().formatException(records[0].exc_info)
    assert isinstance(disconnect.arguments[0], VeryPrivateError)
    assert server.counters.hook_failures == len(records)


@pytest.mark.parametrize("phase", ["check_sender", "handler"])
def test_hook_failure_is_what_the_client_of_a_crashed_hook_is_told(run, phase):
    failure = SMTPError(451, "Try again", enhanced=(4, 3, 0))
    server = Server(hook_failure=failure)
    server.use(Middleware(**{phase: crash}))

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            return await converse(client, COMMANDS_TO[phase])

    said, rest = run(test())
    assert (said[-1].code, said[-1].text) == (451, "4.3.0 Try again")
    assert rest == b""


@pytest.mark.parametrize("result", [True, False, "a text"])
def test_a_hook_that_returns_something_else_than_a_context_has_crashed(run, result):
    async def wrong(ctx, peer, user, password):
        return result

    server = Server(allow_insecure_auth=True)
    server.use(Middleware(authenticate=wrong))

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            return await converse(client, COMMANDS_TO["authenticate"])

    said, _ = run(test())
    assert said[-1].code == 502


class Quitter(BaseException):
    """What a library may raise that means well: SystemExit, or pytest's own."""


@pytest.mark.parametrize("error", [SystemExit(1), Quitter(), asyncio.CancelledError()], ids=repr)
@pytest.mark.parametrize("phase", ["check_sender", "handler", "disconnect"])
def test_a_hook_that_raises_no_exception_but_a_base_exception_has_crashed_too(run, phase, error):
    recorder = Recorder()
    server = Server()

    async def leave(ctx, peer, *arguments):
        raise error

    server.use(Middleware(**{phase: leave}), recorder)

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            said, _ = await converse(client, COMMANDS_TO.get(phase, ["QUIT"]))
            await recorder.happened("disconnect")
            async with await Client.connect(address) as another:
                assert (await another.reply()).code == 220
            return said

    said = run(test())
    assert said[-1].code == (221 if phase == "disconnect" else 502)
    assert server.counters.hook_failures >= 1


def test_conn_context_that_crashes_ends_the_session_without_a_word_about_it(run, caplog):
    def broken(ctx, peer):
        raise VeryPrivateError(SECRET)

    recorder = Recorder()
    server = Server(conn_context=broken)
    server.use(recorder)

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            return await client.rest()

    octets = run(test())
    assert octets.startswith(b"421 ")
    assert SECRET.encode() not in octets
    assert any(record.exc_info for record in caplog.records)
    # Its check_connection never began: nobody has anything to give back.
    assert recorder.phases == []
