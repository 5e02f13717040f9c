"""The servers of a next hop: where they are, and how they do."""

from __future__ import annotations

import logging
from ipaddress import ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from preforkmx.delivery.nexthop.offers import Offers

logger = logging.getLogger(__name__)

FIRST_REST = 1.0
"""Seconds for which a server rests after it failed; twice as long each time."""
LONGEST_REST = 60.0
MAX_UNIX_PATH = 107
"""Octets of a unix socket's path (unix(7): sun_path)."""


def split(address: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``; of ``unix:/PATH`` the path and 0.

    HOST is a name, an IPv4 address, or an IPv6 address in brackets.

    :raises ValueError: with a text for the operator when it is neither.
    """
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if not path.startswith("/") or "\0" in path or len(path.encode()) > MAX_UNIX_PATH:
            raise ValueError(f"{address!r} is not unix:/PATH with at most {MAX_UNIX_PATH} octets")
        return path, 0
    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit() and 0 < int(port) <= 65535):
        raise ValueError(f"{address!r} is not HOST:PORT or unix:/PATH")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ip_address(host).version != 6:
            raise ValueError(f"{host!r} is no IPv6 address")
    elif ":" in host:
        raise ValueError(f"write {address!r} as [ADDRESS]:PORT")
    elif not host or not host.isascii() or not host.isprintable() or " " in host:
        raise ValueError(f"{address!r} is not HOST:PORT or unix:/PATH")
    return host, int(port)


class Server:
    """One server and its health.

    One that failed rests, for growing pauses; after each of them one link is the trial that
    tells whether it is back.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        """As it is configured; what the log calls it."""
        self.host, self.port = split(address)
        self.offers: Offers | None = None
        """What it offered last, under TLS where TLS was used; None: it was not heard of yet."""
        self.verified = False
        """Its certificate was verified then."""
        self.failures = 0
        """Failures since it last worked."""
        self._rests_until = 0.0
        self._trial = False

    @property
    def unix(self) -> bool:
        """It is a unix socket."""
        return not self.port

    @property
    def private(self) -> bool:
        """Nobody but this machine hears what is said to it."""
        if self.unix or self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    def may_be_asked(self, now: float) -> bool:
        """Say whether a link may be opened now: it works, or nobody tries whether it does."""
        return not self.failures or (now >= self._rests_until and not self._trial)

    def trying(self) -> int:
        """A link is being opened; :meth:`failed`, :meth:`worked` or :meth:`given_up` follows.

        :returns: what `failed` is to be told.
        """
        self._trial = self.failures > 0
        return self.failures

    def given_up(self) -> None:
        """Whoever tried has gone, and nothing is known."""
        self._trial = False

    def failed(self, attempt: int, now: float, reason: object) -> None:
        """It could not be used: let it rest. Of many that fail at the same time one counts."""
        if attempt != self.failures:
            return
        rest = min(FIRST_REST * 2 ** min(self.failures, 16), LONGEST_REST)
        self.failures += 1
        self._trial = False
        self._rests_until = now + rest
        logger.warning("%s cannot be used, it rests for %g s: %s", self.address, rest, reason)

    def worked(self, offers: Offers, *, verified: bool) -> None:
        """A link to it is ready."""
        if self.failures:
            logger.info("%s can be used again", self.address)
        self.failures = 0
        self._trial = False
        self.offers = offers
        self.verified = verified


def promises(servers: Iterable[Server]) -> frozenset[str]:
    """Return the promises that every server can keep that was heard of; nothing before.

    REQUIRETLS is one only where the certificate is verified (RFC 8689 section 4.2.1).
    """
    kept = [
        server.offers.promises if server.verified else server.offers.promises - {"REQUIRETLS"}
        for server in servers
        if server.offers is not None
    ]
    return frozenset.intersection(*kept) if kept else frozenset()
