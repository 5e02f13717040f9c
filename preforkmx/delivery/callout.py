"""Asking a server whether a recipient is there: MAIL, RCPT, and no message."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from preforkmx.body import whole
from preforkmx.delivery.nexthop.errors import NextHopError, Refused
from preforkmx.delivery.nexthop.opening import tls_context
from preforkmx.delivery.nexthop.pool import Pool
from preforkmx.delivery.nexthop.servers import split
from preforkmx.delivery.nexthop.settings import Settings, Timeouts
from preforkmx.delivery.nexthop.transaction import NOT_ABOUT_THE_MESSAGE, Transaction
from preforkmx.errors import SMTPError
from preforkmx.middleware.call_forward import BackEndAnswer, BackEndAway, Verdict
from preforkmx.model import Envelope, Peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from preforkmx.delivery.nexthop.replies import Reply

#: Of replies without an enhanced status code, those that speak of the mailbox (RFC 5321 section
#: 4.2.3): unavailable, not local, name not allowed.
_MAILBOX: Final = frozenset({550, 551, 553})
#: RFC 3463: X.1.X is about the address, X.2.X about the mailbox.
_ADDRESS_STATUS: Final = 1
_MAILBOX_STATUS: Final = 2
#: X.1.7 and X.1.8 are about the sender's address.
_SENDER_DETAILS: Final = frozenset({7, 8})
MAX_TEXT: Final = 500
"""Characters of a back end's reply that a client is told, or the log."""


class Callout:
    """A :class:`~preforkmx.middleware.call_forward.BackEnd` over SMTP or LMTP.

    :param servers: ``"HOST:PORT"`` or ``"unix:/PATH"``, the one to prefer first.
    :param hostname: this server's name, for EHLO or LHLO.
    :param lmtp: speak LMTP.
    :param connections: connections of one process at most.
    :param deadline: how long a phase may take at most, in seconds.
    :raises ValueError: one of the servers has no such address, or there is none.
    """

    def __init__(
        self,
        servers: Sequence[str],
        *,
        hostname: str,
        lmtp: bool,
        connections: int = 10,
        deadline: float = 10.0,
    ) -> None:
        if not servers:
            raise ValueError("call-forward has at least one server")
        for server in servers:
            split(server)
        settings = Settings(
            hostname=hostname,
            lmtp=lmtp,
            tls="may",
            context=tls_context(verify=False),
            connections=connections,
            timeouts=Timeouts().within(deadline),
            patience=deadline,
        )
        self._pool = Pool(servers, settings)
        # Nobody's: the questions of all clients go over the same connections.
        self._peer = Peer(None, 0, hostname, "")

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Have connections while a worker runs."""
        await self._pool.start()
        try:
            yield
        finally:
            await self._pool.close()

    async def ask(self, address: str) -> BackEndAnswer:
        """Say MAIL FROM:<> and RCPT for `address`; nothing is ever sent to it.

        A 5xx to RCPT counts where it speaks of the address (550, 551 or 553, or an enhanced
        status code X.1.X other than of the sender's), or of its mailbox (X.2.X). Whatever else a server refuses (this
        host, the null reverse path) says nothing about the recipient.

        :raises BackEndAway: there is no answer, or none about the recipient.
        """
        envelope = Envelope("", whole(b""), smtputf8=not address.isascii())
        transaction = Transaction(self._pool, envelope, self._peer, added=0)
        try:
            await transaction.begin()
        except Refused as refused:
            raise BackEndAway(f"MAIL FROM:<> is refused: {refused.reply}"[:MAX_TEXT]) from refused
        except NextHopError as error:
            raise BackEndAway(str(error)) from error
        except BaseException:
            transaction.give_up()
            raise
        try:
            await transaction.add(address, None)
        except Refused as refused:
            return _answer(refused.reply)
        except NextHopError as error:
            raise BackEndAway(str(error)) from error
        except BaseException:
            # What was asked is not answered: nobody else can use the connection.
            transaction.give_up()
            raise
        else:
            return BackEndAnswer(Verdict.KNOWN)
        finally:
            transaction.finish()


def _answer(reply: Reply) -> BackEndAnswer:
    """Return what a refusal of RCPT says.

    :raises BackEndAway: nothing about the recipient.
    """
    enhanced = reply.enhanced
    if reply.kind == 5 and reply.code not in NOT_ABOUT_THE_MESSAGE:
        subject = enhanced[1] if enhanced is not None else 0
        if enhanced is None:
            unknown = reply.code in _MAILBOX
        else:
            unknown = subject == _ADDRESS_STATUS and enhanced[2] not in _SENDER_DETAILS
        if unknown:
            return BackEndAnswer(Verdict.UNKNOWN)
        if subject == _MAILBOX_STATUS:
            text = reply.text[:MAX_TEXT] or "This mailbox takes no mail"
            refusal = SMTPError(reply.code, text, enhanced=enhanced)
            return BackEndAnswer(Verdict.REFUSED, refusal)
    raise BackEndAway(f"RCPT is refused: {reply}"[:MAX_TEXT])
