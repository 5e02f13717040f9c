"""What a resolver counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class DNSCounters:
    """Totals of one resolver since it was made."""

    queries: int = 0
    """Calls of :meth:`~preforkmx.dns.resolver.Resolver.query`."""
    cached: int = 0
    """… that the cache answered, failures among them."""
    joined: int = 0
    """… that waited for the answer to another one."""
    busy: int = 0
    """… that were refused because too many wait."""
    sent: int = 0
    """Datagrams sent."""
    tcp: int = 0
    """Questions asked over TCP."""
    timeouts: int = 0
    """Tries that nobody answered in time."""
    failures: int = 0
    """Look-ups without an answer, whatever the reason."""
    late: int = 0
    """Answers to what is not waited for any more."""
    wrong: int = 0
    """Answers to what was not asked: forged, or of a broken server."""
    malformed: int = 0
    """Answers that cannot be read."""
    ports: int = 0
    """UDP sockets opened."""
