"""Reading a PROXY header from a socket: all of it, and nothing behind it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import time
from ipaddress import ip_address

import pytest

from preforkmx.errors import ProxyError
from preforkmx.protocol.proxy import V2_SIGNATURE, ProxyInfo
from preforkmx.session.proxy import read_proxy_header

SOURCE = (ip_address("192.0.2.1"), 40000)
DESTINATION = (ip_address("198.51.100.7"), 25)
LINE = b"PROXY TCP4 192.0.2.1 198.51.100.7 40000 25\r\n"
BINARY = V2_SIGNATURE + bytes.fromhex("21 11 000c c0000201 c6336407 9c40 0019")
WITH_TLVS = V2_SIGNATURE + bytes.fromhex(
    "21 11 0018 c0000201 c6336407 9c40 0019 020006 0a500d0a0d0a 040000"
)
HEADERS = {
    "v1": LINE,
    "v1 unknown": b"PROXY UNKNOWN\r\n",
    "v1 longest": b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n",
    "v2": BINARY,
    "v2 with TLVs": WITH_TLVS,
    "v2 local": V2_SIGNATURE + bytes.fromhex("20 00 0000"),
}
BEHIND = {
    "nothing": b"",
    "a ClientHello": bytes.fromhex("16 0301 0205 01 000201 0303") + b"\n\r\n" * 40,
    "EHLO": b"EHLO client.example\r\nQUIT\r\n",
    "a second header": LINE + BINARY,
}

each_header = pytest.mark.parametrize("header", HEADERS.values(), ids=list(HEADERS))
each_follower = pytest.mark.parametrize("behind", BEHIND.values(), ids=list(BEHIND))


@contextlib.contextmanager
def unix_pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


@contextlib.contextmanager
def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ours, _ = server.accept()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


@pytest.fixture(params=[unix_pair, tcp_pair], ids=["unix", "tcp"])
def pair(request):
    return request.param


class Counting:
    """A socket that counts what is read from it."""

    def __init__(self, sock):
        self._sock = sock
        self.calls = 0

    def fileno(self):
        return self._sock.fileno()

    def recv(self, *arguments):
        self.calls += 1
        return self._sock.recv(*arguments)


async def rest_of(sock, theirs):
    """What is still readable on `sock` once its peer has shut down its side."""
    theirs.shutdown(socket.SHUT_WR)
    loop = asyncio.get_running_loop()
    read = b""
    while octets := await loop.sock_recv(sock, 65536):
        read += octets
    return read


async def consumed(theirs, sock, octets):
    """Send `octets`, and wait until they were read from `sock`."""
    theirs.sendall(octets)
    async with asyncio.timeout(10):
        while True:
            await asyncio.sleep(0)
            try:
                sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return


def unwatched(loop, fd):
    """Whether nobody watches `fd`; remove_reader says whether it removed something."""
    return not loop.remove_reader(fd)


@each_header
@each_follower
def test_a_whole_header_is_read_and_what_follows_it_is_not(run, pair, header, behind):
    async def test():
        loop = asyncio.get_running_loop()
        with pair() as (ours, theirs):
            theirs.sendall(header + behind)
            async with asyncio.timeout(10):
                info = await read_proxy_header(loop, ours)
                assert await rest_of(ours, theirs) == behind
        return info

    assert isinstance(run(test()), ProxyInfo)


def test_what_the_header_says_is_returned(run, pair):
    async def test(header):
        with pair() as (ours, theirs):
            theirs.sendall(header)
            return await read_proxy_header(asyncio.get_running_loop(), ours)

    assert run(test(LINE)) == ProxyInfo(1, source=SOURCE, destination=DESTINATION)
    info = run(test(WITH_TLVS))
    assert (info.source, info.destination) == (SOURCE, DESTINATION)
    assert info.tlvs == ((2, b"\nP\r\n\r\n"), (4, b""))


@each_header
def test_a_header_split_at_any_octet_is_read_to_its_end(run, pair, header):
    behind = BEHIND["a ClientHello"]

    async def test():
        loop = asyncio.get_running_loop()
        for cut in range(1, len(header)):
            with pair() as (ours, theirs):
                task = loop.create_task(read_proxy_header(loop, ours))
                await consumed(theirs, ours, header[:cut])
                assert not task.done()
                theirs.sendall(header[cut:] + behind)
                async with asyncio.timeout(10):
                    assert isinstance(await task, ProxyInfo)
                    assert await rest_of(ours, theirs) == behind
                assert unwatched(loop, ours.fileno())

    run(test())


@each_header
def test_a_header_may_come_octet_by_octet(run, pair, header):
    async def test():
        loop = asyncio.get_running_loop()
        with pair() as (ours, theirs):
            task = loop.create_task(read_proxy_header(loop, ours))
            for octet in header[:-1]:
                await consumed(theirs, ours, bytes([octet]))
                assert not task.done()
            theirs.sendall(header[-1:] + b"EHLO")
            async with asyncio.timeout(10):
                assert isinstance(await task, ProxyInfo)
                assert await rest_of(ours, theirs) == b"EHLO"

    run(test())


@pytest.mark.parametrize("begin", [b"", LINE[:30], BINARY[:14], BINARY[:20]])
def test_waiting_for_the_rest_costs_nothing(run, pair, begin):
    async def test():
        loop = asyncio.get_running_loop()
        with pair() as (ours, theirs):
            counting = Counting(ours)
            task = loop.create_task(read_proxy_header(loop, counting))
            if begin:
                await consumed(theirs, ours, begin)
            for _ in range(3):
                await asyncio.sleep(0)
            calls, spent = counting.calls, time.process_time()
            await asyncio.sleep(0.2)
            assert counting.calls == calls
            assert time.process_time() - spent < 0.15
            task.cancel()
            await asyncio.wait([task])

    run(test())


def test_a_length_that_is_too_large_ends_it_before_the_rest_drips_in(run, pair):
    async def test():
        loop = asyncio.get_running_loop()
        with pair() as (ours, theirs):
            task = loop.create_task(read_proxy_header(loop, ours))
            await consumed(theirs, ours, V2_SIGNATURE + b"\x21\x11\xff")
            theirs.sendall(b"\xff")
            async with asyncio.timeout(10):
                with pytest.raises(ProxyError, match="65535 octets") as caught:
                    await task
            assert not caught.value.closed
            assert unwatched(loop, ours.fileno())

    run(test())


def test_the_largest_header_may_drip_in(run, pair):
    rest = bytes(16384)

    async def test():
        loop = asyncio.get_running_loop()
        with pair() as (ours, theirs):
            task = loop.create_task(read_proxy_header(loop, ours))
            await consumed(theirs, ours, V2_SIGNATURE + b"\x20\x00\x40\x00")
            for begin in range(0, 16383, 1000):
                await consumed(theirs, ours, rest[begin : min(begin + 1000, 16383)])
            assert not task.done()
            theirs.sendall(b"\0EHLO")
            async with asyncio.timeout(10):
                assert await task == ProxyInfo(2, local=True)
                assert await rest_of(ours, theirs) == b"EHLO"

    run(test())


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"EHLO client.example\r\n", "does not begin like"),
        (b"\x16\x03\x01", "does not begin like"),
        (b"PROXY TCP4 192.0.2.1 198.51.100.7 40000 0123\r\nEHLO", "a port is not"),
        (b"PROXY TCP4 ::1 ::1 40000 25\r\nEHLO", "not an IPv4 address"),
        (b"PROXY TCP4 192.0.2.1 198.51.100.7 40000 25\nEHLO a\r\n", "does not end with CRLF"),
        (b"PROXY UNKNOWN " + b"x" * 200, "no CRLF within 107"),
        (V2_SIGNATURE + bytes.fromhex("21 12 000c") + bytes(12), "not a stream"),
    ],
)
def test_a_bad_header_is_an_error(run, pair, octets, reason):
    async def test():
        loop = asyncio.get_running_loop()
        with pair() as (ours, theirs):
            theirs.sendall(octets)
            async with asyncio.timeout(10):
                with pytest.raises(ProxyError, match=reason) as caught:
                    await read_proxy_header(loop, ours)
            assert not caught.value.closed
            assert unwatched(loop, ours.fileno())

    run(test())


@pytest.mark.parametrize(
    ("begin", "reason"),
    [
        (b"", "without a header"),
        (LINE[:5], "after 5 octets"),
        (LINE[:-1], f"after {len(LINE) - 1} octets"),
        (BINARY[:12], "after 12 octets"),
        (BINARY[:27], "after 27 octets"),
    ],
)
@pytest.mark.parametrize("before", [True, False], ids=["at once", "while we wait"])
def test_a_peer_that_closes_early_is_an_error(run, pair, begin, reason, before):
    async def test():
        loop = asyncio.get_running_loop()
        with pair() as (ours, theirs):
            if before:
                theirs.sendall(begin)
                theirs.close()
            task = loop.create_task(read_proxy_header(loop, ours))
            if not before:
                await asyncio.sleep(0)
                if begin:
                    await consumed(theirs, ours, begin)
                theirs.close()
            async with asyncio.timeout(10):
                with pytest.raises(ProxyError, match=reason) as caught:
                    await task
            assert caught.value.closed
            assert unwatched(loop, ours.fileno())

    run(test())


def test_a_connection_that_is_reset_is_an_error(run):
    async def test():
        loop = asyncio.get_running_loop()
        with tcp_pair() as (ours, theirs):
            task = loop.create_task(read_proxy_header(loop, ours))
            await consumed(theirs, ours, LINE[:20])
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            theirs.close()
            async with asyncio.timeout(10):
                with pytest.raises(ProxyError, match="broke") as caught:
                    await task
            assert caught.value.closed
            assert unwatched(loop, ours.fileno())

    run(test())


@pytest.mark.parametrize("begin", [b"", LINE[:30], BINARY[:12], BINARY[:20]])
def test_when_it_is_cancelled_the_socket_is_no_longer_watched(run, pair, begin):
    async def test():
        loop = asyncio.get_running_loop()
        with pair() as (ours, theirs):
            task = loop.create_task(read_proxy_header(loop, ours))
            await asyncio.sleep(0)
            if begin:
                await consumed(theirs, ours, begin)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert unwatched(loop, ours.fileno())

    run(test())


def test_the_callers_deadline_ends_it(run, pair):
    async def test():
        loop = asyncio.get_running_loop()
        with pair() as (ours, theirs):
            theirs.sendall(LINE[:20])
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await read_proxy_header(loop, ours)
            assert unwatched(loop, ours.fileno())

    run(test())


@pytest.mark.parametrize("header", [LINE, WITH_TLVS], ids=["v1", "v2"])
@pytest.mark.parametrize("split", [True, False], ids=["header first", "one segment"])
def test_a_tls_handshake_follows_the_header(run, server_tls, client_tls, header, split):
    """The ClientHello is in the header's segment, and the transport gets it whole."""

    class Greeter(asyncio.Protocol):
        def connection_made(self, transport):
            transport.write(b"220 over TLS\r\n")
            transport.close()

    def client(address):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client_tls.wrap_bio(incoming, outgoing, server_hostname="localhost")
        with socket.create_connection(address, timeout=10) as sock:
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
            hello = outgoing.read()
            if split:
                sock.sendall(header)
                sock.sendall(hello)
            else:
                sock.sendall(header + hello)
            while True:
                try:
                    return tls.read(100)
                except ssl.SSLWantReadError:
                    if answer := outgoing.read():
                        sock.sendall(answer)
                    incoming.write(sock.recv(65536))

    async def test():
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setblocking(False)
            reading = asyncio.create_task(asyncio.to_thread(client, server.getsockname()))
            async with asyncio.timeout(10):
                ours, _ = await loop.sock_accept(server)
                info = await read_proxy_header(loop, ours)
                await loop.connect_accepted_socket(
                    Greeter, ours, ssl=server_tls, ssl_handshake_timeout=5
                )
                assert info.source == SOURCE
                return await reading

    assert run(test()) == b"220 over TLS\r\n"
