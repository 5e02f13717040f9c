"""XCLIENT: a trusted proxy says who its client is, and the session begins again."""

from __future__ import annotations

import asyncio
import contextlib
from ipaddress import ip_address, ip_network

import pytest

from preforkmx import Middleware, Server, SMTPError
from preforkmx.middleware.rate_limit import rate_limit
from preforkmx.observe.log import AccessLog
from preforkmx.state.local import LocalStore
from preforkmx.testing import Client, Recorder

LOOPBACK = (ip_network("127.0.0.0/8"),)
PROXY = b"PROXY TCP4 %s 198.51.100.7 40000 25\r\n"


@pytest.fixture
def recorder():
    return Recorder()


@contextlib.asynccontextmanager
async def session(server, *, xclient_from=LOOPBACK, header=b"", **options):
    server.listen("127.0.0.1:0", xclient_from=xclient_from, **options)
    async with server:
        async with await Client.connect(server.addresses[0]) as client:
            await client.send(header)
            yield client
        async with asyncio.timeout(10):
            await server.wait_closed()


def converse(run, server, dialogue, **options):
    async def test():
        async with session(server, **options) as client:
            return await dialogue(client)

    return run(test())


# --- who the client is -----------------------------------------------------------------------------


def test_hooks_see_the_client_that_the_proxy_names(run, recorder):
    async def dialogue(client):
        await client.hello("proxy.example")
        reply = await client.command(
            "XCLIENT NAME=client.example ADDR=192.0.2.1 PORT=4711 PROTO=ESMTP HELO=hi "
            "LOGIN=joe+20smith DESTADDR=IPV6:2001:db8::25 DESTPORT=465"
        )
        assert (reply.code, reply.text) == (220, "mx.example.com ESMTP")
        await client.command("EHLO client.example")
        await client.command("MAIL FROM:<>")
        await client.command("QUIT")

    converse(run, Server(hostname="mx.example.com", handler=recorder), dialogue)
    first, second = (call.peer for call in recorder.of("check_connection"))
    assert (first.host, first.username, first.name, first.server_address) == (
        "127.0.0.1",
        None,
        None,
        None,
    )
    assert (second.address, second.port) == (ip_address("192.0.2.1"), 4711)
    assert (second.name, second.username) == ("client.example", "joe smith")
    assert second.server_address == ip_address("2001:db8::25")
    assert second.server_port == 465
    # What the proxy said in its own EHLO is not the client's.
    assert (second.helo_name, second.protocol) == ("", "")
    assert second.listener == first.listener
    (sender,) = recorder.of("check_sender")
    assert (sender.peer.helo_name, sender.peer.protocol) == ("client.example", "ESMTPA")
    assert sender.peer.address == ip_address("192.0.2.1")
    (gone,) = recorder.of("disconnect")
    assert gone.peer.address == ip_address("192.0.2.1")


@pytest.mark.parametrize("address", ["::ffff:192.0.2.1", "IPV6:::ffff:192.0.2.1", "192.0.2.1"])
def test_an_ipv4_mapped_address_is_ipv4(run, recorder, address):
    async def dialogue(client):
        await client.reply()
        assert (await client.command(f"XCLIENT ADDR={address}")).code == 220

    converse(run, Server(handler=recorder), dialogue)
    assert recorder.of("check_connection")[1].peer.address == ip_address("192.0.2.1")


def test_what_the_proxy_does_not_know_is_nobody_s_name_and_the_address_of_before(run, recorder):
    async def dialogue(client):
        await client.reply()
        await client.command("XCLIENT NAME=a.example LOGIN=joe ADDR=192.0.2.1 PORT=1")
        await client.command(
            "XCLIENT NAME=[UNAVAILABLE] LOGIN=[UNAVAILABLE] ADDR=[TEMPUNAVAIL] PORT=[UNAVAILABLE]"
        )

    converse(run, Server(handler=recorder), dialogue)
    *_, last = (call.peer for call in recorder.of("check_connection"))
    assert (last.name, last.username) == (None, None)
    assert (last.host, last.port) == ("192.0.2.1", 1)


def test_what_it_does_not_say_stays_as_the_last_xclient_said(run, recorder):
    async def dialogue(client):
        await client.reply()
        await client.command("XCLIENT NAME=a.example LOGIN=joe ADDR=192.0.2.1")
        await client.command("XCLIENT HELO=hi PROTO=SMTP")

    converse(run, Server(handler=recorder), dialogue)
    *_, last = (call.peer for call in recorder.of("check_connection"))
    assert (last.name, last.username, last.host) == ("a.example", "joe", "192.0.2.1")


def test_the_user_of_auth_is_the_proxy_and_not_its_client(run):
    recorder = Recorder(authenticate=True)

    async def dialogue(client):
        await client.hello()
        assert (await client.command("AUTH PLAIN AGpvZQBzZWNyZXQ=")).code == 235
        assert (await client.command("XCLIENT ADDR=192.0.2.1")).code == 220
        await client.command("EHLO client.example")
        await client.command("MAIL FROM:<>")
        await client.command("RSET")
        return (await client.command("AUTH PLAIN AGpvZQBzZWNyZXQ=")).code

    assert converse(run, Server(handler=recorder, allow_insecure_auth=True), dialogue) == 235
    (sender,) = recorder.of("check_sender")
    assert (sender.peer.username, sender.peer.protocol) == (None, "ESMTP")


def test_who_has_a_login_need_not_authenticate_again(run):
    recorder = Recorder(authenticate=True)

    async def dialogue(client):
        await client.reply()
        await client.command("XCLIENT LOGIN=joe")
        await client.command("EHLO client.example")
        assert (await client.command("AUTH PLAIN AGpvZQBzZWNyZXQ=")).code == 503
        await client.command("MAIL FROM:<a@example.org> AUTH=a@example.org")

    converse(run, Server(handler=recorder, allow_insecure_auth=True), dialogue)
    assert recorder.of("check_sender")[0].peer.username == "joe"


# --- who may say it --------------------------------------------------------------------------------


@pytest.mark.parametrize("networks", [(), (ip_network("192.0.2.0/24"),)])
def test_who_is_not_trusted_gets_550_and_is_who_it_was(run, recorder, networks):
    async def dialogue(client):
        hello = await client.hello()
        assert not any(line.startswith("XCLIENT") for line in hello.lines)
        reply = await client.command("XCLIENT ADDR=192.0.2.1")
        await client.command("MAIL FROM:<>")
        return reply

    reply = converse(run, Server(handler=recorder), dialogue, xclient_from=networks)
    assert (reply.code, reply.text[:6]) == (550, "5.7.1 ")
    assert len(recorder.of("check_connection")) == 1
    assert recorder.of("check_sender")[0].peer.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("source", "network", "trusted"),
    [
        (b"192.0.2.1", "192.0.2.0/24", True),
        # The socket's own address is the balancer's, and anybody may come through it.
        (b"192.0.2.1", "127.0.0.0/8", False),
        (b"203.0.113.1", "192.0.2.0/24", False),
    ],
)
def test_trust_goes_by_the_address_after_proxy(run, recorder, source, network, trusted):
    async def dialogue(client):
        hello = await client.hello()
        assert any(line.startswith("XCLIENT") for line in hello.lines) is trusted
        return (await client.command("XCLIENT ADDR=198.51.100.9")).code

    code = converse(
        run,
        Server(handler=recorder),
        dialogue,
        xclient_from=(ip_network(network),),
        header=PROXY % source,
        proxy_protocol=True,
        proxy_from=LOOPBACK,
    )
    assert code == (220 if trusted else 550)
    last = recorder.calls[-1].peer.host
    assert last == ("198.51.100.9" if trusted else source.decode())


def test_a_transaction_goes_on_where_xclient_is_refused(run, recorder):
    async def dialogue(client):
        await client.hello()
        await client.command("MAIL FROM:<>")
        assert (await client.command("XCLIENT ADDR=192.0.2.1")).code == 503
        return (await client.command("RCPT TO:<b@example.com>")).code

    assert converse(run, Server(handler=recorder), dialogue) == 250
    assert len(recorder.of("check_connection")) == 1


def test_bad_syntax_changes_nothing(run, recorder):
    async def dialogue(client):
        await client.hello()
        for argument in ("", " ADDR", " ADDR=300.1.1.1", " FOO=1", " ADDR=1.2.3.4 PORT=99999"):
            assert (await client.command(f"XCLIENT{argument}")).code == 501
        return (await client.command("MAIL FROM:<>")).code

    assert converse(run, Server(handler=recorder), dialogue) == 250
    assert len(recorder.of("check_connection")) == 1


# --- the session begins again ----------------------------------------------------------------------


def test_the_new_address_may_be_refused(run, recorder):
    async def check_connection(ctx, peer):
        if peer.host == "192.0.2.1":
            raise SMTPError(554, "Not you", enhanced=(5, 7, 1))

    async def dialogue(client):
        await client.hello()
        await client.send(b"XCLIENT ADDR=192.0.2.1\r\nEHLO x\r\nMAIL FROM:<>\r\n")
        reply = await client.reply()
        return (reply.code, reply.text), await client.rest()

    lines = []
    log = AccessLog(lines.append, "logfmt", clock=lambda: 0.0)
    server = Server(handler=recorder, access_log=log)
    server.use(Middleware(check_connection=check_connection, name="list"))
    # Like every refusal in place of a greeting it has no enhanced code.
    assert converse(run, server, dialogue) == ((554, "Not you"), b"")
    assert server.counters.connections_refused == 1
    assert recorder.of("check_sender") == []
    (gone,) = recorder.of("disconnect")
    assert (gone.peer.host, gone.arguments) == ("192.0.2.1", (None,))
    refused, ended = lines
    for part in ("event=refused", "peer=192.0.2.1", "by=list"):
        assert part in refused
    assert "peer=192.0.2.1" in ended
    assert "ended=refused" in ended


def test_disconnect_runs_once_however_often_the_session_began(run, recorder):
    async def dialogue(client):
        await client.reply()
        for last in range(1, 6):
            assert (await client.command(f"XCLIENT ADDR=192.0.2.{last}")).code == 220
        assert (await client.command("QUIT")).code == 221

    converse(run, Server(handler=recorder), dialogue)
    hosts = [call.peer.host for call in recorder.of("check_connection")]
    assert hosts == ["127.0.0.1", *(f"192.0.2.{last}" for last in range(1, 6))]
    assert len(recorder.of("disconnect")) == 1


def test_after_xclient_a_hello_has_to_come_first_again(run):
    async def dialogue(client):
        await client.hello()
        await client.command("XCLIENT ADDR=192.0.2.1")
        refused = await client.command("MAIL FROM:<>")
        # Nothing is known of the client yet: no enhanced code.
        assert (refused.code, refused.text[:4]) == (503, "Send")
        await client.command("EHLO client.example")
        return (await client.command("MAIL FROM:<>")).code

    assert converse(run, Server(), dialogue) == 250


def test_the_context_is_that_of_check_connection_without_helo_s(run):
    seen = []

    async def check_connection(ctx, peer):
        seen.append((ctx.value("connection"), ctx.value("helo")))
        return ctx.with_value("connection", [*ctx.value("connection", []), peer.host])

    async def check_helo(ctx, peer, name):
        return ctx.with_value("helo", name)

    async def check_sender(ctx, peer, address):
        seen.append((ctx.value("connection"), ctx.value("helo")))

    async def dialogue(client):
        await client.hello("proxy.example")
        await client.command("XCLIENT ADDR=192.0.2.1")
        await client.command("EHLO client.example")
        await client.command("MAIL FROM:<>")

    server = Server()
    server.use(
        Middleware(
            check_connection=check_connection, check_helo=check_helo, check_sender=check_sender
        )
    )
    converse(run, server, dialogue)
    assert seen == [
        (None, None),
        (["127.0.0.1"], None),
        (["127.0.0.1", "192.0.2.1"], "client.example"),
    ]


def test_starttls_after_xclient_keeps_the_client_and_forgets_its_login(
    run, recorder, server_tls, client_tls
):
    async def check_connection(ctx, peer):
        return ctx.with_value("host", peer.host)

    async def dialogue(client):
        await client.reply()
        await client.command("XCLIENT ADDR=192.0.2.1 LOGIN=joe")
        await client.command("EHLO plain.example")
        assert (await client.starttls(client_tls)).code == 220
        await client.command("EHLO client.example")
        await client.command("MAIL FROM:<>")
        await client.command("RSET")
        # The proxy may tell more, and what TLS made forgotten does not come back.
        assert (await client.command("XCLIENT PORT=4711")).code == 220
        await client.command("EHLO client.example")
        await client.command("MAIL FROM:<>")
        await client.command("QUIT")

    server = Server(handler=recorder, tls=server_tls)
    server.use(Middleware(check_connection=check_connection))
    converse(run, server, dialogue)
    for call in recorder.of("check_sender"):
        peer = call.peer
        assert (peer.host, peer.username, peer.protocol) == ("192.0.2.1", None, "ESMTPS")
        assert peer.tls is not None
        assert call.context.value("host") == "192.0.2.1"
    assert recorder.of("check_sender")[1].peer.port == 4711


@pytest.mark.usefixtures("sweep_fast")
def test_a_session_that_began_again_has_its_time_for_a_command(run):
    async def dialogue(client):
        await client.hello()
        await client.command("XCLIENT ADDR=192.0.2.1")
        return await client.rest()

    assert converse(run, Server(command_timeout=0.05), dialogue).startswith(b"421 ")


def test_a_transaction_s_line_in_the_log_names_the_client(run):
    async def dialogue(client):
        await client.reply()
        await client.command("XCLIENT ADDR=192.0.2.1 PORT=4711 LOGIN=joe")
        await client.command("EHLO client.example")
        await client.deliver(b"Hello\r\n")
        await client.command("QUIT")

    lines = []
    log = AccessLog(lines.append, "logfmt", clock=lambda: 0.0)
    converse(run, Server(access_log=log), dialogue)
    for part in ("peer=192.0.2.1", "port=4711", "user=joe", "proto=ESMTPA"):
        assert part in lines[0]


# --- the lease of a limit --------------------------------------------------------------------------


def concurrent(store):
    return rate_limit(store, concurrent=1)


def test_the_lease_moves_to_the_new_address_and_ends_with_the_session(run):
    store = LocalStore()
    server = Server()
    server.use(concurrent(store))

    async def test():
        async with session(server) as client:
            await client.reply()
            assert (await client.command("XCLIENT ADDR=192.0.2.1")).code == 220
            assert store.limits.leases == 1
            # The proxy's own place is free again …
            async with await Client.connect(server.addresses[0]) as second:
                assert (await second.reply()).code == 220
                # … and its client has one already.
                assert (await second.command("XCLIENT ADDR=192.0.2.1")).code == 421
                assert await second.rest() == b""
            async with await Client.connect(server.addresses[0]) as third:
                assert (await third.reply()).code == 220
                assert (await third.command("XCLIENT ADDR=192.0.2.2")).code == 220
                assert store.limits.leases == 2
                await third.command("QUIT")
                await third.rest()
            await client.command("QUIT")
            await client.rest()

    run(test())
    assert store.limits.leases == 0
    assert server.counters.connections_refused == 1


def test_an_exempt_client_holds_no_lease(run):
    store = LocalStore()
    server = Server()
    server.use(rate_limit(store, concurrent=1, allow=[ip_network("192.0.2.0/24")]))

    async def dialogue(client):
        await client.reply()
        assert store.limits.leases == 1
        await client.command("XCLIENT ADDR=192.0.2.1")
        assert store.limits.leases == 0
        await client.command("XCLIENT ADDR=198.51.100.1")
        assert store.limits.leases == 1

    converse(run, server, dialogue)
    assert store.limits.leases == 0


def test_a_client_that_a_balancer_speaks_for_is_no_health_check(run, recorder):
    local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"

    async def dialogue(client):
        await client.hello("balancer.example")
        assert (await client.command("XCLIENT ADDR=192.0.2.1")).code == 220
        await client.command("EHLO client.example")
        await client.command("QUIT")

    converse(
        run,
        Server(hostname="mx.example.com", handler=recorder),
        dialogue,
        header=local,
        proxy_protocol=True,
        proxy_from=LOOPBACK,
    )
    first, second = (call.peer for call in recorder.of("check_connection"))
    assert first.is_health_check
    assert second.host == "192.0.2.1"
    assert not second.is_health_check
