"""The links of one worker to a next hop: kept, lent to transactions, and bounded.

A transaction holds its link from MAIL to its end. A client that leaves its transaction alone would
keep a link from others, so one that has waited for its client for a while can lose it: it gets
another when it goes on, and says its envelope again there.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Protocol

from preforkmx.delivery.nexthop.errors import AllAway, LinkLost, NextHopError, NoReply, NotReady
from preforkmx.delivery.nexthop.opening import open_link
from preforkmx.delivery.nexthop.servers import Server

if TYPE_CHECKING:
    from collections.abc import Iterable

    from preforkmx.delivery.nexthop.link import Link
    from preforkmx.delivery.nexthop.settings import Settings
    from preforkmx.model import Peer

logger = logging.getLogger(__name__)

LEND_SECONDS = 5.0
"""How long a transaction may wait for its client and keep a link that another one needs."""
LOOK_SECONDS = 0.5
"""How often who waits for a link looks for one that may be taken."""
FIRST_LOOK_SECONDS = 2.0
"""How long a worker that starts waits to hear what the servers offer."""


class Holder(Protocol):
    """Who was lent a link."""

    @property
    def waiting_since(self) -> float | None:
        """Since when it waits for its client, on the loop's clock; None: it uses its link."""

    def take_link(self) -> Link:
        """Take its link away: it gets another one when it goes on."""


class Pool:
    """Lends links.

    :param addresses: of the servers, the one to prefer first.
    """

    def __init__(self, addresses: Iterable[str], settings: Settings) -> None:
        self.servers = tuple(map(Server, addresses))
        self.settings = settings
        self._idle: dict[Server, deque[Link]] = {server: deque() for server in self.servers}
        self._lent: dict[Link, Holder] = {}
        # They have said QUIT.
        self._leaving: set[Link] = set()
        self._opening = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._probes: dict[Server, asyncio.Task[None]] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    # --- the life of a worker -------------------------------------------------------------------

    async def start(self) -> None:
        """Look once at every server, so that its offers are known to the first client."""
        self._closed = False
        self._loop = asyncio.get_running_loop()
        for server in self.servers:
            self._probe(server)
        await asyncio.wait(self._probes.values(), timeout=FIRST_LOOK_SECONDS)

    async def close(self) -> None:
        """Close every link."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        probes = list(self._probes.values())
        for probe in probes:
            probe.cancel()
        if probes:
            await asyncio.wait(probes)
        for links in self._idle.values():
            while links:
                link = links.pop()
                link.when_lost = None
                link.close(linger=False)
        for link in [*self._lent, *self._leaving]:
            link.abort()

    @property
    def links(self) -> int:
        """Links that are open or being opened."""
        return self._opening + len(self._lent) + sum(map(len, self._idle.values()))

    # --- lending --------------------------------------------------------------------------------

    async def acquire(self, holder: Holder, peer: Peer) -> Link:
        """Lend a link; :meth:`release` takes it back.

        Its client is ``reusable``: it takes MAIL, after RSET where its ``in_transaction`` says so.

        :raises AllAway: no server can be used, or no link became free in time.
        """
        until = self._loop.time() + self.settings.patience
        while True:
            link = self._kept()
            if link is None:
                if self.links < self.settings.connections or self._evict() or self._steal():
                    link = await self._open(peer, until)
                else:
                    await self._wait_for_one(until)
                    continue
            self._lent[link] = holder
            link.transactions += 1
            return link

    def release(self, link: Link) -> None:
        """Take a link back: to be lent again if nothing speaks against it."""
        self._lent.pop(link, None)
        if (
            self._closed
            or link.lost
            or not link.client.reusable
            or link.transactions >= self.settings.reuse
            or self.settings.forward == "proxy"
            # Nobody can tell it of another client.
            or (link.about is not None and "XCLIENT" not in link.client.offers)
            or self.settings.idle <= 0
        ):
            self._drop(link)
        else:
            link.idle_since = self._loop.time()
            link.when_lost = self._lost_while_idle
            self._idle[link.server].append(link)
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(self.settings.idle, self._sweep)
        self._next_in_line()

    def discard(self, link: Link) -> None:
        """Take a link back that is of no more use, and close it at once."""
        self._lent.pop(link, None)
        link.abort()
        self._next_in_line()

    def _drop(self, link: Link) -> None:
        link.when_lost = self._leaving.discard
        if not link.lost:
            self._leaving.add(link)
            # No more than there are links: a server that is slow to close costs no more sockets.
            few = len(self._leaving) <= self.settings.connections
            link.close(linger=few and not self._closed)

    def _kept(self) -> Link | None:
        """Return a link that is idle, to the first server that works."""
        now = self._loop.time()
        if all(server.failures for server in self.servers):
            return None
        for server in self.servers:
            if not server.failures:
                links = self._idle[server]
                # The one that was used last: the others may then end their time.
                while links:
                    link = links.pop()
                    link.when_lost = None
                    if link.client.reusable and not link.lost:
                        return link
                    self._drop(link)
                # Another one of this server is better than one of the next.
                return None
            if server.may_be_asked(now):
                self._probe(server)
        return None

    async def _open(self, peer: Peer, until: float) -> Link:
        """Open a link to the first server that can be used."""
        self._opening += 1
        try:
            tried: set[Server] = set()
            while True:
                now = self._loop.time()
                able = [
                    server
                    for server in self.servers
                    if server not in tried and server.may_be_asked(now)
                ]
                if not able or now >= until:
                    raise AllAway("no server can be used")
                server = next((server for server in able if not server.failures), able[0])
                tried.add(server)
                # Those behind it have their share of the time.
                link = await self._try(server, peer, now + (until - now) / len(able))
                if link is not None:
                    return link
        finally:
            self._opening -= 1
            # Whoever waits may have this one's place, if it has none itself.
            self._next_in_line()

    async def _try(self, server: Server, peer: Peer | None, until: float) -> Link | None:
        attempt = server.trying()
        try:
            link = await open_link(server, self.settings, peer, until)
        except NextHopError as error:
            if (
                self.settings.forward == "proxy"
                and peer is not None
                and isinstance(error, NotReady | LinkLost | NoReply)
            ):
                # It may speak of this client, of whom the PROXY header told.
                logger.info("%s cannot be used for one client: %s", server.address, error)
                server.given_up()
            else:
                server.failed(attempt, self._loop.time(), error)
            return None
        except BaseException:
            server.given_up()
            raise
        server.worked(link.client.offers, verified=link.verified)
        return link

    # --- where there are too few ----------------------------------------------------------------

    def _evict(self) -> bool:
        """Close an idle link, to a server that is not the first: there is a place then."""
        for server in reversed(self.servers):
            links = self._idle[server]
            if links:
                self._drop(links.popleft())
                return True
        return False

    def _steal(self) -> bool:
        """Take a link from a transaction that waits for its client: there is a place then."""
        longest = self._loop.time() - LEND_SECONDS
        for link, holder in self._lent.items():
            since = holder.waiting_since
            if since is not None and since <= longest:
                holder.take_link()
                del self._lent[link]
                self._drop(link)
                return True
        return False

    async def _wait_for_one(self, until: float) -> None:
        now = self._loop.time()
        if now >= until or self._closed:
            raise AllAway("no connection is free")
        future: asyncio.Future[None] = self._loop.create_future()
        self._queue.append(future)
        timer = self._loop.call_later(min(LOOK_SECONDS, until - now), _wake, future)
        try:
            await future
        except BaseException:
            if future.done() and not future.cancelled():
                # It was this one's turn: the next one has it.
                self._next_in_line()
            raise
        finally:
            timer.cancel()
            if future in self._queue:
                self._queue.remove(future)

    def _next_in_line(self) -> None:
        while self._queue:
            future = self._queue.popleft()
            if not future.done():
                future.set_result(None)
                return

    # --- idle links -----------------------------------------------------------------------------

    def _lost_while_idle(self, link: Link) -> None:
        links = self._idle[link.server]
        if link in links:
            links.remove(link)
            self._next_in_line()

    def _sweep(self) -> None:
        self._sweeper = None
        oldest = self._loop.time() - self.settings.idle
        left = False
        for links in self._idle.values():
            while links and links[0].idle_since <= oldest:
                self._drop(links.popleft())
            left = left or bool(links)
        if left and not self._closed:
            self._sweeper = self._loop.call_later(max(self.settings.idle / 4, 0.05), self._sweep)

    # --- probes ---------------------------------------------------------------------------------

    def _probe(self, server: Server) -> None:
        """See in the background whether `server` can be used: no client has to wait for it."""
        if server not in self._probes and not self._closed:
            task = self._loop.create_task(self._look_at(server))
            self._probes[server] = task
            task.add_done_callback(lambda _: self._probes.pop(server, None))

    async def _look_at(self, server: Server) -> None:
        now = self._loop.time()
        if not server.may_be_asked(now):
            return
        until = now + self.settings.timeouts.connect
        link = await self._try(server, None, until)
        if link is not None:
            self.release(link)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
