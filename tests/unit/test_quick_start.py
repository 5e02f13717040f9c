"""The relay of the README and that of the guide do the same, in front of a real next hop."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import re
import socket
import ssl
import sys
from pathlib import Path

import pytest

from preforkmx import Server, SMTPError
from preforkmx.app.demo_files import make_certificate
from preforkmx.app.site import Site
from preforkmx.dns import Resolver
from preforkmx.middleware import lookups
from preforkmx.session.listener import Listener
from preforkmx.testing import Client, Recorder, running
from preforkmx.workers.seat import WorkerSeat
from tests.unit.dns.name_server import NameServer

ROOT = Path(__file__).parents[2]
NEXT_HOP = "192.0.2.10:25"
MESSAGE = b"Subject: hello\r\n\r\nIt works.\r\n"


def block(file, language, heading):
    section = (ROOT / file).read_text("utf-8").partition(f"## {heading}\n")[2]
    return re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)[1]


def ten_lines():
    return block("README.md", "python", "A relay in ten lines")


def from_the_readme(next_hop, name_server, monkeypatch):
    class Ours(Resolver):
        def __init__(self):
            super().__init__([name_server])

    # The system's resolver is the machine's, and asks the internet.
    monkeypatch.setattr(lookups, "Resolver", Ours)
    site = {"__name__": "relay"}
    exec(ten_lines().replace(NEXT_HOP, next_hop), site)
    return site["server"]


def from_the_guide(next_hop, name_server, monkeypatch):
    del monkeypatch
    text = block("docs/how-to/hand-mail-on.md", "toml", "A relay with checks in front")
    assert NEXT_HOP in text
    path = Path("preforkmx.toml")
    path.write_text(text.replace(NEXT_HOP, next_hop))
    environ = {
        "PREFORKMX_STATE__URL": "local:",
        "PREFORKMX_DNS__SERVERS": f'["{name_server}"]',
        "PREFORKMX_ADMIN__CONTROL": "control.sock",
    }
    return Site.read(path, None, environ).build_server(WorkerSeat(slot=0, count=1, generation=1))


@contextlib.asynccontextmanager
async def client_from(server, host):
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    server.take(theirs, (host, 50_000), Listener("127.0.0.1:25"))
    reader, writer = await asyncio.open_connection(sock=ours)
    async with Client(reader, writer) as client:
        yield client


@pytest.mark.parametrize("make", [from_the_readme, from_the_guide])
def test_the_relay_limits_requires_tls_checks_spf_and_hands_on(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_certificate(tmp_path / "fullchain.pem", tmp_path / "privkey.pem")
    trusting = ssl.create_default_context(cafile=tmp_path / "fullchain.pem")
    next_hop = Recorder()

    async def test():
        async with (
            NameServer() as names,
            running(Server(hostname="mail.example.com", handler=next_hop)) as address,
        ):
            names.add('good.example.org. 300 IN TXT "v=spf1 ip4:203.0.113.1 -all"')
            names.add('bad.example.org. 300 IN TXT "v=spf1 -all"')
            server = make(f"{address.host}:{address.port}", names.address, monkeypatch)
            async with server.started():
                await converse(server)

    async def converse(server):
        async with client_from(server, "203.0.113.1") as client:
            await client.hello()
            assert (await client.command("MAIL FROM:<joe@good.example.org>")).code == 530
            assert (await client.starttls(trusting)).code == 220
            await client.command("EHLO client.example")
            refused = await client.command("MAIL FROM:<joe@bad.example.org>")
            assert (refused.code, refused.text[:6]) == (550, "5.7.23")
            assert (await client.command("MAIL FROM:<joe@good.example.org>")).code == 250
            assert (await client.command("RCPT TO:<ann@example.net>")).code == 550
            await client.command("RSET")
            taken = await client.deliver(
                MESSAGE, sender="joe@good.example.org", recipients=["ann@example.com"]
            )
            assert taken.code == 250
            next_hop.refuse("check_recipient", SMTPError(550, "Ann has left", enhanced=(5, 1, 1)))
            assert (await client.command("MAIL FROM:<joe@good.example.org>")).code == 250
            refused = await client.command("RCPT TO:<ann@example.com>")
            assert (refused.code, refused.text) == (550, "5.1.1 Ann has left")
        greetings = []
        # Each second earns one more, so how many it takes is the machine's to say.
        while 421 not in greetings and len(greetings) < 100:
            async with client_from(server, "203.0.113.1") as client:
                greetings.append((await client.reply()).code)
        assert greetings[:9] == [220] * 9
        assert greetings[-1] == 421

    asyncio.run(test())
    [message] = next_hop.messages
    assert (message.sender, message.recipients) == ("joe@good.example.org", ("ann@example.com",))
    assert b"\r\nReceived-SPF: pass" in message.octets
    assert message.octets.endswith(MESSAGE)


def test_they_are_ten_lines():
    # Logical lines: the formatter may break one in two.
    assert len(ast.parse(ten_lines()).body) == 10


def test_the_application_is_one_for_serve(tmp_path, monkeypatch):
    """``preforkmx serve --app relay:server``: its port is the configuration's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    make_certificate(tmp_path / "fullchain.pem", tmp_path / "privkey.pem")
    Path("relay.py").write_text(ten_lines())
    Path("preforkmx.toml").write_text(
        '[[listener]]\naddress = "127.0.0.1:2525"\n[admin]\ncontrol = "control.sock"\n'
    )
    try:
        Site.read(Path("preforkmx.toml"), "relay:server", {}).check()
    finally:
        sys.modules.pop("relay", None)
