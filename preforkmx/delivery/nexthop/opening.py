"""From an address to a link that takes MAIL: connection, greeting, EHLO, TLS, AUTH."""

from __future__ import annotations

import asyncio
import base64
import ssl
from typing import TYPE_CHECKING

from preforkmx.delivery.nexthop.client import Client
from preforkmx.delivery.nexthop.errors import LinkLost, NextHopError, NoConnection, NotReady
from preforkmx.delivery.nexthop.link import HIGH_WATER, Link
from preforkmx.delivery.nexthop.proxy import proxy_header, xclient

if TYPE_CHECKING:
    from preforkmx.delivery.nexthop.servers import Server
    from preforkmx.delivery.nexthop.settings import Settings
    from preforkmx.model import Peer

TLS_SHUTDOWN_SECONDS = 3.0


class _HandshakeFailed(NextHopError):
    """No TLS with this server."""


def tls_context(
    *, verify: bool, ca: str | None = None, certificate: str | None = None, key: str | None = None
) -> ssl.SSLContext:
    """Return the context of the links.

    :param verify: the certificate must be of an authority that is trusted, and for the
        server's name; else any certificate will do, and protects from listeners only.
    :param ca: a file of authorities instead of the system's.
    :param certificate: of this server, for a next hop that asks for one; with its `key`.
    :raises OSError: a file cannot be read, or holds something else (:class:`ssl.SSLError`).
    """
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


async def open_link(server: Server, settings: Settings, peer: Peer | None, until: float) -> Link:
    """Return a link that is ready for MAIL.

    :param peer: the client that a PROXY header names, where settings have it.
    :param until: when it must be ready, on the loop's clock.
    :raises NextHopError: there is none.
    """
    try:
        return await _Opening(server, settings, peer, until).run(tls=settings.tls != "off")
    except _HandshakeFailed:
        if settings.tls != "may":
            raise
        # RFC 7435: what is encrypted only where it is possible goes on in plain text.
        return await _Opening(server, settings, peer, until).run(tls=False)


async def introduce(link: Link, settings: Settings, peer: Peer) -> None:
    """Tell the server with XCLIENT who the client is, if it takes that and was not told yet.

    :raises NextHopError: it answers with something else.
    """
    if "XCLIENT" not in link.client.offers:
        return
    line = xclient(peer, link.client.offers)
    if line is None or line == link.about:
        return
    loop = asyncio.get_running_loop()
    until = loop.time() + settings.timeouts.greeting
    link.client.xclient(line)
    reply = await link.reply(settings.timeouts.greeting)
    if reply.kind >= 4:
        raise NotReady(f"XCLIENT was answered with {reply}")
    await _hello(link, settings, until)
    link.about = line


async def _hello(link: Link, settings: Settings, until: float) -> None:
    loop = asyncio.get_running_loop()
    link.client.hello(settings.hostname)
    reply = await link.reply(max(0.0, until - loop.time()))
    if reply.kind == 5 and not settings.lmtp and link.client.alive:
        # RFC 5321 section 3.2: a server may know no EHLO.
        link.client.hello(settings.hostname, old=True)
        reply = await link.reply(max(0.0, until - loop.time()))
    if reply.kind >= 4:
        raise NotReady(f"it does not greet: {reply}")


class _Opening:
    def __init__(self, server: Server, settings: Settings, peer: Peer | None, until: float) -> None:
        self._server = server
        self._settings = settings
        self._peer = peer
        self._until = until
        self._loop = asyncio.get_running_loop()

    def _at_most(self, seconds: float) -> float:
        return max(0.0, min(seconds, self._until - self._loop.time()))

    async def run(self, *, tls: bool) -> Link:
        settings = self._settings
        link = await self._connect()
        try:
            if settings.forward == "proxy":
                assert link.transport is not None
                link.transport.write(proxy_header(self._peer))
                link.about = self._peer
            await self._greeted(link)
            await self._hello(link)
            if tls:
                await self._encrypt(link)
            if settings.credentials is not None:
                await self._authenticate(link)
        except BaseException:
            link.abort()
            raise
        return link

    async def _connect(self) -> Link:
        server, loop = self._server, self._loop
        link = Link(Client(lmtp=self._settings.lmtp), server)
        try:
            async with asyncio.timeout(self._at_most(self._settings.timeouts.connect)):
                if server.unix:
                    await loop.create_unix_connection(lambda: link, server.host)
                else:
                    await loop.create_connection(lambda: link, server.host, server.port)
        except TimeoutError as error:
            link.abort()
            raise NoConnection("no connection in time") from error
        except OSError as error:
            raise NoConnection(f"no connection: {error.strerror or error}") from error
        return link

    async def _greeted(self, link: Link) -> None:
        reply = await link.reply(self._at_most(self._settings.timeouts.greeting))
        if reply.kind >= 4:
            raise NotReady(f"it greets with {reply}")

    async def _encrypt(self, link: Link) -> None:
        settings, client = self._settings, link.client
        if "STARTTLS" not in client.offers:
            if settings.tls != "may":
                raise NotReady("it offers no STARTTLS")
            return
        client.starttls()
        reply = await link.reply(self._at_most(settings.timeouts.greeting))
        if reply.kind >= 4:
            if settings.tls != "may":
                raise NotReady(f"STARTTLS was answered with {reply}")
            return
        await self._shake_hands(link)
        client.tls_started()
        link.verified = settings.tls == "verify"
        await self._hello(link)

    async def _hello(self, link: Link) -> None:
        seconds = self._at_most(self._settings.timeouts.greeting)
        await _hello(link, self._settings, self._loop.time() + seconds)

    async def _shake_hands(self, link: Link) -> None:
        settings, server = self._settings, self._server
        assert settings.context is not None
        assert link.transport is not None
        if link.transport.is_closing():
            raise LinkLost("the server closed the connection")
        name = settings.tls_name or (None if server.unix else server.host)
        try:
            transport = await self._loop.start_tls(
                link.transport,
                link,
                settings.context,
                server_hostname=name,
                ssl_handshake_timeout=max(0.001, self._at_most(settings.timeouts.connect)),
                ssl_shutdown_timeout=TLS_SHUTDOWN_SECONDS,
            )
        except (OSError, ValueError) as error:
            # A ValueError: no name to compare the certificate with.
            raise _HandshakeFailed(f"no TLS: {error}") from error
        if transport is None:
            raise _HandshakeFailed("no TLS: the server closed the connection")
        link.transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER)

    async def _authenticate(self, link: Link) -> None:
        settings, client = self._settings, link.client
        credentials = settings.credentials
        assert credentials is not None
        if not client.tls and not self._server.private:
            raise NotReady("the password is not sent in plain text, and there is no TLS")
        offered = client.offers.arguments("AUTH")
        user, password = credentials.user.encode(), credentials.password.encode()
        if "PLAIN" in offered:
            # RFC 4616; with the initial response (RFC 4954 section 4).
            response = b"\0" + user + b"\0" + password
            steps = [f"AUTH PLAIN {_base64(response)}"]
        elif "LOGIN" in offered:
            steps = ["AUTH LOGIN", _base64(user), _base64(password)]
        else:
            raise NotReady("it offers neither AUTH PLAIN nor LOGIN")
        for number, step in enumerate(steps, 1):
            client.auth(step)
            reply = await link.reply(self._at_most(settings.timeouts.greeting))
            if reply.code != (235 if number == len(steps) else 334):
                raise NotReady(f"AUTH was answered with {reply}")


def _base64(octets: bytes) -> str:
    return base64.b64encode(octets).decode("ascii")
