"""A cluster: every primary has a part of the keys."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from preforkmx.errors import StoreUnavailable
from preforkmx.state.redis.connection import printable
from preforkmx.state.redis.link import Link, Unreachable, ask_once
from preforkmx.state.redis.nodes import Askers
from preforkmx.state.redis.resolve import Resolvers
from preforkmx.state.redis.script import pack
from preforkmx.state.redis.slots import (
    MAX_NODES,
    SLOTS,
    Range,
    read_redirection,
    read_slots,
    slot_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from preforkmx.state.redis.link import Access
    from preforkmx.state.redis.url import Address

_log = logging.getLogger("preforkmx.state")

#: Between two questions for the table of slots lie at least so many seconds.
REFRESH_PAUSE: Final = 1.0
#: While nothing is wrong the table is asked for this rarely, in seconds.
REFRESH_SECONDS: Final = 60.0
#: The link to a node without slots is kept for so many seconds after somebody was sent there.
GUEST_SECONDS: Final = 30.0
#: A node that is away or refuses is reported at most once in so many seconds.
REPORT_SECONDS: Final = 60.0

_CLUSTER_SLOTS: Final = pack("CLUSTER", "SLOTS")
_READ_AGAIN: Final = frozenset({"MOVED", "CLUSTERDOWN", "READONLY", "MASTERDOWN"})


class ClusterNodes(Askers):
    """One link for each primary, and a table of who has which slot.

    A primary that is dead or stands still costs its own slots one deadline, then they fail at
    once; other slots do not notice. The table is read again in the background when something is
    wrong (a redirection, a link that is lost or overdue, a slot that nobody has), once a second
    at most, and always by one task.

    :param seeds: some of the nodes, which know the others.
    """

    def __init__(self, seeds: Sequence[Address], access: Access, deadline: float) -> None:
        super().__init__(deadline)
        self._seeds = tuple(seeds)
        self._access = access
        self._node_access = replace(access, scripts=False)
        self._resolvers = Resolvers()
        #: The links of all primaries, and the one of each slot.
        self._links: dict[Address, Link] = {}
        self._table: list[Link | None] = [None] * SLOTS
        #: Every node that is known, replicas included: any of them knows the others.
        self._known: dict[Address, None] = dict.fromkeys(seeds)
        self._refresher: asyncio.Task[None] | None = None
        self._first = asyncio.Event()
        self._wanted = asyncio.Event()
        #: Who spoke of a change: it is asked first.
        self._informer: Link | None = None
        #: When a node that is in no table was redirected to: the target of slots on their way.
        self._guests: dict[Address, float] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._reported: dict[Address, float] = {}
        self._away: set[Address] = set()
        self._why = "the cluster was not asked yet"
        self._complained = -REPORT_SECONDS

    @property
    def available(self) -> bool:
        """Whether at least one node would be asked now."""
        return any(link.ready for link in self._links.values())

    async def start(self) -> None:
        """Read the table and connect, as far as both are done within one deadline."""
        if self._refresher is None:
            self._refresher = asyncio.create_task(self._keep_table())
        with suppress(TimeoutError):
            async with asyncio.timeout(self._deadline):
                await self._first.wait()
                for link in tuple(self._links.values()):
                    await link.attempted()

    async def close(self) -> None:
        """Close all connections."""
        refresher, self._refresher = self._refresher, None
        if refresher is not None:
            refresher.cancel()
            with suppress(asyncio.CancelledError):
                await refresher
        await self._end_repeats()
        leaving = tuple(self._leaving)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        links, self._links = self._links, {}
        self._table = [None] * SLOTS
        for link in links.values():
            await link.close()
        self._resolvers.close()

    def names(self) -> tuple[str, ...]:
        """Return the addresses of all primaries."""
        return tuple(map(str, self._links))

    def _link_of(self, key: bytes) -> Link:
        if not key:
            return next(self._asked_first())
        link = self._table[slot_of(key)]
        if link is None:
            self._wanted.set()
            raise StoreUnavailable(f"no node has the key's slot: {self._why}")
        return link

    def _link_named(self, node: str) -> Link:
        for address, link in self._links.items():
            if str(address) == node:
                return link
        raise StoreUnavailable(f"{node} is not a primary of the cluster")

    def _is_partial(self, link: Link | None) -> bool:
        return any(other.ready for other in self._links.values() if other is not link)

    async def _redirected(self, link: Link, code: str, text: str) -> tuple[Link, bool] | None:
        if code not in {"MOVED", "ASK"}:
            return None
        try:
            slot, address = read_redirection(text, link.address.host if link.address else "")
        except ValueError:
            self._wanted.set()
            return None
        other = self._links.get(address)
        if other is None:
            if len(self._links) >= MAX_NODES or self._refresher is None:
                return None
            other = self._add(address)
        self._guests[address] = time.monotonic()
        if code == "MOVED":
            self._table[slot] = other
            self._informer = link
            self._wanted.set()
        if not other.connected:
            # The caller waits no longer than its deadline.
            await other.up()
        return other, code == "ASK"

    def _refused(self, link: Link, text: str) -> None:
        code = text.partition(" ")[0]
        if link.address is not None and self._may_report(link.address):
            _log.warning("the Redis node %s refuses: %s", link, printable(text))
        if code in _READ_AGAIN:
            self._informer = link
            self._wanted.set()

    def _asked_first(self) -> Iterator[Link]:
        """Return the links that answer, whoever spoke of a change first.

        :raises StoreUnavailable: there is none.
        """
        ready = [link for link in self._links.values() if link.ready]
        if not ready:
            raise StoreUnavailable(f"no node of the cluster answers: {self._why}")
        ready.sort(key=lambda link: link is not self._informer)
        return iter(ready)

    async def _keep_table(self) -> None:
        while True:
            self._wanted.clear()
            good = await self._refresh()
            self._first.set()
            await asyncio.sleep(REFRESH_PAUSE)
            if good and all(link.ready for link in self._links.values()):
                with suppress(TimeoutError):
                    async with asyncio.timeout(REFRESH_SECONDS):
                        await self._wanted.wait()

    async def _refresh(self) -> bool:
        """Read the table from whoever has it, and say whether all slots are in it."""
        try:
            ranges = await self._read_table()
            return self._take(ranges)
        except Unreachable as exc:
            self._why = str(exc)
            self._complain(exc)
        except Exception as exc:
            self._report(exc)
        return False

    async def _read_table(self) -> list[Range]:
        reasons: list[str] = []
        with suppress(StoreUnavailable):
            for link in self._asked_first():
                try:
                    reply = await link.ask(_CLUSTER_SLOTS)
                except StoreUnavailable as exc:
                    reply = exc
                ranges = self._read(reply, link.address, reasons)
                if ranges is not None:
                    return ranges
        # In turn: who did not answer comes last the next time.
        for address in tuple(self._known):
            try:
                reply = await ask_once(
                    address,
                    self._node_access,
                    self._deadline,
                    *("CLUSTER", "SLOTS"),
                    resolver=self._resolvers.of(address.host),
                )
            except Unreachable as exc:
                reply = exc
            ranges = self._read(reply, address, reasons)
            if ranges is not None:
                return ranges
            self._known.pop(address)
            self._known[address] = None
        raise Unreachable("; ".join(reasons)[:500])

    def _read(self, reply: Any, address: Address | None, reasons: list[str]) -> list[Range] | None:
        if isinstance(reply, Exception):
            reasons.append(f"{address}: {printable(reply)}")
            return None
        try:
            return read_slots(reply, address.host if address is not None else "")
        except ValueError as exc:
            reasons.append(f"{address}: {exc}")
            return None

    def _take(self, ranges: list[Range]) -> bool:
        """Use a new table, and say whether all slots are in it."""
        now = time.monotonic()
        primaries = dict.fromkeys(one.primary for one in ranges)
        for address in primaries:
            if address not in self._links:
                self._add(address)
            self._guests.pop(address, None)
        table: list[Link | None] = [None] * SLOTS
        for one in ranges:
            table[one.first : one.last + 1] = [self._links[one.primary]] * (
                one.last + 1 - one.first
            )
        self._table = table
        for address in tuple(self._links):
            if (
                address not in primaries
                and now - self._guests.get(address, -GUEST_SECONDS) >= GUEST_SECONDS
            ):
                self._guests.pop(address, None)
                self._leave(address)
        replicas = (replica for one in ranges for replica in one.replicas)
        self._known = dict.fromkeys((*primaries, *replicas, *self._seeds))
        self._why = "it was in no node's table"
        return None not in table

    def _add(self, address: Address) -> Link:
        async def locate() -> Address:
            return address

        link = Link(locate, self._access, self._deadline, on_change=self._changed)
        link.address = address
        self._links[address] = link
        link.start()
        return link

    def _leave(self, address: Address) -> None:
        link = self._links.pop(address)
        self._away.discard(address)
        self._reported.pop(address, None)

        async def leave() -> None:
            try:
                # Who asked it a moment ago is still answered.
                await asyncio.sleep(2 * self._deadline)
            finally:
                await link.close()

        task = asyncio.create_task(leave())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _changed(self, link: Link) -> None:
        address = link.address
        if self._refresher is None or address is None or self._links.get(address) is not link:
            return
        if link.ready:
            if address in self._away:
                self._away.discard(address)
                _log.warning("the Redis node %s is back", address)
            return
        self._wanted.set()
        if self._may_report(address):
            self._away.add(address)
            _log.warning("the Redis node %s is away: %s", address, link.why)

    def _may_report(self, address: Address) -> bool:
        now = time.monotonic()
        if now - self._reported.get(address, -REPORT_SECONDS) < REPORT_SECONDS:
            return False
        self._reported[address] = now
        return True

    def _complain(self, why: Unreachable) -> None:
        now = time.monotonic()
        if now - self._complained >= REPORT_SECONDS:
            self._complained = now
            _log.error("no node of the Redis cluster has told its table of slots: %s", why)
