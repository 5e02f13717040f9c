"""SPF: refuses, or marks, mail from clients that its domain does not let send (RFC 7208)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from preforkmx.body import prepend
from preforkmx.errors import SMTPError
from preforkmx.middleware.authentication_results import Result, with_result, without_results
from preforkmx.middleware.base import Middleware
from preforkmx.middleware.exemption import Exemption
from preforkmx.middleware.lookups import LookUps
from preforkmx.middleware.spf_check import TIMEOUT, check_host, load_pyspf
from preforkmx.middleware.spf_header import received_spf
from preforkmx.middleware.verdicts import SPF_PASSED, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from preforkmx.context import Context
    from preforkmx.middleware.spf_check import LooksUp, SPFResult
    from preforkmx.model import Envelope, Peer
    from preforkmx.state.networks import IPNetwork

At = Literal["helo", "mail", "data"]

_OF_HELO: Final = Verdict("SPF_OF_HELO")
_OF_MAIL: Final = Verdict("SPF_OF_MAIL")


def spf_result(ctx: Context) -> SPFResult | None:
    """Return what SPF says of this transaction; before MAIL, and without a check there, of HELO.

    None where nothing was checked: there is no SPF in front, or it leaves this client out.
    """
    found: SPFResult | None = ctx.value(_OF_MAIL)
    if found is None:
        found = ctx.value(_OF_HELO)
    return found


class SPF:
    """Checks whether a client may send for the domain that it names.

    ``server.use(SPF().middleware())`` checks the reverse path at MAIL, or the name of HELO where
    that is null, and refuses a fail with 550 5.7.23 and the domain's own explanation. Whatever is
    not refused is marked: with a header Received-SPF, in Authentication-Results, and in the
    Context, where :func:`spf_result` finds it. A pass also says under which name the greylist
    knows the client (:data:`~preforkmx.middleware.verdicts.SPF_PASSED`).

    ``server.use(check_helo(SPF().helo_check))`` and its like refuse, and mark nothing.

    Never checked: who has authenticated, who is on a unix socket, health checks, `allow`, and
    private networks (unless told to).

    :param resolver: who looks names up, a worker's own; None makes one, with `middleware`'s
        lifespan, or with the first check.
    :param on_fail: ``"reject"`` refuses with 550 5.7.23, ``"mark"`` lets pass.
    :param on_softfail: the same for a softfail: the domain is not sure.
    :param on_permerror: ``"reject"`` refuses a domain whose record is wrong with 550 5.7.24.
    :param on_temperror: ``"tempfail"`` defers what cannot be checked now with 451 4.7.24,
        ``"accept"`` lets pass.
    :param allow: networks that are not checked: hosts that forward mail to this server.
    :param exempt_private: leave out private networks, loopback among them
        (:data:`~preforkmx.state.networks.PRIVATE`).
    :param timeout: seconds for one check; RFC 7208 section 4.6.4 wants at least 20.
    """

    def __init__(
        self,
        resolver: LooksUp | None = None,
        *,
        on_fail: Literal["reject", "mark"] = "reject",
        on_softfail: Literal["reject", "mark"] = "mark",
        on_permerror: Literal["reject", "mark"] = "mark",
        on_temperror: Literal["tempfail", "accept"] = "tempfail",
        allow: Iterable[IPNetwork] = (),
        exempt_private: bool = True,
        timeout: float = TIMEOUT,
    ) -> None:
        self._look_ups = LookUps(resolver)
        self._refused = {
            result
            for result, action in (
                ("fail", on_fail),
                ("softfail", on_softfail),
                ("permerror", on_permerror),
                ("temperror", on_temperror),
            )
            if action in {"reject", "tempfail"}
        }
        self._exempt = Exemption(allow, private=exempt_private)
        self._timeout = timeout
        load_pyspf()

    async def helo_check(self, ctx: Context, peer: Peer, _name: str = "") -> Context | None:
        """Check the name of HELO (RFC 7208 section 2.3).

        :returns: a Context that knows the result, as all checks here do.
        :raises SMTPError: 550 or 451.
        """
        found = None if self._exempt.covers(peer) else await self._check(ctx, peer, "")
        if found is None and ctx.value(_OF_HELO) is None:
            return None
        return _remember(ctx.with_value(_OF_HELO, found))

    async def sender_check(self, ctx: Context, peer: Peer, address: str) -> Context | None:
        """Check the reverse path, or the name of HELO where it is null (section 2.4)."""
        found = None if self._exempt.covers(peer) else await self._check(ctx, peer, address)
        if found is None and ctx.value(_OF_MAIL) is None:
            return None
        return _remember(ctx.with_value(_OF_MAIL, found))

    async def data_check(self, ctx: Context, peer: Peer, envelope: Envelope) -> Context | None:
        """Check the reverse path when the message arrives, and mark it.

        So recipients that are not known, and who is deferred at RCPT, cost no look-up; but the
        greylist does not learn of a pass in time.
        """
        result = await self.sender_check(ctx, peer, envelope.sender)
        self._mark((result or ctx).value(_OF_MAIL), peer, envelope)
        return result

    def middleware(self, at: At = "mail") -> Middleware:
        """Return the check at one phase, and what marks the message there.

        Two of them may be in one chain, one at HELO and one later.

        :param at: ``"helo"``, ``"mail"`` or ``"data"``.
        """
        hooks: dict[str, Any] = {
            "helo": {"check_helo": self.helo_check, "handler": self._mark_helo},
            "mail": {
                "check_sender": self.sender_check,
                "handler": self._mark_mail,
                "reset": self._forget,
            },
            "data": {"handler": self.data_check, "reset": self._forget},
        }[at]
        if self._look_ups.own:
            hooks["lifespan"] = self._look_ups.lifespan
        return Middleware(name="spf", **hooks)

    async def _check(self, ctx: Context, peer: Peer, sender: str) -> SPFResult:
        assert peer.address is not None
        found = await check_host(
            await self._look_ups.ready(),
            peer.address,
            peer.helo_name,
            sender,
            receiver=peer.server_name,
            timeout=self._timeout,
        )
        ctx.logger.debug(
            "spf %s of %s %s for %s: %s (%d look-ups)",
            found.result,
            found.identity,
            found.domain,
            found.address,
            found.reason,
            found.lookups,
        )
        if found.result in self._refused:
            raise _refusal(found)
        return found

    async def _mark_helo(self, ctx: Context, peer: Peer, envelope: Envelope) -> None:
        of_mail: SPFResult | None = ctx.value(_OF_MAIL)
        # The null reverse path was checked by the same name.
        if of_mail is None or of_mail.identity != "helo":
            self._mark(ctx.value(_OF_HELO), peer, envelope)

    async def _mark_mail(self, ctx: Context, peer: Peer, envelope: Envelope) -> None:
        self._mark(ctx.value(_OF_MAIL), peer, envelope)

    @staticmethod
    def _mark(found: SPFResult | None, peer: Peer, envelope: Envelope) -> None:
        if found is not None:
            field = received_spf(found, peer.server_name, utf8=envelope.smtputf8)
            envelope.data = prepend(envelope.data, field)

    async def _forget(self, ctx: Context, _peer: Peer) -> Context | None:
        # A check at DATA comes after the hooks of the next MAIL and RCPT, which must not see it.
        if ctx.value(_OF_MAIL) is None:
            return None
        return _remember(ctx.with_value(_OF_MAIL, None))


def _remember(ctx: Context) -> Context:
    """Return a Context whose other values say what its results say."""
    of_helo: SPFResult | None = ctx.value(_OF_HELO)
    of_mail: SPFResult | None = ctx.value(_OF_MAIL)
    ctx = without_results(ctx, "spf")
    for found in (of_helo, of_mail):
        if found is not None:
            # RFC 8601 section 2.7.2.
            about = (
                ("smtp.mailfrom", found.sender)
                if found.identity == "mailfrom"
                else ("smtp.helo", found.helo)
            )
            ctx = with_result(ctx, Result("spf", found.result, (about,)))
    # Whom HELO names says nothing of whom the message is from.
    passed = of_mail.domain if of_mail is not None and of_mail.passed else None
    return ctx if ctx.value(SPF_PASSED) == passed else ctx.with_value(SPF_PASSED, passed)


def _refusal(found: SPFResult) -> SMTPError:
    """Return the reply (RFC 7208 sections 8.4 to 8.7, RFC 7372 sections 3.2 and 3.3)."""
    name = f"HELO {found.domain}" if found.identity == "helo" else found.domain
    if found.result == "temperror":
        text = f"SPF of {name} cannot be checked now, try again later"
        return SMTPError(451, text, enhanced=(4, 7, 24))
    if found.result == "permerror":
        text = f"The SPF record of {name} cannot be used: {found.reason}"
        return SMTPError(550, text, enhanced=(5, 7, 24))
    text = f"SPF {found.result}: {name} does not let {found.address} send its mail"
    if found.explanation:
        # RFC 7208 section 6.2: it is made clear that these are a third party's words.
        text += f"; {found.domain} explains: {found.explanation}"
    return SMTPError(550, text, enhanced=(5, 7, 23))
