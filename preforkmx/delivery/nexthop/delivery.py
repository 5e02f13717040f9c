"""The delivery that hands messages on: its hooks ask the next hop before they answer.

MAIL and RCPT are passed to the next hop while the client waits, the message is streamed while it
arrives, and what the next hop answers is the answer. docs/explanation/delivery.md has the rules.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from preforkmx.body import whole
from preforkmx.delivery.nexthop.delivered import (
    MAX_KEYS_A_CALL,
    REMEMBER_SECONDS,
    Fingerprint,
    copy_key,
    pair_key,
)
from preforkmx.delivery.nexthop.errors import (
    AllAway,
    LinkLost,
    NextHopError,
    Nonsense,
    NoReply,
    Refused,
)
from preforkmx.delivery.nexthop.pool import Pool
from preforkmx.delivery.nexthop.servers import promises
from preforkmx.delivery.nexthop.spool import Spool
from preforkmx.delivery.nexthop.transaction import NOT_ABOUT_THE_MESSAGE, Transaction
from preforkmx.delivery.trace import received
from preforkmx.errors import SMTPError, StoreUnavailable
from preforkmx.model import Envelope

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterable,
        AsyncIterator,
        Callable,
        Coroutine,
        Iterable,
        Iterator,
    )
    from typing import Any

    from preforkmx.context import Context
    from preforkmx.delivery.nexthop.delivered import DeliveredMemory
    from preforkmx.delivery.nexthop.replies import Reply
    from preforkmx.delivery.nexthop.settings import Settings
    from preforkmx.model import Peer

ADDED = 256
"""Octets that a Received header is taken to have where SIZE announces a message."""
MAX_TEXT = 1000
"""Characters of a reply that are passed on."""

_NOTHING = whole(b"")


class _Open:
    """A transaction of a session, and what its message hashes to."""

    __slots__ = ("fingerprint", "transaction")

    def __init__(self, transaction: Transaction, fingerprint: Fingerprint | None) -> None:
        self.transaction = transaction
        self.fingerprint = fingerprint


class NextHopDelivery:
    """The hooks of :func:`~preforkmx.delivery.lmtp.lmtp` and :func:`~preforkmx.delivery.smtp.smtp`.

    :param memory: for LMTP: what was delivered of messages that come again; None for SMTP.
    :param clock: seconds since the epoch, for the date in Received.
    """

    def __init__(
        self,
        servers: Iterable[str],
        settings: Settings,
        *,
        memory: DeliveredMemory | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.pool = Pool(servers, settings)
        self._settings = settings
        self._memory = memory
        self._clock = clock
        self._open: dict[str, _Open] = {}

    def promises(self) -> frozenset[str]:
        """Return the extensions that every server offers that was heard of."""
        return promises(self.pool.servers)

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Have links while a worker runs."""
        await self.pool.start()
        try:
            yield
        finally:
            self._open.clear()
            await self.pool.close()

    # --- hooks ----------------------------------------------------------------------------------

    async def check_sender(self, ctx: Context, peer: Peer, address: str) -> None:
        """Ask the next hop at MAIL."""
        self._end(ctx)
        envelope = ctx.envelope or Envelope(sender=address, data=_NOTHING)
        opened = self._begin(ctx, peer, envelope)
        await self._asking(ctx, opened.transaction, opened.transaction.begin())

    async def check_recipient(self, ctx: Context, peer: Peer, address: str) -> None:
        """Ask the next hop at RCPT."""
        opened = self._open.get(ctx.session_id)
        if opened is None:
            envelope = ctx.envelope or Envelope(sender=ctx.sender or "", data=_NOTHING)
            opened = self._begin(ctx, peer, envelope)
        transaction = opened.transaction
        await self._asking(ctx, transaction, transaction.add(address, ctx.recipient_dsn))

    async def reset(self, ctx: Context, _peer: Peer) -> None:
        """Give the link back."""
        self._end(ctx)

    async def disconnect(self, ctx: Context, _peer: Peer, _error: BaseException | None) -> None:
        """Give the link back."""
        self._end(ctx)

    def _begin(self, ctx: Context, peer: Peer, envelope: Envelope) -> _Open:
        fingerprint = None
        if self._remembers(peer):
            fingerprint = Fingerprint()
            envelope.tap = fingerprint.update
        opened = _Open(Transaction(self.pool, envelope, peer, added=ADDED), fingerprint)
        self._open[ctx.session_id] = opened
        return opened

    def _end(self, ctx: Context) -> None:
        opened = self._open.pop(ctx.session_id, None)
        if opened is not None:
            opened.transaction.finish()

    def _remembers(self, peer: Peer) -> bool:
        """Say whether answers of this client's have to be remembered: LMTP has one for each."""
        return self._memory is not None and not peer.protocol.startswith("LMTP")

    async def _asking(
        self, ctx: Context, transaction: Transaction, step: Coroutine[Any, Any, Any]
    ) -> None:
        try:
            await step
        except Refused as refused:
            raise _refusal(refused.reply) from refused
        except NextHopError as error:
            raise self._not_now(ctx, error) from error
        except BaseException:
            transaction.give_up()
            raise

    # --- the message ----------------------------------------------------------------------------

    async def handle(self, ctx: Context, peer: Peer, envelope: Envelope) -> None:
        """Hand the message on; a return means that the next hop has it.

        What it refuses for some recipients stands in ``envelope.rejections``.

        :raises SMTPError: the next hop's own refusal, or 451.
        :raises MessageAborted: the message's own; the next hop has nothing of it then.
        """
        opened = self._open.pop(ctx.session_id, None)
        if opened is None:
            opened = _Open(Transaction(self.pool, envelope, peer, added=ADDED), None)
        transaction = opened.transaction
        spool = Spool()
        try:
            await self._deliver(ctx, peer, envelope, opened, spool)
        except Refused as refused:
            raise _refusal(refused.reply) from refused
        except NextHopError as error:
            transaction.give_up()
            raise self._not_now(ctx, error) from error
        except BaseException:
            transaction.give_up()
            raise
        finally:
            transaction.finish()
            spool.close()

    async def _deliver(
        self, ctx: Context, peer: Peer, envelope: Envelope, opened: _Open, spool: Spool
    ) -> None:
        transaction = opened.transaction
        recipients = list(envelope.recipients)
        message: AsyncIterable[bytes] = envelope.data
        print_ = opened.fingerprint
        if self._remembers(peer) and print_ is None:
            # Nobody was there to look at what the client sends.
            print_ = Fingerprint()
            message = _watched(message, print_)
        done: set[int] = set()
        if print_ is not None and await self._known(
            ctx, [pair_key(envelope.sender, each) for each in recipients]
        ):
            # Part of a message like this one was delivered. Whether of this one, its hash will
            # tell, and before it is known nobody must get a copy.
            try:
                async for octets in message:
                    await spool.add(octets)
            except OSError as error:
                ctx.logger.error("a message cannot be spooled: %s", error)
                raise SMTPError(452, "Insufficient system storage", enhanced=(4, 3, 1)) from error
            message = spool
            digest = print_.digest()
            if digest:
                keys = [copy_key(envelope.sender, each, digest) for each in recipients]
                known = await self._known(ctx, keys)
                done = {index for index, key in enumerate(keys) if key in known}
        outcomes: dict[int, Reply | NextHopError | None] = dict.fromkeys(done)
        rest = [index for index in range(len(recipients)) if index not in done]
        if rest:
            header = received(
                peer,
                recipient=recipients[0] if len(recipients) == 1 else None,
                transaction=envelope.id,
                hostname=self._settings.hostname,
                now=self._clock(),
                smtputf8=envelope.smtputf8,
            )
            refused = await _ready(transaction, [recipients[index] for index in rest])
            outcomes |= {rest[place]: reply for place, reply in refused.items()}
            taking = [index for index in rest if index not in outcomes]
            if taking:
                self._begins(peer, refused)
                replies = await transaction.send(_headed(header, message))
                if not self._settings.lmtp:
                    # SMTP has one for all.
                    replies *= len(taking)
                outcomes |= dict(zip(taking, replies, strict=True))
        failures = {
            index: self._failure(ctx, outcome)
            for index, outcome in sorted(outcomes.items())
            if isinstance(outcome, NextHopError) or (outcome is not None and outcome.kind >= 4)
        }
        digest = b"" if print_ is None else print_.digest()
        await self._conclude(ctx, envelope, recipients, failures=failures, done=done, digest=digest)

    def _begins(self, peer: Peer, refused: dict[int, Reply]) -> None:
        """Let the message go to the others, where some recipients are refused.

        Their RCPT was accepted before, on a link that was lost. With a 4xx among the refusals
        the message comes again, for all of them where nobody remembers.

        :raises Refused: then nobody gets it now.
        """
        if self._memory is None and not peer.protocol.startswith("LMTP"):
            for reply in refused.values():
                if reply.kind == 4:
                    raise Refused(reply)

    async def _conclude(
        self,
        ctx: Context,
        envelope: Envelope,
        recipients: list[str],
        *,
        failures: dict[int, SMTPError],
        done: set[int],
        digest: bytes,
    ) -> None:
        """Answer: the client's one reply, or one for each of its recipients.

        :param failures: the recipients without a copy, and why.
        :param done: the recipients that got theirs when the message came before.
        """
        temporary = [error for error in failures.values() if error.code < 500]
        have = [index for index in range(len(recipients)) if index not in failures]
        if temporary and have and self._memory is not None and digest:
            await self._remember(ctx, envelope.sender, [recipients[i] for i in have], digest)
            first = temporary[0]
            raise SMTPError(451, first.message, enhanced=first.enhanced)
        for index, error in failures.items():
            envelope.reject_recipient(index, error)
        if done:
            keys = [copy_key(envelope.sender, recipients[index], digest) for index in done]
            await self._forget(ctx, keys)

    # --- the memory -----------------------------------------------------------------------------

    async def _known(self, ctx: Context, keys: list[bytes]) -> frozenset[bytes]:
        assert self._memory is not None
        try:
            return frozenset().union(*[await self._memory.known(some) for some in _calls(keys)])
        except StoreUnavailable as error:
            # Mail goes on without it: a second copy is the smaller harm. That the store is away
            # was said when it went, and would be said here with each message.
            ctx.logger.debug("whether a message was delivered in part is not known: %s", error)
            return frozenset()

    async def _remember(
        self, ctx: Context, sender: str, recipients: list[str], digest: bytes
    ) -> None:
        assert self._memory is not None
        keys = [pair_key(sender, each) for each in recipients]
        keys += [copy_key(sender, each, digest) for each in recipients]
        try:
            for some in _calls(keys):
                await self._memory.remember(some, REMEMBER_SECONDS)
        except StoreUnavailable as error:
            ctx.logger.error(
                "a message that was delivered in part will be delivered again: %s", error
            )

    async def _forget(self, ctx: Context, keys: list[bytes]) -> None:
        assert self._memory is not None
        try:
            for some in _calls(keys):
                await self._memory.forget(some)
        except StoreUnavailable as error:
            ctx.logger.warning("a message that was delivered is still remembered: %s", error)

    # --- answers --------------------------------------------------------------------------------

    def _failure(self, ctx: Context, outcome: Reply | NextHopError | None) -> SMTPError:
        if isinstance(outcome, NextHopError):
            return self._not_now(ctx, outcome)
        assert outcome is not None
        return _refusal(outcome)

    def _not_now(self, ctx: Context, error: NextHopError) -> SMTPError:
        """Return the 451 for what is no answer of the next hop's about the message."""
        if isinstance(error, AllAway):
            # It was told when they went, and is in the access log.
            ctx.logger.debug("the next hop cannot be asked: %s", error)
        else:
            ctx.logger.warning("the next hop gives no answer: %s", error)
        # RFC 3463 section 3.5: X.4.2 a connection that broke, X.4.1 nobody answers, X.5.0.
        match error:
            case LinkLost() | NoReply():
                enhanced = (4, 4, 2)
            case Nonsense():
                enhanced = (4, 5, 0)
            case _:
                enhanced = (4, 4, 1)
        return SMTPError(451, "The next hop is not available, try again later", enhanced=enhanced)


async def _ready(transaction: Transaction, recipients: list[str]) -> dict[int, Reply]:
    """Have the next hop wait for the message to `recipients`.

    :returns: the refused ones by their place; the others wait, unless there is none.
    """
    attempt = 1
    while True:
        refused = await transaction.ready(recipients)
        if len(refused) == len(recipients):
            return refused
        try:
            await transaction.data()
        except LinkLost:
            # Nothing of the message was said: another link may take it.
            transaction.give_up()
            attempt += 1
            if attempt > 2:
                raise
        else:
            return refused


def _calls(keys: list[bytes]) -> Iterator[list[bytes]]:
    for start in range(0, len(keys), MAX_KEYS_A_CALL):
        yield keys[start : start + MAX_KEYS_A_CALL]


def _refusal(reply: Reply) -> SMTPError:
    """Return the next hop's refusal as this server's."""
    text = reply.text[:MAX_TEXT] or "Refused by the next hop"
    if reply.code == 421:
        # It speaks of the next hop's connection, and would close the client's.
        enhanced = reply.enhanced
        return SMTPError(451, text, enhanced=enhanced or (4, 4, 2))
    if reply.code in NOT_ABOUT_THE_MESSAGE:
        return SMTPError(451, "The next hop is not available, try again later", enhanced=(4, 5, 1))
    return SMTPError(reply.code, text, enhanced=reply.enhanced)


async def _headed(header: bytes, message: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Put `header` in front, in one piece with the first of the message."""
    async for octets in message:
        yield header + octets if header else octets
        header = b""
    if header:
        yield header


async def _watched(message: AsyncIterable[bytes], watcher: Fingerprint) -> AsyncIterator[bytes]:
    async for octets in message:
        watcher.update(octets)
        yield octets
    watcher.update(b"")
