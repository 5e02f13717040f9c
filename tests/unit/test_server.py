"""Server: configured once, started, drained, stopped, and started again."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
from ipaddress import ip_network

import pytest

from preforkmx import Listener, Middleware, Server, SMTPError
from preforkmx.observe.access import AccessLog
from preforkmx.protocol.proxy import V2_SIGNATURE
from preforkmx.testing import Client, Recorder, running

LOCAL = V2_SIGNATURE + bytes.fromhex("20 00 0000")


@pytest.fixture
def recorder():
    return Recorder()


# --- what it is made of ---------------------------------------------------------------------------


def test_use_keeps_the_order():
    server = Server()
    first, second = Middleware(name="first"), Middleware(name="second")
    server.use(first, second)
    assert server.middleware == (first, second)


def test_use_takes_nothing_but_middleware():
    with pytest.raises(TypeError, match="Middleware"):
        Server().use(lambda ctx, peer: None)


def test_a_handler_that_is_a_function_becomes_a_middleware():
    async def deliver(ctx, peer, envelope):
        pass

    target = Middleware(handler=deliver)
    assert Server(handler=deliver).delivery == target
    assert Server(handler=target).delivery is target
    assert Server().delivery is None


def test_fewer_than_100_recipients_break_rfc_5321():
    with pytest.raises(ValueError, match="100"):
        Server(recipients=99)


def test_use_and_listen_come_before_the_start(run):
    async def test():
        async with running(server):
            with pytest.raises(RuntimeError, match="before the start"):
                server.use(Middleware())
            with pytest.raises(RuntimeError, match="before the start"):
                server.listen("127.0.0.1:0")
            with pytest.raises(RuntimeError, match="runs already"):
                async with server.started():
                    pass

    server = Server()
    run(test())
    server.use(Middleware())


@pytest.mark.parametrize(
    "address",
    ["25", ":25", "localhost:25", "127.0.0.1:smtp", "::1:25", "[127.0.0.1]:25", "1:99999"],
)
def test_a_listener_s_address_is_an_ip_address_and_a_port(address):
    with pytest.raises(ValueError, match=r"HOST:PORT|IP address|IPv6|port"):
        Server().listen(address)


# --- listening ------------------------------------------------------------------------------------


def test_async_with_binds_every_listener_and_closes_it_again(run, recorder, server_tls, client_tls):
    server = Server(tls=server_tls, handler=recorder)
    server.listen("127.0.0.1:0")
    server.listen("127.0.0.1:0", tls="implicit")

    async def test():
        assert server.addresses == []
        async with server:
            plain, implicit = addresses = server.addresses
            async with await Client.connect(plain) as client:
                await client.hello()
                await client.command("QUIT")
            async with await Client.connect(implicit, tls=client_tls) as client:
                await client.hello()
                await client.command("QUIT")
            await recorder.happened("disconnect", 2)
        assert server.addresses == []
        return addresses

    for address in run(test()):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
    assert [call.peer.listener for call in recorder.of("check_connection")] == ["127.0.0.1:0"] * 2


def has_ipv6():
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_an_ipv6_listener_serves_ipv6_and_only_that(run, recorder):
    server = Server(handler=recorder)
    server.listen("[::]:0")

    async def test():
        async with server:
            _, port = server.addresses[0]
            async with await Client.connect(("::1", port)) as client:
                await client.hello()
                await client.command("QUIT")
            with pytest.raises(ConnectionRefusedError):
                await Client.connect(("127.0.0.1", port))

    run(test())
    peer = recorder.of("check_connection")[0].peer
    assert (peer.host, peer.listener, peer.address.version) == ("::1", "[::]:0", 6)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_the_helper_serves_ipv6_too(run):
    async def test():
        async with (
            running(Server(), host="::1") as address,
            await Client.connect(address) as client,
        ):
            return await client.reply()

    assert run(test()).code == 220


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_an_ipv4_client_of_a_dual_stack_socket_is_an_ipv4_peer(run, recorder):
    server = Server(handler=recorder)

    async def test():
        with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as sock:
            port = sock.getsockname()[1]
            async with server.started():
                acceptor = server.acceptor(sock, Listener(f"[::]:{port}"))
                acceptor.start()
                async with await Client.connect(("127.0.0.1", port)) as client:
                    await client.reply()
                acceptor.stop()

    run(test())
    assert recorder.of("check_connection")[0].peer.host == "127.0.0.1"


def test_a_unix_listener_s_peer_has_no_address(run, recorder, tmp_path):
    server = Server(handler=recorder)
    path = str(tmp_path / "smtp.sock")

    async def test():
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
            sock.listen()
            async with server.started():
                acceptor = server.acceptor(sock, Listener("127.0.0.1:0"))
                acceptor.start()
                async with Client(*await asyncio.open_unix_connection(path)) as client:
                    assert (await client.reply()).code == 220
                    await client.command("QUIT")
                acceptor.stop()
                async with asyncio.timeout(10):
                    await server.wait_closed()

    run(test())
    peer = recorder.of("check_connection")[0].peer
    assert (peer.address, peer.port, peer.host) == (None, 0, "unix")


def test_a_port_that_is_taken_stops_the_start_and_nothing_is_left_open(run):
    events = []

    @contextlib.asynccontextmanager
    async def lifespan():
        events.append("entered")
        try:
            yield
        finally:
            events.append("left")

    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = Server()
        server.use(Middleware(lifespan=lifespan))
        server.listen("127.0.0.1:0")
        server.listen(f"127.0.0.1:{taken.getsockname()[1]}")

        async def test():
            with pytest.raises(OSError, match="in use"):
                async with server:
                    pass

        run(test())
    assert events == ["entered", "left"]
    assert server.addresses == []


def test_serve_listens_until_shutdown(run, recorder, until):
    server = Server(handler=recorder)

    async def test():
        serving = asyncio.ensure_future(server.serve("127.0.0.1:0"))
        await until(lambda: server.addresses)
        async with await Client.connect(server.addresses[0]) as client:
            await client.hello()
            assert (await client.deliver(b"Hello\r\n")).code == 250
            stopping = asyncio.ensure_future(server.shutdown(10))
            assert (await client.reply()).code == 421
        await stopping
        async with asyncio.timeout(10):
            await serving

    run(test())
    assert len(recorder.messages) == 1


# --- limits and counters ----------------------------------------------------------------------------


def test_max_sessions_turns_the_next_one_away_with_421_until_one_is_free(run, until):
    server = Server(max_sessions=2)

    async def test():
        async with running(server) as address:
            first, second = [await Client.connect(address) for _ in range(2)]
            await first.hello()
            await second.hello()
            async with await Client.connect(address) as third:
                assert (await third.reply()).code == 421
                assert await third.rest() == b""
            await second.command("QUIT")
            await second.rest()
            await second.close()
            await until(lambda: server.sessions == 1)
            async with await Client.connect(address) as third:
                assert (await third.reply()).code == 220
            await first.close()

    run(test())
    assert server.counters.connections_refused == 1
    assert server.counters.connections == 4


def test_counters_add_up(run):
    server = Server()

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            for _ in range(3):
                await client.deliver(b"0123456\r\n")
            await client.command("BOGUS")
            assert server.sessions == 1
            await client.command("QUIT")

    run(test())
    counters = server.counters
    assert server.sessions == 0
    assert (counters.connections, counters.transactions, counters.recipients) == (1, 3, 3)
    assert (counters.messages, counters.octets, counters.commands_refused) == (3, 27, 1)


# --- lifespans --------------------------------------------------------------------------------------


def test_lifespans_are_entered_in_order_in_the_loop_and_left_in_reverse(run):
    events = []

    def lifespan(name):
        @contextlib.asynccontextmanager
        async def span():
            events.append((name, "entered", asyncio.get_running_loop()))
            yield
            events.append((name, "left", asyncio.get_running_loop()))

        return span

    server = Server(handler=Middleware(lifespan=lifespan("delivery")))
    server.use(Middleware(lifespan=lifespan("a")), Middleware(lifespan=lifespan("b")))

    async def test():
        async with running(server):
            events.append(("server", "runs", asyncio.get_running_loop()))
        return asyncio.get_running_loop()

    loop = run(test())
    assert [event[:2] for event in events] == [
        ("a", "entered"),
        ("b", "entered"),
        ("delivery", "entered"),
        ("server", "runs"),
        ("delivery", "left"),
        ("b", "left"),
        ("a", "left"),
    ]
    assert {event[2] for event in events} == {loop}


def test_a_lifespan_is_left_only_after_the_last_disconnect_hook(run):
    events = []

    @contextlib.asynccontextmanager
    async def lifespan():
        yield
        events.append("left")

    async def disconnect(ctx, peer, error):
        await asyncio.sleep(0)
        events.append("disconnect")

    server = Server()
    server.use(Middleware(lifespan=lifespan, disconnect=disconnect))

    async def test():
        async with running(server, grace=0) as address:
            client = await Client.connect(address)
            await client.hello()
        await client.close()

    run(test())
    assert events == ["disconnect", "left"]


def test_a_lifespan_that_fails_stops_the_start_and_those_before_it_are_left(run):
    events = []

    @contextlib.asynccontextmanager
    async def good():
        try:
            yield
        finally:
            events.append("left")

    @contextlib.asynccontextmanager
    async def bad():
        raise LookupError("no database")
        yield

    server = Server()
    server.use(Middleware(lifespan=good), Middleware(lifespan=bad))

    async def test():
        with pytest.raises(LookupError, match="no database"):
            async with running(server):
                pass

    run(test())
    assert events == ["left"]


# --- the end ------------------------------------------------------------------------------------------


def test_shutdown_tells_idle_sessions_and_waits_for_the_others(run, recorder):
    server = Server(handler=recorder)
    server.listen("127.0.0.1:0")

    async def test():
        async with server:
            address = server.addresses[0]
            idle, busy = [await Client.connect(address) for _ in range(2)]
            await idle.hello()
            await busy.hello()
            await busy.command("MAIL FROM:<>")
            await busy.command("RCPT TO:<a@example.com>")
            stopping = asyncio.ensure_future(server.shutdown(10))
            assert (await idle.reply()).code == 421
            await idle.close()
            with pytest.raises(ConnectionRefusedError):
                await Client.connect(address)
            assert server.draining
            assert not stopping.done()
            assert (await busy.command("DATA")).code == 354
            assert (await busy.command(".")).code == 250
            assert (await busy.reply()).code == 421
            await busy.close()
            async with asyncio.timeout(10):
                await stopping

    run(test())
    assert len(recorder.messages) == 1


def test_shutdown_greets_who_was_in_the_queue(run):
    server = Server()
    server.listen("127.0.0.1:0")

    async def test():
        async with server:
            # The connection is there, and the loop has had no turn to take it.
            with socket.create_connection(server.addresses[0]) as sock:
                stopping = asyncio.ensure_future(server.shutdown(10))
                client = Client(*await asyncio.open_connection(sock=sock))
                said = await client.rest()
                await client.close()
            await stopping
        return said

    said = run(test()).splitlines()
    assert [line[:3] for line in said] == [b"220", b"421"]


def test_shutdown_greets_whose_handshake_ends_after_it_began(run):
    """The last step is late: this socket takes the first octets of the client for it."""
    server = Server()
    server.listen("127.0.0.1:0")

    async def test():
        async with server:
            server._sockets[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
            client = await Client.connect(server.addresses[0])
            stopping = asyncio.ensure_future(server.shutdown(10))
            await asyncio.sleep(0.2)
            await client.send(b"EHLO client.example\r\n")
            said = await client.rest()
            await client.close()
            await stopping
        return said

    said = run(test()).splitlines()
    assert said[0].startswith(b"220 ")
    assert said[-1].startswith(b"421 ")


def test_shutdown_lets_no_new_connection_begin(run):
    """Its SYN is dropped, and the port refuses when it tries again."""
    server = Server()
    server.listen("127.0.0.1:0")

    async def test():
        async with server:
            address = server.addresses[0]
            stopping = asyncio.ensure_future(server.shutdown(10))
            await asyncio.sleep(0.1)
            with pytest.raises(ConnectionRefusedError):
                await Client.connect(address)
            await stopping

    run(test())
    assert server.counters.connections == 0


def test_shutdown_greets_who_was_in_the_queue_of_a_unix_socket(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server = Server()
    server.listen(f"unix:{tmp_path}/smtp")

    async def test():
        async with server:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect("smtp")
                stopping = asyncio.ensure_future(server.shutdown(10))
                await asyncio.sleep(0)
                assert not (tmp_path / "smtp").exists()
                client = Client(*await asyncio.open_unix_connection(sock=sock))
                said = await client.rest()
                await client.close()
            await stopping
        return said

    said = run(test()).splitlines()
    assert [line[:3] for line in said] == [b"220", b"421"]


def test_a_shutdown_that_is_given_up_has_closed_the_port(run):
    server = Server()
    server.listen("127.0.0.1:0")

    async def test():
        async with server:
            address = server.addresses[0]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(server.shutdown(10), 0.1)
            with pytest.raises(ConnectionRefusedError):
                await Client.connect(address)

    run(test())


def test_a_block_that_is_left_during_a_shutdown_disturbs_nothing(run):
    server = Server()
    server.listen("127.0.0.1:0")

    async def test():
        async with server:
            stopping = [asyncio.ensure_future(server.shutdown(10)) for _ in range(2)]
            await asyncio.sleep(0.1)
        async with asyncio.timeout(10):
            await asyncio.gather(*stopping)

    run(test())


def test_shutdown_gives_a_message_that_still_arrives_at_the_deadline_421_and_no_250(run, recorder):
    server = Server(handler=recorder)
    server.listen("127.0.0.1:0")

    async def test():
        async with server, await Client.connect(server.addresses[0]) as client:
            await client.hello()
            await client.command("MAIL FROM:<>")
            await client.command("RCPT TO:<a@example.com>")
            await client.command("DATA")
            await client.send(b"Half a ")
            stopping = asyncio.ensure_future(server.shutdown(0.05))
            reply = await client.reply()
            await client.close()
            await stopping
        return reply

    assert run(test()).code == 421
    assert recorder.messages == []


def test_shutdown_aborts_what_does_not_end_five_seconds_after_its_deadline(run, monkeypatch):
    async def deliver(ctx, peer, envelope):
        await asyncio.Event().wait()

    server = Server(handler=deliver)
    server.listen("127.0.0.1:0")
    real = asyncio.timeout

    async def test():
        async with server, await Client.connect(server.addresses[0]) as client:
            await client.hello()
            await client.command("MAIL FROM:<>")
            await client.command("RCPT TO:<a@example.com>")
            await client.command("DATA")
            await client.send(b".\r\n")
            waits = []

            def shorter(seconds):
                waits.append(seconds)
                return real(0.01)

            monkeypatch.setattr("preforkmx.server.asyncio.timeout", shorter)
            await server.shutdown(30)
            monkeypatch.undo()
            assert await client.rest() == b""
        return waits

    transactions, aborted = run(test())
    # The queues have had a second of them.
    assert 25 < transactions < 29.5
    assert aborted == 5.0
    assert server.counters.messages == 0


def test_leaving_the_block_aborts_the_sessions_that_are_left(run, recorder):
    server = Server(handler=recorder)
    server.listen("127.0.0.1:0")

    async def test():
        async with server:
            client = await Client.connect(server.addresses[0])
            await client.hello()
        assert server.sessions == 0
        with contextlib.suppress(ConnectionResetError):
            assert await client.rest() == b""
        await client.close()

    run(test())
    assert len(recorder.of("disconnect")) == 1


def test_a_server_starts_again_after_a_shutdown(run, recorder):
    server = Server(handler=recorder)
    server.listen("127.0.0.1:0")
    server.listen("127.0.0.1:0", proxy_protocol=True, proxy_from=(ip_network("127.0.0.1"),))

    async def test():
        for _ in range(2):
            async with server:
                assert not server.draining
                async with await Client.connect(server.addresses[1]) as check:
                    await check.send(LOCAL)
                    assert (await check.hello()).code == 250
                    assert (await check.command("QUIT")).code == 221
                async with await Client.connect(server.addresses[0]) as client:
                    await client.hello()
                    assert (await client.deliver(b"Hello\r\n")).code == 250
                    assert (await client.command("QUIT")).code == 221
                server.lame_duck()
                server.retire()
                server.abort_transactions()
                await server.shutdown(10)

    run(test())
    run(test())
    assert len({call.context.session_id for call in recorder.of("check_connection")}) == 8


# --- logs ---------------------------------------------------------------------------------------------


def access_log():
    lines = []
    return lines, AccessLog(lines.append, "logfmt", clock=lambda: 0.0)


def converse(run, server, dialogue):
    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await dialogue(client)

    run(test())


def test_a_transaction_and_a_session_have_a_line_each(run):
    async def dialogue(client):
        await client.hello()
        await client.deliver(b"Hello\r\n", sender="a@example.org", recipients=["b@example.com"])
        await client.command("QUIT")

    lines, log = access_log()
    converse(run, Server(access_log=log), dialogue)
    transaction, session = lines
    for part in (
        "event=transaction",
        "sender=a@example.org",
        "recipients=b@example.com",
        "verdict=accepted",
        "size=7",
        "helo=client.example",
        "proto=ESMTP",
    ):
        assert part in transaction
    for part in ("event=session", "ended=quit", "transactions=1", "messages=1"):
        assert part in session


@pytest.mark.parametrize(
    ("ended", "commands"),
    [
        ("lost", ["EHLO x"]),
        ("quit", ["EHLO x", "QUIT"]),
        ("closed", ["EHLO x", *["BOGUS"] * 4]),
        ("error", ["EHLO x", "VRFY x"]),
        ("refused", None),
        ("lost", ["EHLO x", "MAIL FROM:<>", "RCPT TO:<a@example.com>", "DATA", "half a message"]),
    ],
)
def test_the_log_says_how_a_session_ended(run, recorder, ended, commands):
    async def dialogue(client):
        await client.reply()
        for command in commands or ():
            await client.send(f"{command}\r\n".encode())
            if command != "half a message":
                await client.reply()

    if commands is None:
        recorder.refuse("check_connection", SMTPError(554, "No"))
    recorder.refuse("verify", RuntimeError("a bug"))
    lines, log = access_log()
    server = Server(access_log=log, errors=3)
    server.use(recorder)
    converse(run, server, dialogue)
    assert f"ended={ended}" in lines[-1]
    assert ("event=refused" in lines[0]) == (ended == "refused")


def test_the_log_says_that_a_session_ended_at_its_handshake(run, server_tls):
    async def dialogue(client):
        await client.hello()
        await client.command("STARTTLS")
        await client.send(b"rubbish\r\n")
        await client.reader.read()

    lines, log = access_log()
    converse(run, Server(access_log=log, tls=server_tls), dialogue)
    assert "ended=tls" in lines[-1]


def test_at_debug_level_the_logger_gets_the_dialogue_without_credentials(run, caplog):
    logger = logging.getLogger("preforkmx.test.dialogue")
    caplog.set_level(logging.DEBUG, logger=logger.name)

    async def dialogue(client):
        await client.hello()
        await client.command("AUTH PLAIN AGpvZQBzZWNyZXQ=")

    server = Server(logger=logger, allow_insecure_auth=True)
    server.use(Recorder(authenticate=True))
    converse(run, server, dialogue)
    assert "C: EHLO client.example" in caplog.messages
    assert any(message.startswith("S: 220 ") for message in caplog.messages)
    assert "AGpvZQBzZWNyZXQ=" not in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize("turns", range(4))
def test_connections_that_were_just_taken_end_with_the_server(
    run, recorder, server_tls, tls, turns
):
    """A task that is cancelled before its first step never runs: somebody has to close for it."""
    server = Server(handler=recorder, tls=server_tls)

    async def test():
        with socket.create_server(("127.0.0.1", 0)) as sock:
            async with server.started():
                acceptor = server.acceptor(sock, Listener("127.0.0.1:0", tls=tls))
                client = await Client.connect(sock.getsockname())
                acceptor.accept_now()
                for _ in range(turns):
                    await asyncio.sleep(0)
                server.abort()
                async with asyncio.timeout(10):
                    await server.wait_closed()
                with contextlib.suppress(ConnectionResetError):
                    await client.rest()
                await client.close()

    run(test())
    assert server.sessions == 0
    assert len(recorder.of("disconnect")) == len(recorder.of("check_connection"))


def test_sessions_that_are_over_leave_nothing_behind(run, server_tls, client_tls, until):
    from preforkmx.session.incoming import IncomingMessage
    from preforkmx.session.session import Session

    # Log records would keep the stack of the hook that crashes.
    logger = logging.Logger("nobody listens")  # noqa: LOG001 - no parent, and new in each run
    logger.addHandler(logging.NullHandler())
    server = Server(tls=server_tls, logger=logger)

    async def crash(ctx, peer, text):
        raise RuntimeError("a bug")

    server.use(Middleware(verify=crash))

    async def one(address, how):
        async with await Client.connect(address) as client:
            await client.hello()
            if how % 2:
                await client.starttls(client_tls)
                await client.command("EHLO again.example")
            await client.deliver(b"Hello\r\n")
            if how < 2:
                await client.command("QUIT")
            elif how < 4:
                await client.command("VRFY x")
            elif how < 6:
                client.reset()

    async def test():
        async with running(server) as address:
            await asyncio.gather(*(one(address, i % 8) for i in range(40)))
            await until(lambda: not server.sessions)

    run(test())
    gc.collect()
    things = [thing for thing in gc.get_objects() if isinstance(thing, (Session, IncomingMessage))]
    # Not those that a failed test before this one still shows.
    mine = [thing for thing in things if getattr(thing, "_session", thing).service.logger is logger]
    assert mine == []
