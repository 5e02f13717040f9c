"""RedisStore: the shared state of a fleet, decided by scripts inside Redis."""

from __future__ import annotations

import asyncio
import os
import struct
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from preforkmx.errors import StoreUnavailable
from preforkmx.state.budgets import FIRST
from preforkmx.state.decisions import (
    MICROSECONDS,
    NOTHING,
    PREPAID,
    UNLIMITED,
    Admission,
    Decision,
    GreylistVerdict,
    Lease,
    Settlement,
    Spent,
)
from preforkmx.state.greylisting import NEW_TRIPLETS
from preforkmx.state.limits import ADMITTED
from preforkmx.state.local import (
    STATES,
    check_spent,
    check_wanted,
    cost_of,
    granted,
    no_such_lease,
    refusal,
    settlement,
)
from preforkmx.state.mark_table import life_of, marks_of
from preforkmx.state.marks import GROUP_SIZE
from preforkmx.state.networks import host_octets
from preforkmx.state.redis.keys import Keys
from preforkmx.state.redis.script import Command, Script
from preforkmx.state.triplets import short_key, triplet_key

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from preforkmx.model import IPAddress
    from preforkmx.state.decisions import ConnectionLimits, GreylistSettings, Rate
    from preforkmx.state.redis.nodes import Nodes
    from preforkmx.state.redis.script import Word

#: How long a lease lives that nobody renews, in seconds: so long the connections of a killed
#: worker count as open.
LEASE_SECONDS: Final = 90.0
#: A lease is renewed when it was taken or renewed this many seconds ago. Most connections are
#: over before.
RENEW_SECONDS: Final = 30.0
#: How often the leases are looked through, in seconds. One renewal may be lost; one that
#: nobody was there for is tried again at the next look.
LOOK_SECONDS: Final = 10.0
#: The most leases that one command renews: Redis does nothing else meanwhile.
RENEW_AT_ONCE: Final = 500
#: The most keys whose leases are renewed in one turn of the loop: what a link may have unsent is
#: bounded, and what is only told beyond that is lost.
RENEW_KEYS: Final = 1_000
#: The most leases that are given back at once when the store closes, for the same reason.
CLOSE_AT_ONCE: Final = 1_000
#: The most marks of one command, for the same reason.
MARKS_AT_ONCE: Final = 500

#: Where in a lease's keys stand the host's arrival times, and its leases.
ARRIVALS: Final = 0
LEASES: Final = 2

_LEASE_LIFE: Final = round(LEASE_SECONDS * MICROSECONDS)


def load(*names: str) -> Script:
    """Return the script of these files of this folder, one behind the other."""
    folder = files("preforkmx.state.redis")
    lines = (
        line.strip()
        for name in names
        for line in folder.joinpath(f"{name}.lua").read_bytes().splitlines()
    )
    # A Redis that has lost its scripts is sent them by everybody at once: without what is there
    # for readers they are a third shorter.
    return Script(b"\n".join(line for line in lines if line and not line.startswith(b"--")))


OPEN: Final = load("common", "arrivals", "open")
SETTLE: Final = load("common", "arrivals", "settle")
CLOSE: Final = load("common", "arrivals", "close")
RENEW: Final = load("common", "renew")
TAKE: Final = load("common", "take")
GREYLIST: Final = load("common", "greylist")
REMEMBER: Final = load("common", "remember")
KNOWN: Final = load("common", "known")
FORGET: Final = load("common", "forget")
CONTAINS: Final = Command(b"SMISMEMBER")
EXISTS: Final = Command(b"EXISTS")


class RedisStore:
    """The decisions of a Redis that a fleet shares.

    Each decision is one script: it reads everything, decides, and writes everything, while
    Redis does nothing else. So a limit of N admits exactly N, over any number of machines. The
    time is Redis' own.

    A lease lives :data:`LEASE_SECONDS`, and one task renews those of longer connections. The
    places of a worker that was killed are free again when its leases have expired; what its
    sessions had reserved of the budgets is forgotten as time pays for it.

    Belongs to one process and one event loop: :meth:`start` it after the fork.

    :param nodes: who is asked. The store starts and closes it.
    :param prefix: what every key begins with; a site of its own where several share a Redis.
    :param clock: seconds since 1970, for tests. Keys then outlive their expiry by a minute, so
        that only the clock decides. None is Redis' own time.
    :raises ValueError: the prefix is empty, too long, or has a character that it must not have.
    """

    def __init__(
        self,
        nodes: Nodes,
        *,
        prefix: str = "preforkmx",
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._nodes = nodes
        self._keys = Keys(prefix)
        self._clock = clock
        self._renewer: asyncio.Task[None] | None = None
        self._token = b""
        self._last_lease = 0
        #: Leases that are not closed.
        self._held: set[Lease] = set()
        #: Those of them that are a place in Redis, by when they were taken or renewed, in
        #: seconds of the loop; the oldest comes first.
        self._places: dict[Lease, float] = {}

    @property
    def nodes(self) -> Nodes:
        """Who is asked."""
        return self._nodes

    @property
    def keys(self) -> Keys:
        """The names of the keys."""
        return self._keys

    async def start(self) -> None:
        """Connect. Returns after the first attempt, at the latest after one deadline."""
        if self._renewer is None:
            # Leases of all workers of a fleet are in one set, and numbers begin with 1 in each.
            self._token = os.urandom(8)
            self._renewer = asyncio.create_task(self._keep_renewing())
            await self._nodes.start()

    async def close(self) -> None:
        """Give every lease back, and close the connections."""
        renewer, self._renewer = self._renewer, None
        if renewer is None:
            return
        renewer.cancel()
        with suppress(asyncio.CancelledError):
            await renewer
        held, self._held = list(self._held), set()
        self._places.clear()
        # The replies are waited for: what is only told might not leave any more.
        for at in range(0, len(held), CLOSE_AT_ONCE):
            some = held[at : at + CLOSE_AT_ONCE]
            await asyncio.gather(
                *(self._nodes.run(CLOSE, *self._closing(lease, NOTHING)) for lease in some),
                return_exceptions=True,
            )
        await self._nodes.close()

    async def open_connection(self, address: IPAddress, limits: ConnectionLimits) -> Admission:
        """Count a new connection against every limit, and lease one place."""
        keys = self._keys.connection(limits.key, host_octets(address))
        lease = Lease(0, keys, self, address, limits)
        if limits.leases:
            self._last_lease = lease.id = self._last_lease + 1
        numbers = _doubles((*limits.connection_numbers, *limits.budget_numbers))
        args = (self._now(), numbers, self._member(lease), _LEASE_LIFE)
        try:
            reply = await self._nodes.run(OPEN, keys, args)
            with _reading():
                outcome, wait, *units = reply
                if outcome != ADMITTED:
                    return refusal(outcome, wait)
                grants = granted(lease, _spent(units)) if units else None
        except (StoreUnavailable, asyncio.CancelledError):
            # It may be admitted all the same, now or later: its place is given back if it is.
            # Without a place that could tell, what was reserved is left to time.
            if limits.concurrent is not None:
                lease.reserved = FIRST
                self._nodes.tell(CLOSE, *self._closing(lease, NOTHING, unsure=True))
            raise
        if not limits.leases:
            return Admission(admitted=True)
        self._held.add(lease)
        if limits.concurrent is not None:
            self._places[lease] = asyncio.get_running_loop().time()
        if grants is None:
            return Admission(admitted=True, lease=lease)
        return Admission(admitted=True, lease=lease, grants=grants)

    async def settle(self, lease: Lease, spent: Spent, want: Spent = NOTHING) -> Settlement:
        """Book what a session spent, and ask whether it may go on.

        :raises StoreUnavailable: as ever, or the lease has ended, or is another store's.
        """
        check_spent(spent)
        check_wanted(want)
        if lease not in self._held or lease.limits is None:
            raise no_such_lease()
        numbers = lease.limits.budget_numbers
        if not numbers:
            return Settlement(allowed=True)
        amounts = _doubles((*lease.reserved, *spent, *want[:PREPAID]))
        # Should there be no answer, nothing is given back that may have been booked.
        left = tuple(map(_less, lease.reserved, spent))
        lease.reserved = left
        args = (self._now(), _doubles(numbers), amounts)
        reply = await self._nodes.run(SETTLE, (lease.keys[ARRIVALS],), args)
        with _reading():
            code, wait, *grants = reply
            answer = settlement(code, wait, _spent(grants))
            # Another settlement of the same session may have been answered meanwhile.
            lease.reserved = tuple(
                have + (max(0, grant) - had)
                for have, grant, had in zip(lease.reserved, grants[:PREPAID], left, strict=True)
            )
        return answer

    async def close_connection(self, lease: Lease, spent: Spent = NOTHING) -> None:
        """Book what the session spent, and give `lease` back.

        Never fails and never waits: what does not reach Redis is forgotten by time.
        """
        if lease not in self._held:
            return
        self._held.discard(lease)
        self._places.pop(lease, None)
        check_spent(spent)
        self._nodes.tell(CLOSE, *self._closing(lease, spent))
        lease.reserved = NOTHING[:PREPAID]

    async def take(self, limit: Rate, key: str, cost: int = 1) -> Decision:
        """Take `cost` events of the rate `limit` for `key`, or nothing."""
        args = (self._now(), cost_of(limit, cost), limit.tolerance)
        wait = await self._nodes.run(TAKE, (self._keys.rate(short_key(key)),), args)
        with _reading():
            return Decision(not wait, wait / MICROSECONDS)

    async def greylist(
        self, network: str, sender: str, recipient: str, settings: GreylistSettings
    ) -> GreylistVerdict:
        """Look at one triplet, and remember it."""
        keys = self._keys.greylist(short_key(network), triplet_key(network, sender, recipient))
        args = (self._now(), *settings.numbers, NEW_TRIPLETS.interval, NEW_TRIPLETS.tolerance)
        reply = await self._nodes.run(GREYLIST, keys, args)
        with _reading():
            state, left, waited = reply
            return GreylistVerdict(STATES[state], left / MICROSECONDS, waited / MICROSECONDS)

    async def remember(self, keys: Collection[bytes], seconds: float) -> None:
        """Know `keys` for so long from now on, also those that are known already."""
        life = life_of(seconds)
        await self._ask_of_marks(REMEMBER, _batches(marks_of(keys)), self._now(), life)

    async def known(self, keys: Collection[bytes]) -> frozenset[bytes]:
        """Return those of `keys` that are known."""
        batches = _batches(marks_of(keys))
        replies = await self._ask_of_marks(KNOWN, batches, self._now())
        with _reading():
            return frozenset(
                batch[index - 1]
                for batch, reply in zip(batches, replies, strict=True)
                for index in reply
            )

    async def forget(self, keys: Collection[bytes]) -> None:
        """Know `keys` no more."""
        await self._ask_of_marks(FORGET, _batches(marks_of(keys)), self._now())

    async def _ask_of_marks(
        self, script: Script, batches: list[list[bytes]], *args: Word
    ) -> list[Any]:
        """Run `script` for each batch, all in one write, and return their replies.

        :raises StoreUnavailable: one of them has none; the others are done all the same.
        """
        replies = await asyncio.gather(
            *(
                self._nodes.run(script, tuple(map(self._keys.mark, batch)), args)
                for batch in batches
            ),
            return_exceptions=True,
        )
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        return replies

    async def contains(self, key: str, members: Sequence[str]) -> list[bool]:
        """Say of each of `members` whether it is in the set `key`, whoever keeps it.

        It is asked whether there is the set, too: a Redis that was emptied does not know it,
        which says nothing about its members.

        :param key: its whole name, in UTF-8; the prefix is not put in front of it.
        :raises StoreUnavailable: as ever, or there is no such set, or something else has the name.
        """
        keys = (key.encode(),)
        octets = [member.encode("utf-8", "surrogatepass") for member in members]
        # Together: one write, and one deadline for both.
        replies, exists = await asyncio.gather(
            self._nodes.run(CONTAINS, keys, octets), self._nodes.run(EXISTS, keys, ())
        )
        with _reading():
            found = [each == 1 for _, each in zip(members, replies, strict=True)]
        if not any(found) and not exists:
            raise StoreUnavailable(f"there is no set {key!r}", partial=True)
        return found

    def renew(self, before: float) -> bool:
        """Renew the leases that were taken or renewed at `before` or earlier.

        All of it leaves in one write. A lease that Redis has forgotten meanwhile is counted
        again, and no limit refuses it.

        :param before: in seconds of the loop.
        :returns: whether more are due, for the next turn of the loop.
        """
        if not self._nodes.available:
            return False
        now = asyncio.get_running_loop().time()
        members: dict[bytes, list[bytes]] = {}
        more = False
        for lease, since in list(self._places.items()):
            if since > before:
                break
            if len(members) >= RENEW_KEYS and lease.keys[LEASES] not in members:
                more = True
                break
            del self._places[lease]
            self._places[lease] = now
            members.setdefault(lease.keys[LEASES], []).append(self._member(lease))
        for key, every in members.items():
            for some in range(0, len(every), RENEW_AT_ONCE):
                args = (self._now(), _LEASE_LIFE, *every[some : some + RENEW_AT_ONCE])
                self._nodes.tell(RENEW, (key,), args)
        return more

    async def _keep_renewing(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            before = loop.time() - RENEW_SECONDS
            while self.renew(before):  # noqa: ASYNC110 - what each turn tells leaves at its end
                await asyncio.sleep(0)

    def _now(self) -> Word:
        return b"" if self._clock is None else round(self._clock() * MICROSECONDS)

    def _member(self, lease: Lease) -> bytes:
        return self._token + lease.id.to_bytes(8, "big").lstrip(b"\0")

    def _closing(
        self, lease: Lease, spent: Spent, *, unsure: bool = False
    ) -> tuple[tuple[bytes, ...], tuple[Word, ...]]:
        """Return keys and arguments that end `lease`.

        :param unsure: nobody knows whether Redis gave it.
        """
        limits = lease.limits
        numbers = limits.budget_numbers if limits is not None else ()
        args = (
            self._now(),
            _doubles(numbers),
            _doubles((*lease.reserved, *spent)) if numbers else b"",
            self._member(lease) if limits is not None and limits.concurrent is not None else b"",
            int(unsure),
        )
        return (lease.keys[ARRIVALS], lease.keys[LEASES]), args


@contextmanager
def _reading() -> Iterator[None]:
    """Read a reply within, which may be none that the script gives.

    :raises StoreUnavailable: it is not.
    """
    try:
        yield
    except (TypeError, ValueError, IndexError, OverflowError, struct.error) as exc:
        raise StoreUnavailable(f"Redis gave an answer that is none: {exc}") from exc


def _batches(marks: list[bytes]) -> list[list[bytes]]:
    """Return `marks` in parts: each of one group, which one node has, and not too many."""
    groups: dict[bytes, list[bytes]] = {}
    for mark in marks:
        groups.setdefault(mark[:GROUP_SIZE], []).append(mark)
    return [
        group[at : at + MARKS_AT_ONCE]
        for group in groups.values()
        for at in range(0, len(group), MARKS_AT_ONCE)
    ]


@lru_cache(1024)
def _packing(count: int) -> struct.Struct:
    return struct.Struct(f">{count}d")


def _doubles(numbers: Sequence[int]) -> bytes:
    """Return what arrivals.lua reads with ``doubles``: exact to 2^53, rounded above."""
    return _packing(len(numbers)).pack(*numbers)


def _spent(grants: Sequence[int]) -> Spent:
    return Spent(*(UNLIMITED if units < 0 else units for units in grants))


def _less(reserved: int, spent: int) -> int:
    return max(0, reserved - spent)
