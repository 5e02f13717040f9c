"""Recipients: who is here, whose mail goes to whom, and what a stranger may find out about it."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final, Literal

from preforkmx.errors import SMTPError
from preforkmx.middleware.addresses import Recipient, comparable_domain, lower_case, unquoted
from preforkmx.middleware.base import Middleware
from preforkmx.middleware.domains import ANY
from preforkmx.model import Verification
from preforkmx.protocol.paths import PathError, parse_path, split_mailbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from preforkmx.context import Context
    from preforkmx.middleware.harvest import Harvest
    from preforkmx.middleware.recipients_source import Found, Source
    from preforkmx.model import Peer

_POSTMASTER: Final = "postmaster"


def recipients(
    sources: Sequence[Source],
    *,
    hostname: str,
    domains: Iterable[str] = (),
    separator: str = "+",
    extension: Literal["keep", "drop"] = "keep",
    unknown: Harvest | None = None,
    vrfy: bool = False,
    name: str = "recipients",
) -> Middleware:
    """Refuse recipients that are not there with 550 5.1.1, and redirect aliases.

    The sources are asked in their order, until one knows the recipient. Where none does, and one
    of them could not say, the answer is that one's 451: nobody's mail bounces because a
    directory is away. Aliases answer RCPT for themselves, and the delivery has their targets
    (:meth:`Envelope.redirect <preforkmx.model.Envelope.redirect>`).

    ``<Postmaster>``, and postmaster at every domain that is answered for, is there in any case
    (RFC 5321 section 4.5.1), and no limit is for it.

    :param sources: at least one.
    :param hostname: this host's name: the domain of ``<Postmaster>``.
    :param domains: the domains that are answered for, in any spelling; recipients of others pass.
        None, or ``"*"``: all of them.
    :param separator: what an extension begins with, as in ``joe+lists@example.com`` (RFC 5233):
        who is there without it is there with it. ``""``: there are none.
    :param extension: ``"drop"``: the delivery has a recipient that is there without its
        extension without it; ``"keep"``: as it was given.
    :param unknown: the limit on unknown recipients.
    :param vrfy: answer VRFY from the same sources; else it is told 252.
    :raises ValueError: there is no source, or the separator is longer than a character.
    """
    if not sources:
        raise ValueError("recipients needs somebody who knows them")
    if len(separator) > 1 or separator in ("@", '"', "\\"):
        raise ValueError(f"{separator!r} is not a separator: it is one character")
    book = Recipients(
        sources, hostname, domains, separator, drop=extension == "drop", unknown=unknown
    )
    return Middleware(
        check_recipient=book.check_recipient,
        verify=book.verify if vrfy else None,
        lifespan=book.lifespan if book.lifespans else None,
        name=name,
    )


class Recipients:
    """The hooks of :func:`recipients`.

    :param drop: have the delivery see recipients without their extension.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        hostname: str,
        domains: Iterable[str],
        separator: str,
        *,
        drop: bool,
        unknown: Harvest | None,
    ) -> None:
        answered_for = frozenset(map(comparable_domain, domains))
        self._sources = tuple(sources)
        self._hostname = hostname
        self._own = comparable_domain(hostname)
        self._domains = None if not answered_for or ANY in answered_for else answered_for
        self._separator = separator
        self._drop = drop
        self._unknown = unknown
        self.lifespans = [
            lifespan
            for source in sources
            if (lifespan := getattr(source, "lifespan", None)) is not None
        ]
        """Those of the sources."""

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Enter those of the sources."""
        async with AsyncExitStack() as stack:
            for lifespan in self.lifespans:
                await stack.enter_async_context(lifespan())
            yield

    async def check_recipient(self, ctx: Context, peer: Peer, address: str) -> None:
        """Refuse who is not there, redirect who is an alias.

        :raises SMTPError: 550 5.1.1; 451 4.4.1 and 4.4.3 when nobody can say; 450 4.7.1 for a
            host that asked for too many that are not there.
        """
        recipient, postmaster = self._read(address)
        if recipient is None:
            return
        found = await self._look_up(peer, recipient, postmaster=postmaster)
        if found is None:
            return
        envelope = ctx.envelope
        if envelope is None:
            return
        if found.targets:
            envelope.redirect(address, *found.targets)
        elif self._drop and found.extended:
            envelope.redirect(address, recipient.plain)

    async def verify(self, _ctx: Context, peer: Peer, text: str) -> Verification | None:
        """Answer VRFY: a mailbox that is there, as it was given; None for what is no address here.

        :raises SMTPError: as :meth:`check_recipient`: who may not guess with RCPT may not here.
        """
        try:
            address, end = parse_path(text if text.startswith("<") else f"<{text}>", smtputf8=True)
        except PathError:
            return None
        if "@" not in address or end != len(text) + (0 if text.startswith("<") else 2):
            return None
        recipient, postmaster = self._read(address)
        if recipient is None:
            return None
        await self._look_up(peer, recipient, postmaster=postmaster)
        return Verification(address)

    def _read(self, address: str) -> tuple[Recipient | None, bool]:
        """Return whom to look for, None where others answer for it; and whether it is postmaster."""
        local, domain = split_mailbox(address)
        postmaster = lower_case(unquoted(local)) == _POSTMASTER
        if not domain:
            # Only <Postmaster> has none: the parser lets nothing else through.
            return Recipient.of(f"{local}@{self._hostname}", self._separator), True
        recipient = Recipient.of(address, self._separator)
        if self._domains is None or recipient.domain in self._domains:
            return recipient, postmaster
        if postmaster and recipient.domain == self._own:
            return recipient, True
        return None, False

    async def _look_up(self, peer: Peer, recipient: Recipient, *, postmaster: bool) -> Found | None:
        """Return what a source knows; None for a postmaster whom none does."""
        limit = None if postmaster else self._unknown
        if limit is not None:
            limit.look(peer)
        nobody_can_say: SMTPError | None = None
        for source in self._sources:
            try:
                found = await source.look_up(recipient)
            except SMTPError as error:
                if error.code >= 500:
                    raise
                nobody_can_say = nobody_can_say or error
            else:
                if found is not None:
                    return found
        if nobody_can_say is not None:
            raise nobody_can_say
        if postmaster:
            return None
        if limit is not None:
            await limit.count(peer)
        raise SMTPError(550, "No such recipient here", enhanced=(5, 1, 1))
