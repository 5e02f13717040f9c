"""Lists that say what the test says, when it says so: a resolver without a network."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, ip_address

from preforkmx.dns import list_name


class ScriptedLists:
    """Answers from :attr:`answers`: codes, an exception, an event that is awaited first, or hours.

    What is not there is not listed, and what was answered once is answered without waiting.
    """

    def __init__(self):
        self.answers = {}
        self.texts = {}
        self.asked = []
        self._heard = asyncio.Event()

    def lists(self, subject, zone, *codes):
        """Let `zone` list an address or a domain."""
        self.answers[name_of(subject, zone)] = tuple(map(IPv4Address, codes or ("127.0.0.2",)))

    def fails(self, subject, zone, error):
        self.answers[name_of(subject, zone)] = error

    def never_answers(self, subject, zone):
        self.answers[name_of(subject, zone)] = asyncio.Event()

    def holds(self, subject, zone, *codes):
        """Let `zone` list it once the event that is returned is set."""
        event = asyncio.Event()
        event.codes = tuple(map(IPv4Address, codes))
        self.answers[name_of(subject, zone)] = event
        return event

    def zones(self, subject, *zones):
        return [zone for zone in zones if name_of(subject, zone) in self.asked]

    async def heard(self, name):
        async with asyncio.timeout(10):
            while name not in self.asked:
                self._heard.clear()
                await self._heard.wait()

    async def a(self, name):
        first = name not in self.asked
        self.asked.append(name)
        self._heard.set()
        answer = self.answers.get(name, ())
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            answer = answer.codes
        elif first:
            # Two turns of the loop: it comes from the network.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def txt(self, name):
        self.asked.append(f"TXT {name}")
        answer = self.texts.get(name, ())
        if isinstance(answer, asyncio.Event):
            await answer.wait()
        if isinstance(answer, Exception):
            raise answer
        return answer


def name_of(subject, zone):
    try:
        return list_name(ip_address(subject), zone)
    except ValueError:
        return f"{subject}.{zone}"
