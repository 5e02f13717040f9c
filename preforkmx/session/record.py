"""What a session tells the access log: its refusal, its transactions, its end."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from preforkmx.middleware.authentication_results import Result
    from preforkmx.model import Envelope, Peer
    from preforkmx.observe.log import AccessLog
    from preforkmx.protocol.replies import Reply

MAX_LOGGED_RECIPIENTS = 100
"""Recipients that a transaction's line names; the line counts all of them."""


def log_refused_already(
    log: AccessLog, peer: Peer, reply: Reply, *, by: str, limit: str, via: str | None
) -> None:
    """A client was refused before there was a session: its one line."""
    log.emit(
        "refused",
        log.render(
            peer=peer.host,
            port=peer.port,
            listener=peer.listener,
            via=via,
            verdict=verdict(reply),
            by=by,
            limit=limit or None,
            reply=reply.text,
        ),
    )


class Record:
    """Collects what a session's log lines say. Made only where there is an access log."""

    __slots__ = (
        "_about_peer",
        "_about_text",
        "_by",
        "_limit",
        "_log",
        "_refused",
        "_reply",
        "_session_id",
        "_started",
        "_via",
        "_who",
        "transactions",
    )

    def __init__(self, log: AccessLog, session_id: str, peer: Peer, via: str | None) -> None:
        self._log = log
        self._session_id = session_id
        self._via = via
        self.identify(peer)
        self._about_peer: Peer | None = None
        self._about_text = ""
        self._started = monotonic()
        self._reply: Reply | None = None
        self._by: str | None = None
        self._limit = ""
        self._refused = 0
        self.transactions = 0

    def identify(self, peer: Peer) -> None:
        """From here on the lines are about `peer`."""
        self._who = self._log.render(
            session=self._session_id,
            peer=peer.host,
            port=peer.port,
            listener=peer.listener,
            via=self._via,
        )

    def _about(self, peer: Peer) -> str:
        if peer is not self._about_peer:
            self._about_peer = peer
            self._about_text = self._log.render(
                helo=peer.helo_name or None,
                proto=peer.protocol or None,
                tls=peer.tls.version if peer.tls else None,
                user=peer.username,
            )
        return self._about_text

    def refused(self, peer: Peer, reply: Reply, by: str | None) -> None:
        """The client was refused before its greeting."""
        tls = peer.tls.version if peer.tls else None
        self._log.emit(
            "refused",
            self._who,
            self._log.render(
                tls=tls,
                verdict=verdict(reply),
                by=by,
                limit=reply.limit or None,
                reply=reply.text,
            ),
        )

    def auth_refused(self, peer: Peer, reply: Reply, by: str | None, mechanism: str) -> None:
        """Credentials were refused. The name is left out: people type passwords there."""
        self._log.emit(
            "auth",
            self._who,
            self._about(peer),
            self._log.render(
                mechanism=mechanism,
                verdict=verdict(reply),
                by=by,
                limit=reply.limit or None,
                reply=reply.text,
            ),
        )

    def recipient_refused(self, reply: Reply, by: str | None) -> None:
        """A recipient was refused; a transaction that takes none is explained by the last."""
        self._refused += 1
        self._reply = reply
        self._by = by
        self._limit = reply.limit or self._limit

    def transaction(
        self,
        peer: Peer,
        envelope: Envelope,
        *,
        outcome: str,
        started: float,
        reply: Reply | None = None,
        by: str | None = None,
        size: int | None = None,
        error: str | None = None,
        rejected: int | None = None,
        results: tuple[Result, ...] = (),
    ) -> None:
        """A transaction ended.

        :param outcome: ``accepted``, ``deferred``, ``refused``, ``aborted`` or ``reset``.
        :param results: what checks found out about it: SPF say.
        :param started: on the clock of :func:`time.monotonic`.
        """
        if outcome == "reset" and self._reply is not None and not envelope.recipients:
            reply, by = self._reply, self._by
            outcome = verdict(self._reply)
        recipients = envelope.recipients
        count = len(recipients)
        named = (
            recipients[0]
            if count == 1
            else ",".join(recipients[:MAX_LOGGED_RECIPIENTS])
            if recipients
            else None
        )
        log = self._log
        log.emit(
            "transaction",
            self._who,
            self._about(peer),
            log.render(
                id=envelope.id,
                sender=envelope.sender,
                recipients=named,
                count=count,
                not_taken=self._refused or None,
                size=size,
                verdict=outcome,
                by=by,
                limit=(reply.limit if reply is not None else "") or self._limit or None,
                rejected=rejected,
                results=shown(results) if results else None,
                # That of an accepted message says nothing but its id again.
                reply=reply.text if reply is not None and outcome != "accepted" else None,
                error=error,
                ms=int((monotonic() - started) * 1000),
            ),
        )
        self.transactions += 1
        self._refused = 0
        self._reply = self._by = None
        self._limit = ""

    def ended(self, peer: Peer, how: str, *, messages: int, errors: int) -> None:
        """The session is over.

        :param how: ``quit``, ``refused``, ``lost``, ``timeout``, ``shutdown``, ``error`` …
        """
        self._log.emit(
            "session",
            self._who,
            self._about(peer),
            self._log.render(
                ended=how,
                transactions=self.transactions,
                messages=messages,
                errors=errors,
                ms=int((monotonic() - self._started) * 1000),
            ),
        )


def shown(results: tuple[Result, ...]) -> str:
    """Return ``"spf=pass(mailfrom)"``, with a space between several."""
    return " ".join(
        f"{each.method}={each.result}"
        + "".join(f"({name.partition('.')[2]})" for name, _ in each.properties[:1])
        for each in results
    )


def verdict(reply: Reply) -> str:
    """Name the class of `reply` as the log does."""
    return "accepted" if reply.code < 400 else "deferred" if reply.code < 500 else "refused"
