"""RBL: refuses, or marks, clients that lists in the DNS know (RFC 5782).

The lists are asked all at once. What one of them costs a session is bounded by one deadline, and
what it costs all of them by the rest that a silent list gets (:mod:`.rbl_health`).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from preforkmx.body import prepend
from preforkmx.errors import SMTPError
from preforkmx.middleware.base import Middleware
from preforkmx.middleware.exemption import Exemption
from preforkmx.middleware.lookups import LookUps
from preforkmx.middleware.rbl_list import (
    DNSList,
    Listing,
    Question,
    domain_subject,
    subject_of,
)
from preforkmx.middleware.rbl_lookup import Lists
from preforkmx.middleware.rbl_score import Entry, listing, listings, score
from preforkmx.middleware.verdicts import ALLOW_LISTED, Verdict
from preforkmx.protocol.paths import split_mailbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from preforkmx.context import Context
    from preforkmx.middleware.rbl_lookup import LooksUp
    from preforkmx.middleware.rbl_score import Answers, Score
    from preforkmx.model import Envelope, IPAddress, Peer
    from preforkmx.state.networks import IPNetwork

#: The most lists of one RBL.
MAX_LISTS: Final = 32
#: Seconds that one phase of a session waits for all lists together.
DEADLINE: Final = 4.0

At = Literal["connection", "mail", "rcpt"]

_FOUND: Final = Verdict("RBL")


class Finding(NamedTuple):
    """What one RBL knows of a session's client."""

    subject: str
    """Whose address it is about: XCLIENT makes another client of the session's."""
    answers: Answers
    listings: tuple[Listing, ...]
    score: int
    """Of the lists that answered while it mattered."""
    refused: bool
    """The score reaches the threshold."""
    vouched: str
    """Who vouches for the client, ``""``: nobody, or block lists say more."""


class _Result(NamedTuple):
    """What the lists say at one phase."""

    entries: tuple[Entry, ...]
    answers: Answers
    total: Score

    @property
    def listings(self) -> tuple[Listing, ...]:
        return listings(self.entries, self.answers)


def rbl_listings(ctx: Context) -> tuple[Listing, ...]:
    """Return what the lists of every RBL in front said of this client, in their order.

    Those that were not waited for, because they could not change the verdict, are not among them;
    an RBL that marks waits for all. Its sum is the score: ``sum(each.weight for each in …)``.
    """
    found: Mapping[RBL, Finding] = ctx.value(_FOUND, {})
    return tuple(each for finding in found.values() for each in finding.listings)


class RBL:
    """Lists in the DNS: each adds its weight to a client's score, which is refused or marked.

    ``server.use(RBL([DNSList(zone="zen.example.org")]).middleware())`` refuses before the
    greeting, with 554 5.7.1, the list's name and its text. Lists of domains are asked for the
    HELO name and for the domain of the reverse path, and what they say is added to the score that
    the client's address has.

    Never asked about: who has authenticated, who is on a unix socket, health checks, `allow`, and
    private networks (unless told to). Where clients authenticate on the same listener, refuse
    `at` ``"mail"``: at the connection nobody has yet, and lists know most of their addresses.

    A client whose score is below zero, because a list with a negative weight has it, is vouched
    for: :data:`~preforkmx.middleware.verdicts.ALLOW_LISTED` has the list's name from MAIL on.

    :param lists: what is asked; zones alone are lists of addresses with weight 1.
    :param threshold: the score that is refused or marked.
    :param on_fail: ``"reject"``, or ``"mark"``: a header ``X-RBL``, and :func:`rbl_listings`.
    :param at: where it begins to refuse; ``"connection"`` where it rejects, and ``"mail"`` where
        it marks.
    :param resolver: who looks names up, a worker's own; None makes one, with `middleware`'s
        lifespan, or with the first check.
    :param allow: networks that are not asked about.
    :param exempt_private: leave out private networks, loopback among them
        (:data:`~preforkmx.state.networks.PRIVATE`).
    :param deadline: seconds that one phase waits, for a refusal's text too.
    :param name: what the log calls it.
    :param clock: seconds, from any beginning.
    :raises ValueError: there are no lists or too many, one of them is none, `threshold` is below
        1, or all of them together do not reach it.
    """

    def __init__(
        self,
        lists: Iterable[DNSList | str],
        *,
        threshold: int = 1,
        on_fail: Literal["reject", "mark"] = "reject",
        at: At | None = None,
        resolver: LooksUp | None = None,
        allow: Iterable[IPNetwork] = (),
        exempt_private: bool = True,
        deadline: float = DEADLINE,
        name: str = "rbl",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if isinstance(lists, str):
            raise TypeError(f"RBL([{lists!r}]) asks one list, RBL({lists!r}) one for each letter")
        self._lists = tuple(DNSList(zone=each) if isinstance(each, str) else each for each in lists)
        if not 1 <= len(self._lists) <= MAX_LISTS:
            raise ValueError(f"an RBL asks 1 to {MAX_LISTS} lists")
        if threshold < 1:
            raise ValueError("a threshold below 1 refuses clients that no list knows")
        most = sum(max(each.weight, 0) for each in self._lists)
        if 0 < most < threshold:
            raise ValueError(f"all lists together weigh {most}, and never reach {threshold}")
        self._threshold = threshold
        self._mark = on_fail == "mark"
        self._at: At = at or ("mail" if self._mark else "connection")
        self._look_ups = LookUps(resolver)
        self._exempt = Exemption(allow, private=exempt_private)
        self._deadline = deadline
        self._name = name
        self._state = Lists(self._lists, clock=clock)
        self._domains = any(each.kind == "domain" for each in self._lists)
        self._vouching = any(each.weight < 0 for each in self._lists)

    async def connection_check(self, ctx: Context, peer: Peer) -> Context | None:
        """Refuse a client by its address.

        :returns: a Context that knows what was found, as all checks here do.
        :raises SMTPError: 554 5.7.1; not where it marks.
        """
        return await self._check(ctx, peer)

    async def helo_check(self, ctx: Context, peer: Peer, _name: str = "") -> Context | None:
        """The same by its HELO name, too."""
        return await self._check(ctx, peer, peer.helo_name)

    async def sender_check(self, ctx: Context, peer: Peer, address: str) -> Context | None:
        """The same by the reverse path's domain, too; says who vouches for the client."""
        return await self._check(ctx, peer, peer.helo_name, split_mailbox(address)[1], last=True)

    async def recipient_check(self, ctx: Context, peer: Peer, _address: str) -> Context | None:
        """The same at RCPT, so that the log has sender and recipients of what is refused."""
        return await self.sender_check(ctx, peer, ctx.sender or "")

    async def data_check(self, ctx: Context, peer: Peer, envelope: Envelope) -> Context | None:
        """The same when the message arrives; where it marks, write what was found.

        The header ``X-RBL`` goes in front of ``envelope.data``.
        """
        result = await self.sender_check(ctx, peer, envelope.sender)
        found = self._found(result if result is not None else ctx, peer)
        if self._mark and found is not None and found.refused and not self._exempt.covers(peer):
            lines = "".join(f"\r\n\t{each};" for each in found.listings)
            header = f"X-RBL: score={found.score} by {peer.server_name};{lines}"
            envelope.data = prepend(envelope.data, f"{header.removesuffix(';')}\r\n".encode())
        return result

    def middleware(self) -> Middleware:
        """Return the checks from `at` on as one Middleware, with those that can find anything."""
        hooks: dict[str, Any] = {}
        if self._at == "connection":
            if any(each.kind == "ip" for each in self._lists):
                hooks["check_connection"] = self.connection_check
            if self._domains:
                hooks["check_helo"] = self.helo_check
        if self._at == "rcpt":
            hooks["check_recipient"] = self.recipient_check
        elif self._at == "mail" or self._domains or self._vouching or self._mark:
            hooks["check_sender"] = self.sender_check
        if self._mark:
            hooks["handler"] = self.data_check
        if self._look_ups.own:
            hooks["lifespan"] = self._look_ups.lifespan
        return Middleware(name=self._name, **hooks)

    def _found(self, ctx: Context, peer: Peer) -> Finding | None:
        """Return what was found of this client, None if it was not asked about."""
        found: Finding | None = ctx.value(_FOUND, {}).get(self)
        if found is None or peer.address is None or found.subject != subject_of(peer.address):
            return None
        return found

    async def _check(
        self, ctx: Context, peer: Peer, *names: str, last: bool = False
    ) -> Context | None:
        """Ask about the address and `names`, and refuse or remember.

        :param last: what is found is not added to any more.
        """
        if self._exempt.covers(peer):
            return self._forget(ctx, peer)
        assert peer.address is not None
        deadline = asyncio.get_running_loop().time() + self._deadline
        before = self._found(ctx, peer)
        subject = subject_of(peer.address)
        entries = self._entries(peer.address, names)
        resolver = await self._look_ups.ready()
        answers = await self._state.ask(
            resolver, entries, before.answers if before else {}, self._enough(last), deadline
        )
        result = _Result(entries, answers, score(entries, answers))
        total, found = result.total, result.listings
        refused = total.is_refused(self._threshold)
        if refused and not self._mark:
            raise await self._refusal(ctx, resolver, result, deadline)
        if refused and last and (before is None or not before.refused):
            self._tell(ctx, "marked", result)
        vouched = last and total.highest < 0
        return self._remember(
            ctx,
            Finding(
                subject,
                answers,
                found,
                total.known,
                refused,
                next(each.list for each in found if each.weight < 0) if vouched else "",
            ),
        )

    def _entries(self, address: IPAddress, names: tuple[str, ...]) -> tuple[Entry, ...]:
        """Return who is looked for in which list."""
        domains = dict.fromkeys(
            found for each in names if each and (found := domain_subject(each)) is not None
        )
        return tuple(
            Entry(
                each,
                (Question.about_address(each.zone, address),)
                if each.kind == "ip"
                else tuple(Question.about_name(each.zone, name) for name in domains),
            )
            for each in self._lists
        )

    def _enough(self, last: bool) -> Callable[[Score], bool]:  # noqa: FBT001
        threshold = self._threshold
        if not last:
            return lambda total: not total.waiting or total.decides(threshold)
        if self._mark:
            return lambda total: not total.waiting
        return lambda total: not total.waiting or total.decides_all(threshold)

    def _remember(self, ctx: Context, finding: Finding) -> Context | None:
        everybody: Mapping[RBL, Finding] = ctx.value(_FOUND, {})
        before = everybody.get(self)
        if before == finding:
            return None
        result = ctx.with_value(_FOUND, {**everybody, self: finding})
        if finding.vouched:
            return result.with_value(ALLOW_LISTED, finding.vouched)
        return self._take_back(result, before)

    def _forget(self, ctx: Context, peer: Peer) -> Context | None:
        """Drop what was found of another client: XCLIENT named this one since."""
        everybody: Mapping[RBL, Finding] = ctx.value(_FOUND, {})
        before = everybody.get(self)
        if before is None or self._found(ctx, peer) is not None:
            return None
        others = {rbl: finding for rbl, finding in everybody.items() if rbl is not self}
        return self._take_back(ctx.with_value(_FOUND, others), before)

    @staticmethod
    def _take_back(ctx: Context, before: Finding | None) -> Context:
        """Take back what was said of who vouches, if nobody else said it since."""
        if before is not None and before.vouched and ctx.value(ALLOW_LISTED) == before.vouched:
            return ctx.with_value(ALLOW_LISTED, None)
        return ctx

    async def _refusal(
        self, ctx: Context, resolver: LooksUp, result: _Result, deadline: float
    ) -> SMTPError:
        """Return the reply, with the text of the list that weighs most: the first of these."""
        self._tell(ctx, "refused", result)
        said = {
            entry: found
            for entry in result.entries
            if (found := listing(entry, result.answers)) is not None
        }
        entry, worst = max(said.items(), key=lambda each: each[1].weight)
        text = entry.list.reason.replace("{address}", worst.subject)
        if not text:
            question = next(each for each in entry.questions if each.subject == worst.subject)
            text = await self._state.text(resolver, question, deadline)
        subject, name, text = worst.subject, worst.list, f": {text}" if text else ""
        return SMTPError(554, f"{subject} is listed by {name}{text}", enhanced=(5, 7, 1))

    def _tell(self, ctx: Context, verdict: str, result: _Result) -> None:
        ctx.logger.info(
            "%s %s: score %d of %d: %s",
            self._name,
            verdict,
            result.total.known,
            self._threshold,
            "; ".join(map(str, result.listings)),
        )
