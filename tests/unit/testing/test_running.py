"""running and ThreadedServer: a server for the length of a test."""

from __future__ import annotations

import asyncio
import contextlib
import smtplib
import socket
import threading

import pytest
import uvloop

from preforkmx import Middleware, Server
from preforkmx.testing import Address, Client, Recorder, ThreadedServer, running


def test_an_address_is_a_pair_with_names():
    host, port = address = Address("127.0.0.1", 25)
    assert (address.host, address.port) == (host, port) == ("127.0.0.1", 25)


def test_running_yields_a_free_loopback_port_and_leaves_the_server_s_own_listeners_alone(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = Server()
        # This one could not be bound.
        server.listen(f"127.0.0.1:{taken.getsockname()[1]}")

        async def test():
            async with running(server) as address, await Client.connect(address) as client:
                assert address.host == "127.0.0.1"
                return (await client.reply()).code

        assert run(test()) == 220


def test_two_servers_run_side_by_side(run):
    async def test():
        async with running(Server(hostname="a.example")) as a, running(Server()) as b:
            assert a.port != b.port
            async with await Client.connect(a) as client:
                assert (await client.reply()).lines[0].startswith("a.example")

    run(test())


def test_a_session_that_is_over_costs_no_grace(run):
    async def test():
        began = asyncio.get_running_loop().time()
        async with running(Server(), grace=30) as address, await Client.connect(address) as client:
            await client.hello()
            await client.command("QUIT")
        return asyncio.get_running_loop().time() - began

    assert run(test()) < 10


def test_a_client_that_is_left_open_is_told_and_then_cut_off(run):
    async def test():
        async with running(Server(), grace=0.05) as address:
            client = await Client.connect(address)
            await client.hello()
        with contextlib.suppress(ConnectionResetError):
            said = await client.rest()
            assert said.startswith(b"421 ")
        await client.close()

    run(test())


def test_what_the_block_raises_comes_out(run):
    async def test():
        async with running(Server()):
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        run(test())


# --- in a thread --------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop_factory", [None, uvloop.new_event_loop], ids=["default", "uvloop"])
def test_smtplib_talks_to_a_server_in_a_thread(loop_factory):
    recorder = Recorder()
    server = Server(handler=recorder)
    with ThreadedServer(server, loop_factory=loop_factory) as running:
        assert (running.host, running.port) == running.address
        assert running.server is server
        with smtplib.SMTP(*running.address) as client:
            client.sendmail("a@example.org", ["b@example.com"], "Subject: x\r\n\r\nHello\r\n")
    assert recorder.messages[0].octets == b"Subject: x\r\n\r\nHello\r\n"
    # It has stopped: nothing is missing, and nothing listens.
    assert recorder.phases[-1] == "disconnect"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(running.address)


def test_a_server_in_a_thread_may_be_started_again_in_another():
    server = Server()
    for _ in range(2):
        with ThreadedServer(server) as running, smtplib.SMTP(*running.address) as client:
            assert client.noop()[0] == 250


def test_stop_may_be_called_twice_and_before_the_start():
    running = ThreadedServer(Server())
    running.stop()
    running.start()
    with pytest.raises(RuntimeError, match="started once"):
        running.start()
    running.stop()
    running.stop()
    assert not any(thread.name == "smtp server" for thread in threading.enumerate())


def test_there_is_no_address_before_the_start():
    with pytest.raises(RuntimeError, match="not started"):
        _ = ThreadedServer(Server()).address


def broken(*, on_entry):
    @contextlib.asynccontextmanager
    async def lifespan():
        if on_entry:
            raise LookupError("no database")
        yield
        raise LookupError("no database")

    server = Server()
    server.use(Middleware(lifespan=lifespan))
    return ThreadedServer(server)


def test_what_a_lifespan_raises_at_the_start_is_raised_by_start():
    with pytest.raises(LookupError, match="no database"):
        broken(on_entry=True).start()


def test_what_a_lifespan_raises_at_the_end_is_raised_by_stop():
    running = broken(on_entry=False)
    running.start()
    with pytest.raises(LookupError, match="no database"):
        running.stop()


def test_a_server_that_does_not_start_or_stop_in_time_is_an_error(monkeypatch):
    let_go = threading.Event()

    @contextlib.asynccontextmanager
    async def slow():
        await asyncio.to_thread(let_go.wait, 10)
        yield
        await asyncio.to_thread(let_go.wait, 10)

    def server():
        server = Server()
        server.use(Middleware(lifespan=slow))
        return ThreadedServer(server)

    monkeypatch.setattr("preforkmx.testing.servers.START_SECONDS", 0.05)
    monkeypatch.setattr("preforkmx.testing.servers.STOP_SECONDS", 0.05)
    slow_start = server()
    with pytest.raises(TimeoutError, match="did not start"):
        slow_start.start()
    let_go.set()
    slow_stop = server()
    slow_stop.start()
    let_go.clear()
    with pytest.raises(TimeoutError, match="did not stop"):
        slow_stop.stop()
    let_go.set()
    monkeypatch.undo()
    slow_start.stop()
    slow_stop.stop()
