"""The last reply reaches a client that is still sending: every close after a reply lingers."""

from __future__ import annotations

import asyncio
import socket

import pytest

from preforkmx import Server, SMTPError
from preforkmx.testing import Client, Recorder, running

MUCH = b"NOOP\r\n" * 20_000


async def send_all(client, octets):
    """Send `octets` in many segments, whatever the server says meanwhile."""
    for start in range(0, len(octets), 4096):
        await client.send(octets[start : start + 4096])


ENDINGS = {
    "too many errors": (b"BOGUS\r\n" * 4, b"421 4.7.0 "),
    "a bare newline": (b"NOOP\n", b"500 5.5.2 "),
    "an endless line": (b"x" * 20_000, b"500 5.5.2 "),
    "a hook that closes": (b"MAIL FROM:<>\r\n", b"550 5.7.1 "),
    "a hook that crashes": (b"VRFY x\r\n", b"502 5.3.0 "),
    "quit": (b"QUIT\r\n", b"221 2.0.0 "),
}


def closing_server(**options):
    recorder = Recorder()
    recorder.refuse("check_sender", SMTPError(550, "No", enhanced=(5, 7, 1), close=True))
    recorder.refuse("verify", RuntimeError("a bug"))
    server = Server(errors=3, **options)
    server.use(recorder)
    return server


@pytest.mark.parametrize("ending", list(ENDINGS))
def test_a_client_with_commands_in_flight_gets_its_last_reply_and_no_reset(run, ending):
    last, expected = ENDINGS[ending]

    async def one(address):
        async with await Client.connect(address) as client:
            await client.hello()
            await send_all(client, last + MUCH)
            return await client.rest()

    async def test():
        async with running(server) as address:
            return await asyncio.gather(*(one(address) for _ in range(10)))

    server = closing_server()
    for said in run(test()):
        assert said.splitlines()[-1].startswith(expected)


@pytest.mark.parametrize("ending", ["too many errors", "a hook that closes"])
def test_under_tls_a_client_with_commands_in_flight_gets_its_last_reply(
    run, ending, server_tls, client_tls
):
    last, expected = ENDINGS[ending]

    async def one(address):
        async with await Client.connect(address, tls=client_tls) as client:
            await client.hello()
            await client.send(last + b"NOOP\r\n" * 100)
            return await client.rest()

    async def test():
        async with running(server, tls="implicit") as address:
            return await asyncio.gather(*(one(address) for _ in range(10)))

    server = closing_server(tls=server_tls)
    for said in run(test()):
        assert said.splitlines()[-1].startswith(expected)


def test_a_refused_connection_that_sends_at_once_reads_its_refusal(run):
    async def one(address):
        async with await Client.connect(address) as client:
            await send_all(client, b"EHLO hasty.example\r\n" + MUCH)
            return await client.rest()

    async def test():
        async with running(server) as address:
            return await asyncio.gather(*(one(address) for _ in range(10)))

    recorder = Recorder()
    recorder.refuse("check_connection", SMTPError(554, "Not here"))
    server = Server()
    server.use(recorder)
    assert run(test()) == [b"554 Not here\r\n"] * 10


def test_commands_behind_the_last_reply_are_not_answered(run):
    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            await client.send(b"QUIT\r\nNOOP\r\nMAIL FROM:<>\r\n")
            return await client.rest()

    server = Server()
    assert run(test()).count(b"\r\n") == 1
    assert server.counters.transactions == 0


def test_a_client_that_closes_its_side_after_its_commands_reads_all_replies(run):
    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.reply()
            await client.send(
                b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@example.com>\r\nDATA\r\nHello\r\n.\r\n"
            )
            client.writer.write_eof()
            return await client.rest()

    server = Server()
    codes = [line[:4] for line in run(test()).splitlines() if line[3:4] == b" "]
    assert codes == [b"250 ", b"250 ", b"250 ", b"354 ", b"250 "]


@pytest.mark.usefixtures("sweep_fast")
def test_a_client_that_does_not_close_is_closed_after_the_linger(run, monkeypatch):
    monkeypatch.setattr("preforkmx.session.wire.LINGER_SECONDS", 0.05)

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            assert (await client.command("MAIL FROM:<>")).code == 550
            # It neither reads nor closes, and sends on.
            async with asyncio.timeout(10):
                while server.sessions:
                    client.writer.write(b"NOOP\r\n")
                    await asyncio.sleep(0.01)

    server = closing_server()
    run(test())


@pytest.mark.usefixtures("sweep_fast")
def test_a_drain_does_not_lengthen_the_linger(run, monkeypatch):
    monkeypatch.setattr("preforkmx.session.wire.LINGER_SECONDS", 0.2)

    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            assert (await client.command("MAIL FROM:<>")).code == 550
            server.drain()
            async with asyncio.timeout(5):
                await server.wait_closed()

    server = closing_server()
    run(test())


def test_a_reset_while_the_last_reply_is_written_leaves_nothing_in_the_log(run, caplog):
    async def test():
        async with running(server) as address:
            for _ in range(20):
                async with await Client.connect(address) as client:
                    await client.hello()
                    await client.send(b"MAIL FROM:<>\r\n")
                    client.reset()
            async with asyncio.timeout(10):
                await server.wait_closed()

    server = closing_server()
    run(test())
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("moment", range(6))
def test_a_reset_at_any_moment_leaves_nothing_in_the_log(run, caplog, moment):
    flight = [
        b"EHLO x\r\n",
        b"MAIL FROM:<>\r\nRCPT TO:<a@example.com>\r\n",
        b"DATA\r\n",
        b"x" * 500_000,
        b"\r\n.\r\n",
        b"QUIT\r\n",
    ][: moment + 1]

    async def reset(address, turns):
        async with await Client.connect(address) as client:
            for octets in flight:
                client.writer.write(octets)
                await asyncio.sleep(0)
            for _ in range(turns):
                await asyncio.sleep(0)
            client.reset()

    async def test():
        async with running(server) as address:
            await asyncio.gather(*(reset(address, turns) for turns in range(20)))
            async with asyncio.timeout(10):
                await server.wait_closed()

    recorder = Recorder()
    server = Server(handler=recorder)
    run(test())
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    assert len(recorder.of("disconnect")) == len(recorder.of("check_connection"))


def test_the_server_s_sockets_are_closed_when_it_has_stopped(run):
    async def test():
        async with running(server) as address, await Client.connect(address) as client:
            await client.hello()
            (session,) = server._service.sessions
            sock = session.transport.get_extra_info("socket")
            await client.command("QUIT")
        return sock

    server = Server()
    assert run(test()).fileno() == -1


def test_nothing_listens_when_the_server_has_stopped(run):
    async def test():
        async with running(Server()) as address:
            pass
        return address

    address = run(test())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
