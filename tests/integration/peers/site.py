"""A site's own code, as the servers of these tests have it: ``use = "…peers.site:OBJECT"``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preforkmx.errors import SMTPError
from preforkmx.middleware import authenticator
from preforkmx.middleware.base import Middleware

if TYPE_CHECKING:
    from preforkmx.context import Context
    from preforkmx.model import Envelope, Peer

SITE = "tests.integration.peers.site"
USER = "joe"
PASSWORD = "correct horse battery staple"


async def check_password(ctx: Context, peer: Peer, user: str, password: str) -> None:
    if (user, password) != (USER, PASSWORD):
        raise SMTPError(535, "Authentication credentials invalid", enhanced=(5, 7, 8))


users = authenticator(check_password)


def notes(path: str) -> Middleware:
    """Write a line of JSON for each connection, and for each MAIL, with what the Peer says."""

    def note(event: str, peer: Peer) -> None:
        with Path(path).open("a") as file:
            file.write(json.dumps({"event": event, **_facts(peer)}) + "\n")

    async def check_connection(ctx: Context, peer: Peer) -> None:
        note("connection", peer)

    async def check_sender(ctx: Context, peer: Peer, address: str) -> None:
        note("mail", peer)

    return Middleware(check_connection=check_connection, check_sender=check_sender, name="notes")


def noted(path: Path, event: str) -> list[dict[str, Any]]:
    """Return what :func:`notes` wrote of one kind of event."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [found for found in map(json.loads, lines) if found["event"] == event]


async def picky(ctx: Context, peer: Peer, envelope: Envelope) -> None:
    """Be a delivery that has no room for recipients whose name begins with ``full``."""
    async for _chunk in envelope.data:
        pass
    for index, recipient in enumerate(envelope.recipients):
        if recipient.startswith("full"):
            envelope.reject_recipient(
                index, SMTPError(452, f"No room for {recipient}", enhanced=(4, 2, 2))
            )


def _facts(peer: Peer) -> dict[str, Any]:
    proxy = peer.proxy
    facts: dict[str, Any] = {
        "host": peer.host,
        "port": peer.port,
        "name": peer.name,
        "helo": peer.helo_name,
        "user": peer.username,
        "health_check": peer.is_health_check,
        "to": [None if peer.server_address is None else str(peer.server_address), peer.server_port],
    }
    if proxy is not None:
        facts |= {
            "version": proxy.version,
            "unique_id": None if proxy.unique_id is None else proxy.unique_id.decode(),
            "authority": proxy.authority,
            "tls": None if proxy.tls is None else proxy.tls.version,
            "client_ssl": proxy.tls is not None and proxy.tls.client_ssl,
            "tlvs": [kind for kind, _value in proxy.tlvs],
        }
    return facts
