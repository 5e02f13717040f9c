"""One envelope at the next hop: said once, or again on another link when the first is lost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from preforkmx.delivery.nexthop import commands
from preforkmx.delivery.nexthop.errors import LinkLost, NextHopError, NotReady, Refused
from preforkmx.delivery.nexthop.opening import introduce

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Sequence

    from preforkmx.delivery.nexthop.link import Link
    from preforkmx.delivery.nexthop.pool import Pool
    from preforkmx.delivery.nexthop.replies import Reply
    from preforkmx.model import Envelope, Peer, RecipientDSN

CHUNK = 65536
"""Octets of a message that go on together; BDAT gathers as many."""
MAX_UNANSWERED = 8
"""BDAT commands that may be under way."""
NOT_ABOUT_THE_MESSAGE = frozenset({500, 502, 503, 530, 534, 535, 538})
"""Replies to MAIL, RCPT and DATA that speak of the session: commands that are not known (or a
server that fails for a bug), their order (one that lost the transaction), AUTH and TLS (RFC 5321
section 4.2.4, RFC 4954 section 6, RFC 3207 section 4)."""


class Transaction:
    """From MAIL to the replies after the message.

    :param added: octets that this server puts in front of the message.

    Until the message begins, everything that was said can be said again, because nothing of it
    lasts; after that a lost link is the end.
    """

    def __init__(self, pool: Pool, envelope: Envelope, peer: Peer, *, added: int) -> None:
        self._pool = pool
        self._settings = pool.settings
        self._envelope = envelope
        self._peer = peer
        self._added = added
        self._link: Link | None = None
        # What the link has accepted, and what it is to have accepted.
        self._said: list[str] = []
        self.recipients: list[str] = []
        """Recipients that the next hop accepted, in their order."""
        self._dsn: dict[str, RecipientDSN] = {}
        self._waiting_since: float | None = None
        self._loop = asyncio.get_running_loop()

    # --- what the pool calls --------------------------------------------------------------------

    @property
    def waiting_since(self) -> float | None:
        """Since when the client is awaited."""
        return self._waiting_since

    def take_link(self) -> Link:
        """Give the link up; the envelope is said again on another one."""
        link = self._link
        assert link is not None
        self._link, self._waiting_since = None, None
        return link

    # --- the envelope ---------------------------------------------------------------------------

    async def begin(self) -> None:
        """Say MAIL.

        :raises Refused: the next hop refuses the reverse path.
        :raises NextHopError: nobody could be asked.
        """
        await self._said_again(())

    async def add(self, recipient: str, dsn: RecipientDSN | None) -> None:
        """Say RCPT.

        :raises Refused: the next hop refuses the recipient; it has forgotten it.
        :raises NextHopError: nobody could be asked.
        """
        if dsn is not None:
            self._dsn[recipient] = dsn
        wanted = [*self.recipients, recipient]
        refused = await self._said_again(wanted)
        reply = refused.get(len(wanted) - 1)
        if reply is not None:
            raise Refused(reply)
        self.recipients.append(recipient)

    async def ready(self, recipients: Sequence[str]) -> dict[int, Reply]:
        """Have MAIL and exactly these `recipients` said on one link.

        :returns: those that are refused (now), by their index.
        :raises Refused: the reverse path is.
        :raises NextHopError: nobody could be asked.
        """
        refused = await self._said_again(recipients)
        self.recipients = [name for i, name in enumerate(recipients) if i not in refused]
        return refused

    async def _said_again(self, recipients: Sequence[str]) -> dict[int, Reply]:
        """Say what the link has not heard; on a lost one, everything on the next."""
        self._waiting_since = None
        before = self._link
        losses = 0
        while True:
            link = self._link
            try:
                if link is None or not link.client.in_transaction:
                    return await self._say_all(recipients)
                if self._said != list(recipients[: len(self._said)]):
                    # Somebody has changed the envelope since.
                    self._give_back()
                    return await self._say_all(recipients)
                return await self._say_rest(link, recipients)
            except NextHopError as error:
                link = self._link
                if link is None:
                    raise
                # One that was idle, or whose client was slow, tells nothing of the server.
                idle = link is before or link.transactions > 1
                self.give_up()
                losses += not idle
                if not isinstance(error, LinkLost) or losses > 1:
                    raise
            except Refused:
                self._give_back()
                raise
            finally:
                if self._link is not None:
                    self._waiting_since = self._loop.time()

    async def _say_all(self, recipients: Sequence[str]) -> dict[int, Reply]:
        if self._link is None:
            self._said = []
            self._link = await self._pool.acquire(self, self._peer)
        link = self._link
        client = link.client
        if self._settings.forward == "xclient":
            if client.in_transaction:
                await self._reset(link)
            await introduce(link, self._settings, self._peer)
        missing = commands.missing(self._envelope, client.offers, verified=link.verified)
        if missing is not None:
            self._give_back()
            raise NotReady(f"{link.server.address} does not offer {missing}")
        seconds = self._settings.timeouts.command
        reset = client.in_transaction
        if reset and not client.pipelining:
            await self._reset(link)
            reset = False
        if reset:
            client.reset()
        client.mail(
            commands.mail(
                self._envelope,
                client.offers,
                added=self._added,
                vouched=self._settings.credentials is not None,
            )
        )
        # RFC 2920: one flight. A MAIL that is refused has the RCPTs refused too, as 503.
        early = recipients if client.pipelining else ()
        for recipient in early:
            client.rcpt(commands.rcpt(recipient, self._dsn.get(recipient), client.offers))
        if reset:
            await link.reply(seconds)
        answer = await link.reply(seconds)
        refused = {}
        for index in range(len(early)):
            reply = await link.reply(seconds)
            if reply.kind >= 4:
                refused[index] = self._about_the_message(reply) if answer.kind < 4 else reply
        if answer.kind >= 4:
            raise Refused(self._about_the_message(answer))
        self._said = [name for i, name in enumerate(early) if i not in refused]
        if early or not recipients:
            return refused
        return await self._say_rest(link, recipients)

    async def _say_rest(self, link: Link, recipients: Sequence[str]) -> dict[int, Reply]:
        client = link.client
        begin = len(self._said)
        new = recipients[begin:]
        refused = {}
        for index, recipient in enumerate(new, begin):
            client.rcpt(commands.rcpt(recipient, self._dsn.get(recipient), client.offers))
            reply = await link.reply(self._settings.timeouts.command)
            if reply.kind >= 4:
                refused[index] = self._about_the_message(reply)
            else:
                self._said.append(recipient)
        return refused

    async def _reset(self, link: Link) -> None:
        link.client.reset()
        reply = await link.reply(self._settings.timeouts.command)
        if reply.kind >= 4:
            raise LinkLost(f"RSET was answered with {reply}")

    def _about_the_message(self, reply: Reply) -> Reply:
        """Return `reply` if it decides something; else it is the link's fault.

        :raises NextHopError: it speaks of the session.
        """
        if reply.code == 421:
            raise LinkLost(f"the server closes: {reply}")
        if reply.code in NOT_ABOUT_THE_MESSAGE:
            raise NotReady(f"the server answers {reply}")
        return reply

    # --- the message ----------------------------------------------------------------------------

    async def data(self) -> None:
        """Say DATA where the message goes with it: after it the message can begin.

        :raises Refused: the next hop refuses.
        :raises NextHopError: nobody could be asked. :meth:`ready` and this may be tried again.
        """
        link = self._link
        assert link is not None
        self._waiting_since = None
        if self._with_chunks(link):
            return
        link.client.data()
        reply = await link.reply(self._settings.timeouts.data)
        if reply.kind >= 4:
            raise Refused(self._about_the_message(reply))

    async def send(self, message: AsyncIterable[bytes]) -> list[Reply | NextHopError]:
        """Send the message as it comes, and return the replies after it.

        :returns: one reply, in LMTP one for each of :attr:`recipients`; an error stands for a
            reply that did not come: nobody knows then what became of that copy.
        :raises Refused: a part of the message is refused (BDAT); nobody has it.
        :raises NextHopError: the link was lost before the message ended; nobody has it.
        """
        link = self._link
        assert link is not None
        self._waiting_since = None
        if self._with_chunks(link):
            await self._send_chunks(link, message)
        else:
            timeout = self._settings.timeouts.block
            async for piece in message:
                # Not all at once: every step from here to the socket holds a copy.
                for begin in range(0, len(piece), CHUNK):
                    link.client.content(piece[begin : begin + CHUNK])
                    await link.drain(timeout)
            link.client.end_of_data()
        return await self._replies(link)

    def _with_chunks(self, link: Link) -> bool:
        wanted = self._settings.chunking or self._envelope.body == "BINARYMIME"
        return wanted and "CHUNKING" in link.client.offers

    async def _send_chunks(self, link: Link, message: AsyncIterable[bytes]) -> None:
        client, timeouts = link.client, self._settings.timeouts
        pieces: list[bytes] = []
        size = 0
        async for piece in message:
            pieces.append(piece)
            size += len(piece)
            if size >= CHUNK:
                client.chunk(b"".join(pieces), last=False)
                pieces, size = [], 0
                await link.drain(timeouts.block)
                while client.awaits and (not client.pipelining or client.awaits >= MAX_UNANSWERED):
                    await self._chunk_reply(link)
        client.chunk(b"".join(pieces), last=True)
        unanswered = client.awaits - (client.accepted if client.lmtp else 1)
        for _ in range(unanswered):
            await self._chunk_reply(link)

    async def _chunk_reply(self, link: Link) -> None:
        reply = await link.reply(self._settings.timeouts.data)
        if reply.kind >= 4:
            raise Refused(self._about_the_message(reply))

    async def _replies(self, link: Link) -> list[Reply | NextHopError]:
        replies: list[Reply | NextHopError] = []
        expected = link.client.awaits
        # One time for all of them: who has a copy must be remembered before the handler's is over.
        until = self._loop.time() + self._settings.timeouts.end
        try:
            while len(replies) < expected:
                replies.append(await link.reply(max(0.0, until - self._loop.time())))
        except NextHopError as error:
            replies.extend([error] * (expected - len(replies)))
        return replies

    # --- the end --------------------------------------------------------------------------------

    def _give_back(self) -> None:
        link, self._link = self._link, None
        self._said = []
        if link is not None:
            self._pool.release(link)

    def finish(self) -> None:
        """Give the link back: the message is answered, or there was none."""
        self._waiting_since = None
        self._give_back()

    def give_up(self) -> None:
        """Close the link: what is under way must have no end."""
        link, self._link = self._link, None
        self._said, self._waiting_since = [], None
        if link is not None:
            self._pool.discard(link)
