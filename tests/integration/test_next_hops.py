"""Deliveries to real servers that are killed and come back: what was acknowledged is there."""

from __future__ import annotations

import asyncio
import contextlib
import re
import smtplib
import socket
from collections import Counter
from contextlib import ExitStack
from ipaddress import ip_network
from pathlib import Path

import pytest

from preforkmx import Server
from preforkmx.delivery.discard import discard
from preforkmx.delivery.lmtp import lmtp
from preforkmx.delivery.nexthop.settings import Timeouts
from preforkmx.delivery.smtp import smtp
from preforkmx.session.listener import Listener
from preforkmx.testing import Client, Recorder, ThreadedServer, running
from tests.integration.mx import serving
from tests.integration.peers.dovecot import dovecot
from tests.integration.peers.postfix import postfix
from tests.integration.peers.smtp_sink import smtp_sink
from tests.integration.waiting import until

pytestmark = pytest.mark.integration

NUMBER = re.compile(rb"^number (\d+)\r?$", re.MULTILINE)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


class Senders:
    """Clients that send numbered messages as mail servers do: each until it is answered 250."""

    def __init__(self, address, *, recipients=("one@example.com", "two@example.com")) -> None:
        self.address = address
        self.recipients = recipients
        self.acknowledged: list[int] = []
        self.tries: Counter[int] = Counter()
        """How often a message was sent to its end without a 250 for it."""
        self.codes: Counter[int] = Counter()
        self._number = 0
        self._stopping = False

    async def until(self, count: int) -> None:
        """Wait until so many more are acknowledged."""
        target = len(self.acknowledged) + count
        async with asyncio.timeout(60):
            while len(self.acknowledged) < target:  # noqa: ASYNC110 - the clients are many
                await asyncio.sleep(0.01)

    @contextlib.asynccontextmanager
    async def sending(self, clients=5):
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._sender())
            try:
                yield self
            finally:
                self._stopping = True

    async def _sender(self) -> None:
        while not self._stopping:
            self._number += 1
            await self._send(self._number)

    async def _send(self, number: int) -> None:
        message = f"Subject: {number}\r\n\r\n.dots\r\nnumber {number}\r\n".encode() + b"x" * 3000
        while True:
            async with await Client.connect(self.address, seconds=30) as client:
                await client.hello()
                code = (await client.command("MAIL FROM:<sender@example.org>")).code
                for name in self.recipients:
                    if code == 250:
                        code = (await client.command(f"RCPT TO:<{name}>")).code
                if code == 250:
                    code = (await client.command("DATA")).code
                if code == 354:
                    code = (await client.command(message.decode() + "\r\n.")).code
                    self.tries[number] += code != 250
                self.codes[code] += 1
                await client.command("QUIT")
                assert code < 500
                if code == 250:
                    self.acknowledged.append(number)
                    return
            await asyncio.sleep(0.05)


def numbers(messages) -> Counter[int]:
    return Counter(int(match[1]) for text in messages if (match := NUMBER.search(text)))


def check(senders: Senders, stored: Counter[int]) -> None:
    """Nothing acknowledged is missing, and nothing is there twice but for an answer that was lost."""
    assert senders.acknowledged
    missing = [number for number in senders.acknowledged if not stored[number]]
    assert not missing
    doubled = {n: count for n, count in stored.items() if count > 1 + senders.tries[n]}
    assert not doubled


def test_dovecot_killed_and_started_again_under_load_has_what_was_acknowledged():
    async def test(site):
        server = Server(
            hostname="mx.example.com",
            handler=lmtp(
                [f"127.0.0.1:{site.port}"],
                hostname="mx.example.com",
                timeouts=Timeouts(data=5, end=5),
            ),
        )
        async with running(server) as address:
            senders = Senders(address)
            async with senders.sending():
                await senders.until(30)
                for _ in range(2):
                    await asyncio.to_thread(site.kill)
                    await asyncio.sleep(0.2)
                    await asyncio.to_thread(site.start)
                    await senders.until(30)
        return senders

    with dovecot(free_port()) as site:
        senders = asyncio.run(test(site))
        for name in senders.recipients:
            check(senders, numbers(site.messages(name)))
        assert senders.codes[451]


def test_dovecot_s_mixed_answers_neither_lose_nor_double(tmp_path):
    """One mailbox of three cannot be written for a while."""
    names = ("one@example.com", "two@example.com", "three@example.com")

    async def test(site):
        server = Server(
            hostname="mx.example.com",
            handler=lmtp([f"unix:{site.socket}"], hostname="mx.example.com"),
        )
        mailbox = site.folder / "mail" / "two@example.com"
        async with running(server) as address:
            senders = Senders(address, recipients=names)
            async with senders.sending(clients=3):
                await senders.until(10)
                mode = mailbox.stat().st_mode
                mailbox.chmod(0)
                async with asyncio.timeout(30):
                    while senders.codes[451] < 6:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                mailbox.chmod(mode)
                await senders.until(10)
        return senders

    with dovecot(free_port()) as site:
        senders = asyncio.run(test(site))
        for name in names:
            stored = numbers(site.messages(name))
            assert set(senders.acknowledged) <= set(stored)
            # No answer was lost here, so there is no excuse for a second copy: but for Dovecot,
            # whose mailbox is closed while it writes, and may have written before it says 451.
            excused = senders.tries if name == "two@example.com" else Counter()
            assert not {n: count for n, count in stored.items() if count > 1 + excused[n]}


@pytest.mark.parametrize("options", [(), ("-L",)], ids=["smtp", "lmtp"])
def test_smtp_sink_killed_and_started_again_under_load_has_what_was_acknowledged(options):
    make = lmtp if options else smtp

    async def test(sink):
        address = f"127.0.0.1:{sink.port}"
        server = Server(hostname="mx.example.com", handler=make([address], hostname="mx"))
        async with running(server) as place:
            senders = Senders(place)
            async with senders.sending():
                for _ in range(2):
                    await senders.until(50)
                    await asyncio.to_thread(sink.kill)
                    await asyncio.sleep(0.1)
                    await asyncio.to_thread(sink.start)
                await senders.until(50)
        return senders

    with smtp_sink(free_port(), *options) as sink:
        senders = asyncio.run(test(sink))
        check(senders, numbers(sink.messages()))


def test_postfix_killed_and_started_again_under_load_has_what_was_acknowledged():
    async def test(hop):
        server = Server(
            hostname="mx.example.com", handler=smtp([f"127.0.0.1:{hop.port}"], hostname="mx")
        )
        async with running(server) as place:
            async with await Client.connect(place) as client:
                await client.hello()
                await client.command("MAIL FROM:<sender@example.org>")
                reply = await client.command("RCPT TO:<nobody@example.com>")
                assert reply.code == 554
                assert "nobody@example.com" in reply.text
            senders = Senders(place)
            async with senders.sending():
                for _ in range(2):
                    await senders.until(30)
                    await asyncio.to_thread(hop.kill)
                    await asyncio.to_thread(hop.start)
                await senders.until(30)
        return senders

    with postfix(free_port()) as hop:
        senders = asyncio.run(test(hop))
        wanted = set(senders.acknowledged)
        # What its killed daemons had in work is delivered again, by Postfix's own rules.
        until(lambda: wanted <= set(numbers(hop.messages())), hop)
        assert senders.codes[451]


def test_postfix_in_front_and_dovecot_behind_deliver_each_copy_once():
    """Postfix tries again after a 451 for three recipients of whom two have the message."""
    names = ("one@example.com", "two@example.com", "three@example.com")
    with ExitStack() as stack:
        site = stack.enter_context(dovecot(free_port()))
        server = Server(
            hostname="mx.example.com", handler=lmtp([f"unix:{site.socket}"], hostname="mx")
        )
        between = stack.enter_context(ThreadedServer(server))
        front = stack.enter_context(postfix(free_port(), relay_to=between.port))

        def send(first: int, last: int) -> None:
            with smtplib.SMTP("127.0.0.1", front.port) as client:
                for number in range(first, last):
                    text = f"Subject: {number}\r\n\r\nnumber {number}\r\n"
                    assert client.sendmail("sender@example.org", names, text) == {}

        def have(name: str, count: int) -> bool:
            return len(numbers(site.messages(name))) >= count

        send(0, 2)
        # Dovecot has a message in its place before it has said so.
        until(lambda: front.log.count(": removed") == 2, front)
        mailbox = site.folder / "mail" / "two@example.com"
        mode = mailbox.stat().st_mode
        mailbox.chmod(0)
        send(2, 6)
        until(lambda: have(names[0], 6) and have(names[2], 6), front)
        # A second try at least.
        until(lambda: front.log.count("status=deferred") > 3 * 4, front)
        mailbox.chmod(mode)
        until(lambda: all(have(name, 6) for name in names), front)
        until(lambda: front.log.count(": removed") == 6, front)
        for name in names:
            assert numbers(site.messages(name)) == Counter(range(6)), name


@pytest.mark.parametrize("protocol", ["smtp", "lmtp"])
def test_a_configured_server_hands_on_to_another_one(tmp_path, protocol):
    """Both are preforkmx: workers in front, and a server that speaks SMTP or LMTP behind."""
    with (
        serving(
            tmp_path / "behind",
            f'[[listener]]\naddress = "127.0.0.1:0"\nprotocol = "{protocol}"\n',
            workers=1,
        ) as behind,
        serving(
            tmp_path / "front",
            f'[delivery]\nuse = "{protocol}"\nservers = ["127.0.0.1:{behind.ports[0]}"]\n',
        ) as front,
    ):

        async def test():
            senders = Senders(("127.0.0.1", front.ports[0]), recipients=("box@example.com",))
            async with senders.sending():
                await senders.until(50)
            return senders

        senders = asyncio.run(test())
        stored = numbers(path.read_bytes() for path in behind.delivered())
        check(senders, stored)
        assert senders.codes.keys() == {250}


def test_100_mb_hold_less_than_2_mib(tmp_path):
    megabytes = 100
    line = b"x" * 998 + b"\r\n"
    with (
        smtp_sink(free_port(), keep=False) as sink,
        serving(
            tmp_path,
            '[limits]\nmessage_size = "200MiB"\n'
            f'[delivery]\nuse = "smtp"\nservers = ["127.0.0.1:{sink.port}"]\n',
            workers=1,
        ) as mx,
    ):
        process = Path(f"/proc/{mx.pids()[0]}")

        def peak() -> int:
            text = (process / "status").read_text()
            return int(re.search(r"VmHWM:\s+(\d+) kB", text)[1]) * 1024

        async def send(count: int) -> None:
            async with await Client.connect(("127.0.0.1", mx.ports[0]), seconds=60) as client:
                await client.hello()
                await client.command("MAIL FROM:<a@example.org>")
                await client.command("RCPT TO:<b@example.com>")
                await client.command("DATA")
                for _ in range(count):
                    await client.send(line * 100)
                assert (await client.command(".")).code == 250
                await client.command("QUIT")

        # Buffers that the allocator keeps belong to nobody's message.
        asyncio.run(send(20))
        (process / "clear_refs").write_text("5")
        before = peak()
        asyncio.run(send(megabytes * 10))
        assert peak() - before < 2 * 1024 * 1024


def test_the_next_hop_learns_of_the_client_with_xclient_and_proxy():
    for forward, listen in (
        ("xclient", {"xclient_from": ("127.0.0.0/8",)}),
        ("proxy", {"proxy_protocol": True, "proxy_from": ("127.0.0.0/8",)}),
    ):
        asyncio.run(_forwarded(forward, listen))


async def _forwarded(forward, listen):
    recorder = Recorder()
    behind = Server(hostname="behind", handler=discard())
    behind.use(recorder)
    networks = {
        key: tuple(map(ip_network, value)) if isinstance(value, tuple) else value
        for key, value in listen.items()
    }
    port = free_port()
    behind.listen(Listener(f"127.0.0.1:{port}", **networks))
    front = Server(
        hostname="front", handler=smtp([f"127.0.0.1:{port}"], hostname="front", forward=forward)
    )
    async with behind, running(front) as address:
        for name in ("first.example", "second.example"):
            async with await Client.connect(address) as client:
                local = client.writer.get_extra_info("sockname")
                await client.hello(name)
                assert (await client.deliver(b"x\r\n", sender="a@example.org")).code == 250
                await client.command("QUIT")
            message = recorder.messages[-1]
            assert (str(message.peer.address), message.peer.port) == local
            if forward == "xclient":
                assert message.peer.helo_name == "front"
        assert len(recorder.messages) == 2
