"""STARTTLS (RFC 3207) and implicit TLS (RFC 8314)."""

from __future__ import annotations

import asyncio
import smtplib
import ssl

import pytest

from preforkmx import Middleware, Server, SMTPError
from preforkmx.testing import Client, Recorder, running

VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}


@pytest.fixture
def recorder():
    return Recorder(authenticate=True)


@pytest.fixture(params=list(VERSIONS))
def version(request, client_tls):
    """The version that the client insists on."""
    client_tls.minimum_version = client_tls.maximum_version = VERSIONS[request.param]
    return request.param


def converse(run, server, dialogue, **options):
    async def test():
        async with (
            running(server, **options) as address,
            await Client.connect(address) as client,
        ):
            return await dialogue(client)

    return run(test())


# --- STARTTLS -----------------------------------------------------------------------------------


def test_a_message_after_starttls(run, recorder, server_tls, client_tls, version):
    async def dialogue(client):
        hello = await client.hello()
        assert "STARTTLS" in hello.lines
        assert (await client.starttls(client_tls)).code == 220
        hello = await client.command("EHLO again.example")
        assert "STARTTLS" not in hello.lines
        assert "AUTH PLAIN LOGIN" in hello.lines
        assert (await client.deliver(b"Hello\r\n" * 100_000)).code == 250
        assert (await client.command("QUIT")).code == 221
        assert await client.rest() == b""

    server = Server(tls=server_tls, handler=recorder)
    converse(run, server, dialogue)
    (message,) = recorder.messages
    assert message.octets == b"Hello\r\n" * 100_000
    assert message.peer.tls.version == version
    assert message.peer.tls.bits >= 128
    assert message.peer.protocol == "ESMTPS"
    assert server.counters.tls_handshakes == 1
    assert recorder.of("disconnect")[0].arguments == (None,)


def test_ehlo_sent_right_behind_the_handshake_is_answered_once(
    run, recorder, server_tls, client_tls, version
):
    async def dialogue(client):
        await client.hello()
        assert (await client.starttls(client_tls)).code == 220
        await client.send(b"EHLO one.example\r\nMAIL FROM:<>\r\nRCPT TO:<a@example.com>\r\n")
        return await client.replies(3)

    assert converse(run, Server(tls=server_tls, handler=recorder), dialogue) == [250, 250, 250]


class Pipe:
    """A TLS client over a plain Client: it decides which octets leave when."""

    def __init__(self, client, context):
        self.client = client
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    async def feed(self):
        async with asyncio.timeout(10):
            octets = await self.client.reader.read(65536)
        assert octets, "the server closed"
        self.incoming.write(octets)

    async def handshake(self, behind):
        """Shake hands; send `behind` in one segment with the last flight."""
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self.client.send(self.outgoing.read())
                await self.feed()
        self.tls.write(behind)
        await self.client.send(self.outgoing.read())

    async def line(self):
        line = b""
        while not line.endswith(b"\r\n"):
            try:
                line += self.tls.read(1)
            except ssl.SSLWantReadError:
                await self.feed()
        return line


def test_ehlo_in_one_segment_with_the_end_of_the_handshake_is_answered(
    run, recorder, server_tls, client_tls, version
):
    async def dialogue(client):
        await client.hello()
        assert (await client.command("STARTTLS")).code == 220
        pipe = Pipe(client, client_tls)
        await pipe.handshake(b"EHLO again.example\r\n")
        return await pipe.line()

    server = Server(hostname="mx.example.com", tls=server_tls, handler=recorder)
    assert converse(run, server, dialogue) == b"250-mx.example.com\r\n"
    first, second = recorder.of("check_helo")
    assert first.peer.tls is None
    assert second.peer.tls.version == version
    assert second.peer.helo_name == "again.example"


def test_after_starttls_everything_learnt_before_is_forgotten(
    run, recorder, server_tls, client_tls
):
    async def at_connection(ctx, peer):
        return ctx.with_value("connection", True)

    async def at_helo(ctx, peer, name):
        return ctx.with_value("helo", name)

    async def dialogue(client):
        await client.hello("plain.example")
        assert (await client.command("AUTH PLAIN AGpvZQBzZWNyZXQ=")).code == 235
        assert (await client.starttls(client_tls)).code == 220
        # A client has to greet again.
        assert (await client.command("MAIL FROM:<>")).code == 503
        assert (await client.command("RSET")).code == 250
        assert (await client.command("EHLO tls.example")).code == 250
        assert (await client.command("AUTH PLAIN AGpvZQBzZWNyZXQ=")).code == 235

    server = Server(tls=server_tls, allow_insecure_auth=True)
    server.use(Middleware(check_connection=at_connection, check_helo=at_helo), recorder)
    converse(run, server, dialogue)
    (after,) = recorder.of("reset")
    assert after.context.value("connection") is True
    assert after.context.value("helo") is None
    assert (after.peer.helo_name, after.peer.protocol, after.peer.username) == ("", "", None)
    assert after.peer.tls is not None
    assert recorder.of("check_connection") == recorder.of("check_connection")[:1]


def test_starttls_in_a_transaction_is_refused_and_the_transaction_goes_on(
    run, recorder, server_tls
):
    async def dialogue(client):
        await client.hello()
        await client.command("MAIL FROM:<>")
        assert (await client.command("STARTTLS")).code == 503
        assert (await client.command("RCPT TO:<a@example.com>")).code == 250

    converse(run, Server(tls=server_tls, handler=recorder), dialogue)


def test_starttls_twice_is_refused(run, server_tls, client_tls):
    async def dialogue(client):
        await client.hello()
        await client.starttls(client_tls)
        await client.command("EHLO again.example")
        assert (await client.command("STARTTLS")).code == 503

    converse(run, Server(tls=server_tls), dialogue)


@pytest.mark.parametrize("tls", ["starttls", "off"])
def test_starttls_is_not_offered_without_a_context_or_where_it_is_off(run, tls, server_tls):
    async def dialogue(client):
        hello = await client.hello()
        assert "STARTTLS" not in hello.lines
        assert (await client.command("STARTTLS")).code == 502
        assert (await client.command("NOOP")).code == 250

    server = Server(tls=server_tls if tls == "off" else None)
    converse(run, server, dialogue, tls=tls)


@pytest.mark.parametrize("behind", [b"EHLO evil.example\r\n", b"RSET\r\n", b"\x16\x03\x01", b"Q"])
def test_octets_behind_starttls_in_one_flight_are_an_injection(run, recorder, server_tls, behind):
    async def dialogue(client):
        await client.hello()
        await client.send(b"STARTTLS\r\n" + behind)
        return await client.rest()

    server = Server(tls=server_tls, handler=recorder)
    assert converse(run, server, dialogue).startswith(b"554 5.5.0 ")
    assert server.counters.tls_handshakes == server.counters.tls_failures == 0
    assert len(recorder.of("check_helo")) == 1


def test_plain_octets_behind_220_are_never_commands(run, recorder, server_tls):
    async def dialogue(client):
        await client.hello()
        assert (await client.command("STARTTLS")).code == 220
        await client.send(b"EHLO evil.example\r\nMAIL FROM:<evil@example.org>\r\n")
        return await client.reader.read()

    server = Server(tls=server_tls, handler=recorder)
    said = converse(run, server, dialogue)
    # An alert of TLS, if anything; no reply.
    assert b"250" not in said
    assert server.counters.tls_failures == 1
    assert len(recorder.of("check_helo")) == 1


def test_a_failed_handshake_ends_only_its_session(run, recorder, server_tls, client_tls, caplog):
    async def test():
        async with running(server) as address:
            async with await Client.connect(address) as client:
                await client.hello()
                await client.command("STARTTLS")
                await client.send(b"rubbish\r\n" * 10)
                await client.reader.read()
            async with await Client.connect(address) as client:
                await client.hello()
                assert (await client.starttls(client_tls)).code == 220
                assert (await client.command("EHLO x")).code == 250

    server = Server(tls=server_tls, handler=recorder)
    run(test())
    # The client's mistake, not ours: nothing for the log of what goes wrong here.
    assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize("when", ["with STARTTLS", "at 220"])
def test_a_client_that_resets_around_starttls_leaves_nothing_in_the_log(
    run, recorder, server_tls, caplog, when
):
    async def test():
        async with running(server) as address:
            for _ in range(20):
                async with await Client.connect(address) as client:
                    await client.hello()
                    if when == "at 220":
                        await client.command("STARTTLS")
                    else:
                        await client.send(b"STARTTLS\r\n")
                    client.reset()
            async with asyncio.timeout(10):
                await server.wait_closed()

    server = Server(tls=server_tls, handler=recorder)
    run(test())
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    assert len(recorder.of("disconnect")) == 20


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_left_before_its_starttls_is_read_does_not_leave_a_session(
    run, recorder, server_tls, how, until
):
    asking, go_on = asyncio.Event(), asyncio.Event()

    async def slow(ctx, peer, name):
        asking.set()
        await go_on.wait()

    async def test():
        async with running(server) as address:
            async with await Client.connect(address) as client:
                await client.reply()
                await client.send(b"EHLO x\r\nSTARTTLS\r\n")
                await asking.wait()
                (session,) = server._service.sessions
                if how == "reset":
                    client.reset()
                    await until(lambda: session.lost)
                else:
                    await client.close()
                    await until(lambda: session.core.eof)
            go_on.set()
            async with asyncio.timeout(10):
                await server.wait_closed()

    server = Server(tls=server_tls)
    server.use(Middleware(check_helo=slow), recorder)
    run(test())
    (call,) = recorder.of("disconnect")
    assert call.arguments[0] is not None
    assert server.counters.tls_failures == 1


def test_a_handshake_that_its_transport_never_ends_is_ended_by_its_session(
    recorder, server_tls, monkeypatch, sweep_fast
):
    async def never(*arguments, **options):
        await asyncio.Event().wait()

    # uvloop's loop cannot be patched; the wait is the session's, and the same on both.
    monkeypatch.setattr("asyncio.base_events.BaseEventLoop.start_tls", never)
    for name in ("TLS_HANDSHAKE_SECONDS", "TLS_SHUTDOWN_SECONDS"):
        monkeypatch.setattr(f"preforkmx.session.session.{name}", 0.02)

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            assert (await client.command("STARTTLS")).code == 220
            assert await client.rest() == b""

    server = Server(tls=server_tls, handler=recorder)
    asyncio.run(test())
    (call,) = recorder.of("disconnect")
    assert isinstance(call.arguments[0], TimeoutError)


# --- what TLS is ------------------------------------------------------------------------------------


def test_the_version_is_the_session_s_and_not_that_of_the_cipher(
    run, recorder, authority, client_tls
):
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server_tls)
    # These suites are as old as TLS 1.0, and good in TLS 1.2.
    for context in (server_tls, client_tls):
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ECDHE-ECDSA-AES256-SHA:ECDHE-RSA-AES256-SHA")

    async def dialogue(client):
        await client.hello()
        await client.starttls(client_tls)
        await client.command("EHLO again.example")

    converse(run, Server(tls=server_tls, handler=recorder), dialogue)
    tls = recorder.of("check_helo")[1].peer.tls
    assert tls.cipher.endswith("AES256-SHA")
    assert (tls.version, tls.bits) == ("TLSv1.2", 256)


# --- implicit TLS -------------------------------------------------------------------------------------


def test_on_implicit_tls_check_connection_runs_after_the_handshake(
    run, recorder, server_tls, client_tls, version
):
    async def test():
        async with (
            running(server, tls="implicit") as address,
            await Client.connect(address, tls=client_tls) as client,
        ):
            hello = await client.hello()
            assert "STARTTLS" not in hello.lines
            assert (await client.deliver(b"Hello\r\n")).code == 250
            assert (await client.command("QUIT")).code == 221
            assert await client.rest() == b""

    server = Server(tls=server_tls, handler=recorder)
    run(test())
    (connection,) = recorder.of("check_connection")
    assert connection.peer.tls.version == version
    assert recorder.messages[0].peer.protocol == "ESMTPS"


def test_a_refusal_at_connect_is_readable_under_implicit_tls(run, recorder, server_tls, client_tls):
    async def test():
        async with (
            running(server, tls="implicit") as address,
            await Client.connect(address, tls=client_tls) as client,
        ):
            return await client.rest()

    recorder.refuse("check_connection", SMTPError(554, "Not here"))
    server = Server(tls=server_tls, handler=recorder)
    assert run(test()) == b"554 Not here\r\n"


def test_a_connection_too_many_on_implicit_tls_closes_silently(run, server_tls, client_tls):
    async def test():
        async with (
            running(server, tls="implicit") as address,
            await Client.connect(address, tls=client_tls) as first,
        ):
            await first.hello()
            async with await Client.connect(address) as second:
                assert await second.rest() == b""

    server = Server(tls=server_tls, max_sessions=1)
    run(test())


def test_silent_handshakes_do_not_keep_others_from_theirs(run, server_tls, client_tls):
    async def test():
        async with running(server, tls="implicit") as address:
            silent = [await Client.connect(address) for _ in range(20)]
            async with await Client.connect(address, tls=client_tls) as client:
                assert (await client.hello()).code == 250
            for client in silent:
                await client.close()

    server = Server(tls=server_tls)
    run(test())


def test_an_implicit_listener_without_a_context_does_not_start(run):
    async def test():
        async with running(Server(), tls="implicit"):
            pass

    with pytest.raises(ValueError, match="implicit TLS"):
        run(test())


def test_smtplib_shakes_hands_both_ways(server_tls, client_tls):
    from preforkmx.testing import ThreadedServer

    server = Server(tls=server_tls)
    with ThreadedServer(server) as plain, smtplib.SMTP(*plain.address) as client:
        # smtplib verifies the name that it connected to.
        client.starttls(context=client_tls)
        assert client.ehlo()[0] == 250
    with (
        ThreadedServer(server, tls="implicit") as implicit,
        smtplib.SMTP_SSL(*implicit.address, context=client_tls) as client,
    ):
        assert client.ehlo()[0] == 250
