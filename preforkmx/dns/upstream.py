"""One resolver that is asked, and how well it does."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from preforkmx.dns.ports import Ports

if TYPE_CHECKING:
    from preforkmx.dns.counters import DNSCounters
    from preforkmx.dns.servers import Server

#: Tries without an answer, one after the other, after which others are asked first.
MAX_MISSED: Final = 3
#: Seconds for which they are: first, and at most; twice as long each time.
FIRST_REST: Final = 1.0
LONGEST_REST: Final = 30.0
#: Seconds for which a server that knows no EDNS is asked without.
PLAIN_SECONDS: Final = 600.0

_log = logging.getLogger(__name__)


class Upstream:
    """A resolver. Times are those of the event loop."""

    __slots__ = ("_heard", "_missed", "_plain_until", "_rest", "ports", "resting_until", "server")

    def __init__(self, server: Server, counters: DNSCounters) -> None:
        self.server = server
        self.ports = Ports(self, counters)
        self.resting_until = 0.0
        self._rest = 0.0
        self._missed = 0
        self._heard = -1.0
        self._plain_until = 0.0

    def __str__(self) -> str:
        return self.server.text

    def chosen(self, now: float) -> None:
        """Learn that it is asked: of one that missed much, one question at a time finds out."""
        if self._missed >= MAX_MISSED:
            self.resting_until = now + self._rest

    def answered(self, now: float) -> None:
        """Learn that it answered something."""
        if self._missed >= MAX_MISSED:
            _log.warning("DNS server %s answers again", self.server.text)
        self._heard = now
        self._missed = 0
        self._rest = self.resting_until = 0.0

    def missed(self, asked: float, now: float) -> None:
        """Learn that what it was asked at `asked` was not answered.

        Whoever answered something else meanwhile does well: it is the name that nobody answers.
        """
        if self._heard >= asked:
            return
        self._missed += 1
        if self._missed >= MAX_MISSED:
            if self._missed == MAX_MISSED:
                _log.warning("DNS server %s does not answer", self.server.text)
            self._rest = min(2 * self._rest or FIRST_REST, LONGEST_REST)
            self.resting_until = now + self._rest

    def knows_edns(self, now: float) -> bool:
        """Return whether it is asked with EDNS0 (RFC 6891)."""
        return now >= self._plain_until

    def refused_edns(self, now: float) -> None:
        """Learn that it does not know EDNS0."""
        self._plain_until = now + PLAIN_SECONDS
