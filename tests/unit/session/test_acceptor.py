"""The accept loop: it loses no connection, and it never spins."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import subprocess
import sys
import textwrap

import pytest

from preforkmx import Listener, Server
from preforkmx.session.acceptor import ACCEPTS_PER_WAKE, BACK_OFF_SECONDS, Acceptor
from preforkmx.testing import Client, running

EXHAUSTED = textwrap.dedent(
    """
    import asyncio, logging, os, resource, sys, time
    import uvloop
    from preforkmx import Server
    from preforkmx.testing import running

    class Count(logging.Handler):
        records = 0
        def emit(self, record):
            assert record.message == "cannot accept", record.message
            Count.records += 1
        def format(self, record):
            return record.getMessage()

    async def main():
        server = Server()
        logger = logging.getLogger("preforkmx.session")
        logger.addHandler(Count())
        logger.addFilter(lambda record: setattr(record, "message", record.getMessage()) or True)
        logger.propagate = False
        async with running(server) as address:
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            hoard = []
            try:
                while True:
                    hoard.append(os.dup(0))
            except OSError:
                pass
            print(address.port, flush=True)
            sys.stdin.readline()            # the clients are in the queue
            began = time.process_time()
            await asyncio.sleep(0.5)
            spent = time.process_time() - began
            for fd in hoard:
                os.close(fd)
            print(spent, Count.records, flush=True)
            async with asyncio.timeout(20):
                while server.counters.connections < 3 or server.sessions:
                    await asyncio.sleep(0.01)

    with asyncio.Runner(loop_factory=getattr(sys.modules[sys.argv[1]], "new_event_loop")) as runner:
        runner.run(main())
    """
)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_without_a_free_descriptor_accepting_rests_and_the_queue_is_served_afterwards(loop):
    child = subprocess.Popen(
        [sys.executable, "-c", EXHAUSTED, loop],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with child, contextlib.ExitStack() as cleanup:
        cleanup.callback(child.kill)
        port = int(child.stdout.readline())
        clients = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(3)]
        child.stdin.write("\n")
        child.stdin.flush()
        spent, complaints = child.stdout.readline().split()
        for client in clients:
            with client:
                assert client.recv(100).startswith(b"220 ")
        assert child.wait(timeout=10) == 0
    # 0.5 s with a rest of 0.1 s after each try: a handful of them, not a busy loop.
    assert 1 <= int(complaints) <= 7
    assert float(spent) < 0.25


def test_a_burst_beyond_one_wake_up_is_taken_whole(run):
    many = 3 * ACCEPTS_PER_WAKE + 1

    async def test():
        async with running(server) as address:
            clients = await asyncio.gather(*(Client.connect(address) for _ in range(many)))
            codes = [(await client.reply()).code for client in clients]
            for client in clients:
                await client.close()
        return codes

    server = Server()
    assert run(test()) == [220] * many
    assert server.counters.connections == many


def listening():
    sock = socket.create_server(("127.0.0.1", 0))
    return sock, Listener(f"127.0.0.1:{sock.getsockname()[1]}")


def test_a_stopped_acceptor_leaves_connections_in_the_queue_for_its_successor(run):
    """What a replaced worker does not take, the next one greets."""

    async def test():
        sock, listener = listening()
        server = Server()
        with sock:
            async with server.started():
                first = server.acceptor(sock, listener)
                first.start()
                first.stop()
                first.stop()
                async with await Client.connect(sock.getsockname(), seconds=0.1) as client:
                    with pytest.raises(TimeoutError):
                        await client.reply()
                    second = server.acceptor(sock, listener)
                    second.start()
                    second.start()
                    client.seconds = 10
                    assert (await client.reply()).code == 220
                    await client.command("QUIT")
                second.stop()

    run(test())


def test_accept_now_takes_what_is_queued_also_when_stopped(run):
    async def test():
        sock, listener = listening()
        server = Server()
        with sock:
            async with server.started():
                acceptor = server.acceptor(sock, listener)
                clients = [await Client.connect(sock.getsockname()) for _ in range(40)]
                assert server.counters.connections == 0
                acceptor.accept_now()
                assert server.counters.connections == 40
                for client in clients:
                    assert (await client.reply()).code == 220
                    await client.close()

    run(test())


def test_a_client_that_left_while_it_was_queued_is_no_trouble(run, caplog):
    async def test():
        sock, listener = listening()
        server = Server()
        with sock:
            async with server.started():
                for _ in range(10):
                    client = await Client.connect(sock.getsockname())
                    client.reset()
                    await client.close()
                acceptor = server.acceptor(sock, listener)
                acceptor.start()
                async with await Client.connect(sock.getsockname()) as client:
                    assert (await client.reply()).code == 220
                    await client.command("QUIT")
                acceptor.stop()
                async with asyncio.timeout(10):
                    await server.wait_closed()

    run(test())
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


class Exhausted:
    """A listening socket of a machine that is out of something."""

    def __init__(self, number: int) -> None:
        self.error = OSError(number, os.strerror(number))
        self.asked = 0
        self.pair = socket.socketpair()
        self.pair[0].sendall(b"somebody waits")

    def setblocking(self, _flag) -> None:
        """Take it as it is."""

    def fileno(self) -> int:
        return self.pair[1].fileno()

    def accept(self):
        self.asked += 1
        raise self.error

    def close(self) -> None:
        for end in self.pair:
            end.close()


@pytest.mark.parametrize("number", [errno.ENFILE, errno.EMFILE, errno.ENOMEM, errno.ENOBUFS])
def test_a_machine_that_is_out_of_something_is_asked_now_and_then_and_told_of_once(
    run, caplog, number
):
    async def test():
        with contextlib.closing(Exhausted(number)) as sock:
            acceptor = Acceptor(
                asyncio.get_running_loop(),
                sock,
                Listener("127.0.0.1:0"),
                lambda *_: None,
                logging.getLogger("preforkmx"),
            )
            acceptor.start()
            await asyncio.sleep(4 * BACK_OFF_SECONDS)
            acceptor.stop()
            assert 2 <= sock.asked <= 5
        assert [record.error for record in caplog.records] == [os.strerror(number)]

    run(test())


@pytest.mark.parametrize("where", ["accept", "take"])
def test_without_memory_accepting_rests_and_nobody_is_left_waiting(run, caplog, where):
    """What is out of memory goes to no handler of the loop, and does not spin."""

    async def test():
        loop = asyncio.get_running_loop()
        handled = []
        loop.set_exception_handler(lambda _loop, context: handled.append(context))
        asked = 0

        def take(connection, address, listener):
            nonlocal asked
            asked += 1
            raise MemoryError

        with contextlib.ExitStack() as stack:
            if where == "accept":
                sock = stack.enter_context(contextlib.closing(Exhausted(errno.ENOMEM)))
                sock.error = MemoryError()
            else:
                sock = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=50))
                clients = [
                    stack.enter_context(socket.create_connection(sock.getsockname(), 10))
                    for _ in range(40)
                ]
            acceptor = Acceptor(
                loop, sock, Listener("127.0.0.1:0"), take, logging.getLogger("preforkmx")
            )
            acceptor.start()
            await asyncio.sleep(4 * BACK_OFF_SECONDS)
            acceptor.stop()
            asked = asked or sock.asked
            assert 2 <= asked <= 5
            if where == "take":
                # Who was accepted is not kept in the dark.
                assert clients[0].recv(100) == b""
        assert handled == []
        assert [record.error for record in caplog.records] == [os.strerror(errno.ENOMEM)]

    run(test())


def test_a_session_for_which_there_is_no_memory_is_none(run, caplog):
    fails = [MemoryError()]

    def make_task(loop, coroutine, **options):
        if fails and coroutine.__qualname__ == "Reception._run":
            raise fails.pop()
        return asyncio.Task(coroutine, loop=loop, **options)

    async def test():
        async with running(server) as address:
            asyncio.get_running_loop().set_task_factory(make_task)
            async with await Client.connect(address) as client:
                assert await client.rest() == b""
            assert fails == []
            assert server.sessions == 0
            async with await Client.connect(address) as client:
                assert (await client.reply()).code == 220

    server = Server()
    run(test())
    assert [record.error for record in caplog.records] == [os.strerror(errno.ENOMEM)]


def test_a_socket_that_was_shut_for_all_processes_is_left_alone(run, caplog):
    async def test():
        with socket.create_server(("127.0.0.1", 0)) as sock:
            acceptor = Acceptor(
                asyncio.get_running_loop(),
                sock,
                Listener("127.0.0.1:0"),
                lambda *_: None,
                logging.getLogger("preforkmx"),
            )
            acceptor.start()
            sock.shutdown(socket.SHUT_RDWR)
            await asyncio.sleep(0.05)
            assert not acceptor._running
        assert caplog.records == []

    run(test())
