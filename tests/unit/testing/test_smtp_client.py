"""The Client: it says what it is told, and its waits end."""

from __future__ import annotations

import asyncio

import pytest

from preforkmx import Server
from preforkmx.testing import Client, Recorder, running


def against(run, answer, dialogue):
    """Run `dialogue` with a client whose server says `answer` and hears everything."""
    heard = []

    async def serve(reader, writer):
        writer.write(answer)
        heard.append(await reader.read())
        writer.close()

    async def test():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            address = server.sockets[0].getsockname()
            async with await Client.connect(address, seconds=0.2) as client:
                result = await dialogue(client)
                client.writer.write_eof()
                await client.rest()
        return result

    return run(test()), heard[0]


def test_a_reply_has_a_code_and_lines(run):
    async def dialogue(client):
        return await client.reply()

    reply, _ = against(run, b"250-mx.example.com\r\n250-\r\n250 SIZE\r\n", dialogue)
    assert (reply.code, reply.lines) == (250, ("mx.example.com", "", "SIZE"))
    assert reply.text == "mx.example.com\n\nSIZE"


def test_what_is_no_reply_is_an_error(run):
    async def dialogue(client):
        with pytest.raises(ValueError, match="is no line of a reply"):
            await client.reply()

    against(run, b"Welcome!\r\n", dialogue)


def test_a_server_that_says_nothing_is_a_timeout(run):
    async def dialogue(client):
        with pytest.raises(TimeoutError):
            await client.reply()

    against(run, b"250-half a reply\r\n", dialogue)


def test_commands_and_octets_are_sent_as_they_are(run):
    async def dialogue(client):
        await client.command("NOOP")
        await client.send(b"\x00\xff\n")

    _, heard = against(run, b"250 Ok\r\n", dialogue)
    assert heard == b"NOOP\r\n\x00\xff\n"


@pytest.mark.parametrize(
    "octets",
    [b"", b"a\r\n", b".\r\n", b"..\r\n.\r\na\r\n", b"a\r\n.", b"no line end", b"\r\n.\r\n"],
)
def test_deliver_sends_any_octets_so_that_they_arrive(run, octets):
    recorder = Recorder()

    async def test():
        async with (
            running(Server(handler=recorder)) as address,
            await Client.connect(address) as client,
        ):
            await client.hello()
            assert (await client.deliver(octets)).code == 250

    run(test())
    # A message consists of lines: the end of the last one is supplied.
    end = b"" if octets.endswith(b"\r\n") or not octets else b"\r\n"
    assert recorder.messages[0].octets == octets + end


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"550 No\r\n", 550),
        (b"250 Ok\r\n550 No\r\n", 550),
        (b"250 Ok\r\n250 Ok\r\n451 No\r\n", 451),
        (b"250 Ok\r\n250 Ok\r\n354 Go\r\n552 No\r\n", 552),
    ],
)
def test_deliver_returns_the_first_refusal(run, answer, code):
    async def dialogue(client):
        return (await client.deliver(b"x\r\n")).code

    assert against(run, answer, dialogue)[0] == code


def test_hello_returns_a_refusal_at_the_greeting(run):
    async def dialogue(client):
        return (await client.hello()).code

    code, heard = against(run, b"554 No\r\n", dialogue)
    assert (code, heard) == (554, b"")


def test_the_end_of_the_connection_is_an_eof_error(run):
    async def test():
        async with (
            running(Server(), grace=0) as address,
            await Client.connect(address) as client,
        ):
            await client.hello()
            await client.command("QUIT")
            with pytest.raises(EOFError):
                await client.reply()

    run(test())
