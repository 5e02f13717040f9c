"""Names as a test writes them, in the place of a resolver."""

from __future__ import annotations

import asyncio
from collections import Counter
from ipaddress import ip_address

from preforkmx.dns import MX, Answer
from preforkmx.errors import DNSError, DNSNameError, DNSTimeout


class Zone:
    """Looks names up in a dict: ``{"example.org": [("TXT", "v=spf1 -all")]}``.

    ``"TIMEOUT"`` in the place of a record, or of its data, is a look-up that fails. CNAME records
    are followed.

    :ivar asked: the names and types that were asked for, and how often.
    """

    def __init__(self, records=None, *, cached=False):
        self.records = {name.lower(): list(of) for name, of in (records or {}).items()}
        self.cached = cached
        self.asked = Counter()
        self.together = self.most_together = 0

    def known(self, name, rdtype):
        if not self.cached:
            return None
        try:
            answer = self._answer(name, rdtype)
        except DNSError:
            return None
        self.asked[name, rdtype] += 1
        return answer

    async def query(self, name, rdtype):
        self.asked[name, rdtype] += 1
        self.together += 1
        self.most_together = max(self.together, self.most_together)
        try:
            await self.wait(name)
        finally:
            self.together -= 1
        return self._answer(name, rdtype)

    async def wait(self, name):
        await asyncio.sleep(0)

    def _answer(self, name, rdtype):
        if len(name) > 253 or not all(0 < len(label) < 64 for label in name.split(".")):
            raise DNSNameError(name)
        return Answer(name, rdtype, tuple(self._find(name, rdtype, 0)), 300, 300.0, False)

    def _find(self, name, rdtype, depth):
        if name.startswith("error."):
            raise DNSTimeout("no answer in time")
        found = []
        failing = False
        for record in self.records.get(name, ()):
            if record == "TIMEOUT":
                failing = True
                continue
            kind, data = record
            if data == "TIMEOUT":
                failing = failing or kind == rdtype
            elif kind == rdtype:
                found.append(_record(kind, data))
            elif kind == "CNAME" and depth < 8:
                found += self._find(data.lower(), rdtype, depth + 1)
        if failing and not found:
            raise DNSTimeout("no answer in time")
        return found


def _record(kind, data):
    if kind in {"A", "AAAA"}:
        return ip_address(data)
    if kind == "MX":
        return MX(*data)
    if kind == "TXT":
        return "".join((data,) if isinstance(data, str) else data).encode()
    return data
