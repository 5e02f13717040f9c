"""Resolver: looks names up, for one worker."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final, Self, cast

from preforkmx.dns import messages, tcp
from preforkmx.dns.answer import MX, Answer, Failure
from preforkmx.dns.cache import MAX_ENTRIES, Cache
from preforkmx.dns.counters import DNSCounters
from preforkmx.dns.messages import Malformed, Question
from preforkmx.dns.names import normal_name, reverse_name
from preforkmx.dns.servers import MAX_SERVERS, RESOLV_CONF, parse_server, system_servers
from preforkmx.dns.upstream import Upstream
from preforkmx.errors import (
    DNSBusy,
    DNSError,
    DNSRefused,
    DNSServerFailure,
    DNSTimeout,
    DNSUnreachable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from ipaddress import IPv4Address, IPv6Address
    from pathlib import Path

    from preforkmx.dns.answer import Outcome, RecordType
    from preforkmx.dns.cache import Key
    from preforkmx.dns.names import IPAddress
    from preforkmx.dns.ports import Place

#: Questions that are asked at the same time.
MAX_ASKED: Final = 1000
#: Questions that wait for their turn; their time passes meanwhile.
MAX_QUEUED: Final = 4000
#: Callers that wait for the answer to the same question.
MAX_JOINED: Final = 10_000
#: Connections over TCP at the same time; other questions wait for one.
MAX_TCP: Final = 32
#: Datagrams that are sent within :data:`WINDOW` seconds: the buffer of a server's socket holds
#: about 270 (Linux' net.core.rmem_default), and what does not fit is lost for a whole try.
BURST: Final = 64
WINDOW: Final = 0.005
#: Seconds for which an answer is kept at most, and one that there is nothing (RFC 2308
#: section 5 has found one to three hours to be sensible).
MAX_TTL: Final = 86_400
MAX_NEGATIVE_TTL: Final = 3600
#: Seconds for which a name that could not be looked up is not asked for again (RFC 9520
#: section 3.2).
FAILURE_TTL: Final = 5
#: Seconds by which a deadline may be missed at most; a twentieth of a try if that is less.
MAX_TICK: Final = 0.1


class Resolver:
    """Looks names up with the help of the resolvers that it is given (a stub, RFC 1034 5.3.1).

    Every look-up ends after `timeout`, and none costs anybody else more than its place. Callers
    that ask for the same at the same time share one question. Belongs to one event loop, from
    :meth:`start` to :meth:`close`: start it after the fork; ``async with`` does both.

    :param servers: ``"HOST:PORT"``, in the order in which they are asked; none: the system's.
    :param timeout: seconds for one look-up, all its tries together.
    :param tries: how often a datagram is sent before it is given up; each has its share of the
        time, and asks another server if there is one.
    :param asked: how many questions are asked at the same time.
    :param queued: how many more wait for their turn.
    :param entries: how many answers are kept.
    :param clock: seconds, for what is kept.
    :raises ValueError: one of `servers` is no address with a port, or there are too many.
    """

    def __init__(
        self,
        servers: Sequence[str] = (),
        *,
        timeout: float = 4.0,
        tries: int = 2,
        asked: int = MAX_ASKED,
        queued: int = MAX_QUEUED,
        entries: int = MAX_ENTRIES,
        clock: Callable[[], float] = time.monotonic,
        resolv_conf: Path = RESOLV_CONF,
    ) -> None:
        if len(servers) > MAX_SERVERS:
            raise ValueError(f"at most {MAX_SERVERS} DNS servers are used")
        if timeout <= 0 or tries < 1 or asked < 1 or queued < 0:
            raise ValueError("a look-up needs time, a try and a place")
        self._servers = tuple(map(parse_server, servers))
        self._resolv_conf = resolv_conf
        #: Seconds for one look-up.
        self.timeout = timeout
        self._tries = tries
        self._most_asked = asked
        self._most_queued = queued
        self._clock = clock
        self._cache = Cache(entries)
        self._tick_seconds = min(MAX_TICK, timeout / tries / 20)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._upstreams: list[Upstream] = []
        #: Every question that is not answered yet, …
        self._flights: dict[Key, _Flight] = {}
        #: … those of them that wait for their turn, oldest first, and the number of the others.
        self._queue: OrderedDict[Key, _Flight] = OrderedDict()
        self._asked = 0
        self._timer: asyncio.TimerHandle | None = None
        #: Datagrams that wait for the next window, at most one for each try.
        self._outbox: deque[tuple[_Flight, Upstream]] = deque()
        self._window_ends = 0.0
        self._window_sent = 0
        self._window_timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._tcp_places = asyncio.Semaphore(MAX_TCP)
        self.counters = DNSCounters()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    def lifespan(self) -> Resolver:
        """Return what a Middleware's ``lifespan`` enters in each worker."""
        return self

    @property
    def servers(self) -> tuple[str, ...]:
        """Who is asked, from :meth:`start` on."""
        return tuple(map(str, self._upstreams))

    async def start(self) -> None:
        """Begin to look names up, in the loop that runs. Nobody is asked yet."""
        if self._loop is not None:
            raise RuntimeError("the resolver runs already")
        servers = self._servers or system_servers(self._resolv_conf)
        self._upstreams = [Upstream(server, self.counters) for server in servers]
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        """Stop: who waits gets a :class:`DNSError`, and everything is closed."""
        self._loop = None
        for timer in (self._timer, self._window_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._window_timer = None
        self._outbox.clear()
        for flight in list(self._flights.values()):
            flight.end(Failure(DNSError, "the resolver is closed"))
        self._flights.clear()
        self._queue.clear()
        self._asked = 0
        for upstream in self._upstreams:
            upstream.ports.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def query(self, name: str, rdtype: RecordType) -> Answer:
        """Return what there is of `name` and `rdtype`; that there is nothing is an answer.

        :param name: in ASCII: an international name as A-labels. Each dot ends a label, and no
            other character is special.
        :raises DNSError: it could not be looked up.
        """
        self.counters.queries += 1
        key = (normal_name(name), rdtype)
        outcome = self._cache.get(key, self._clock())
        if outcome is None:
            outcome = await self._look_up(key)
        else:
            self.counters.cached += 1
        if isinstance(outcome, Failure):
            raise outcome.error()
        return outcome

    def known(self, name: str, rdtype: RecordType) -> Answer | None:
        """Return what :meth:`query` would without waiting for anybody; None: it would wait."""
        outcome = self._cache.get((normal_name(name), rdtype), self._clock())
        if outcome is None or isinstance(outcome, Failure):
            return None
        self.counters.queries += 1
        self.counters.cached += 1
        return outcome

    async def a(self, name: str) -> tuple[IPv4Address, ...]:
        """Return the IPv4 addresses of `name`.

        :raises DNSError: it could not be looked up; as everywhere here.
        """
        return cast("tuple[IPv4Address, ...]", (await self.query(name, "A")).records)

    async def aaaa(self, name: str) -> tuple[IPv6Address, ...]:
        """Return the IPv6 addresses of `name`."""
        return cast("tuple[IPv6Address, ...]", (await self.query(name, "AAAA")).records)

    async def mx(self, name: str) -> tuple[MX, ...]:
        """Return the mail exchangers of `name`, the most preferred first."""
        return tuple(sorted(cast("tuple[MX, ...]", (await self.query(name, "MX")).records)))

    async def txt(self, name: str) -> tuple[bytes, ...]:
        """Return the TXT records of `name`, the strings of each joined (RFC 7208 section 3.3)."""
        return cast("tuple[bytes, ...]", (await self.query(name, "TXT")).records)

    async def ptr(self, address: IPAddress) -> tuple[str, ...]:
        """Return the names that the owner of `address` gives it: claims, until `a` agrees."""
        return cast("tuple[str, ...]", (await self.query(reverse_name(address), "PTR")).records)

    async def _look_up(self, key: Key) -> Outcome:
        loop = self._loop
        if loop is None:
            raise DNSError("the resolver is closed")
        flight = self._flights.get(key)
        waiter: asyncio.Future[Outcome] = loop.create_future()
        if flight is None:
            flight = self._admit(key, loop.time())
            flight.waiters.add(waiter)
            if self._asked < self._most_asked:
                self._ask(flight)
            else:
                self._queue[key] = flight
        else:
            self.counters.joined += 1
            if len(flight.waiters) >= MAX_JOINED:
                self.counters.busy += 1
                raise DNSBusy("too many wait for the same answer")
            flight.waiters.add(waiter)
        try:
            return await waiter
        finally:
            flight.waiters.discard(waiter)
            # Another flight may have the key by now.
            if not flight.waiters and self._queue.get(key) is flight:
                del self._queue[key], self._flights[key]

    def _admit(self, key: Key, now: float) -> _Flight:
        if self._asked >= self._most_asked and len(self._queue) >= self._most_queued:
            self.counters.busy += 1
            raise DNSBusy("too many look-ups wait for their turn")
        flight = _Flight(self, key, Question(*key), now + self.timeout, self._tries)
        self._flights[key] = flight
        if self._timer is None:
            self._call_later()
        return flight

    def _ask(self, flight: _Flight) -> None:
        self._asked += 1
        flight.asked = True
        self.try_again(flight)

    def try_again(self, flight: _Flight, *, slow: bool = False) -> None:
        """Ask the next server, or give up.

        :param slow: the last try took its whole time: it is one of those that there are.
        """
        assert self._loop is not None
        now = self._loop.time()
        flight.tries -= slow
        # Who does not wait any more is not asked for again.
        while flight.waiters and flight.tries and now < flight.deadline:
            upstream = self._choose(flight, now, again=slow)
            if upstream is None:
                break
            upstream.chosen(now)
            flight.upstream = upstream
            flight.asked_at = now
            flight.until = flight.deadline
            if flight.tries > 1:
                flight.until = min(flight.deadline, now + self.timeout / self._tries)
            if self.send(flight, upstream, now):
                return
        if not flight.ended:
            self.finish(flight, flight.failure or Failure(DNSTimeout, self._silence(flight)))

    def _choose(self, flight: _Flight, now: float, *, again: bool) -> Upstream | None:
        """Return who is asked next: who was not asked yet, and who does well, comes first.

        :param again: one who was asked already may be asked once more.
        """
        others = []
        for upstream in self._upstreams:
            if upstream not in flight.tried:
                if upstream.resting_until <= now:
                    flight.tried.append(upstream)
                    return upstream
                others.append(upstream)
        if not others and again:
            others = self._upstreams
        if not others:
            return None
        chosen = min(others, key=lambda upstream: upstream.resting_until)
        flight.tried.append(chosen)
        return chosen

    def send(self, flight: _Flight, upstream: Upstream, now: float) -> bool:
        """Send the question, now or in a moment; return False if that cannot be done."""
        if now >= self._window_ends:
            self._window_ends = now + WINDOW
            self._window_sent = 0
        if self._window_sent < BURST and not self._outbox:
            return self._send_now(flight, upstream, now)
        self._outbox.append((flight, upstream))
        if self._window_timer is None:
            self._next_window(self._window_ends)
        return True

    def _next_window(self, when: float) -> None:
        assert self._loop is not None
        self._window_timer = self._loop.call_at(when, self._empty_outbox)

    def _empty_outbox(self) -> None:
        assert self._loop is not None
        now = self._loop.time()
        self._window_timer = None
        self._window_ends = now + WINDOW
        self._window_sent = 0
        while self._outbox and self._window_sent < BURST:
            flight, upstream = self._outbox.popleft()
            # Who waits has perhaps gone on to another server, or away.
            if flight.ended or flight.upstream is not upstream:
                continue
            if not self._send_now(flight, upstream, now):
                self.try_again(flight)
        if self._outbox:
            self._next_window(self._window_ends)

    def _send_now(self, flight: _Flight, upstream: Upstream, now: float) -> bool:
        self._window_sent += 1
        flight.edns = upstream.knows_edns(now)
        try:
            place = upstream.ports.send(flight, edns=flight.edns)
        except OSError as error:
            upstream.missed(now, now)
            flight.failure = Failure(DNSUnreachable, f"{upstream}: {error.strerror}")
            return False
        # A socket that is given up for it tells who waits there, which may end this one.
        if flight.ended:
            place.leave()
        else:
            flight.places.append(place)
        return True

    def received(
        self, flight: _Flight, upstream: Upstream, wire: bytes, *, over_tcp: bool = False
    ) -> None:
        """Take an answer to the question of `flight`: of the last try, or of an earlier one."""
        assert self._loop is not None
        now = self._loop.time()
        upstream.answered(now)
        try:
            reading = messages.read(wire, flight.question)
        except Malformed as error:
            self.counters.malformed += 1
            self.failed(flight, upstream, DNSServerFailure, str(error))
            return
        rcode = reading.rcode
        if reading.truncated:
            if over_tcp:
                self.failed(flight, upstream, DNSServerFailure, "truncated over TCP")
            else:
                self.ask_over_tcp(flight, upstream)
        elif rcode in {messages.NOERROR, messages.NXDOMAIN}:
            self.finish(flight, self._answer(flight, reading), len(wire))
        elif flight.edns and rcode in {messages.FORMERR, messages.NOTIMP, messages.BADVERS}:
            # RFC 6891 section 7: it may be the OPT record that it does not know.
            upstream.refused_edns(now)
            if not self.send(flight, upstream, now):
                self.try_again(flight)
        else:
            kind = DNSRefused if rcode == messages.REFUSED else DNSServerFailure
            self.failed(flight, upstream, kind, f"answered with {_rcode_name(rcode)}")

    def refused(self, flight: _Flight, upstream: Upstream, reason: str) -> None:
        """Learn that nobody is at the server's address."""
        assert self._loop is not None
        upstream.missed(flight.asked_at, self._loop.time())
        self.failed(flight, upstream, DNSUnreachable, reason)

    def failed(
        self, flight: _Flight, upstream: Upstream, kind: type[DNSError], reason: str
    ) -> None:
        """Ask another server, unless one is being asked already."""
        flight.failure = Failure(kind, f"{upstream}: {reason}")
        if upstream is flight.upstream:
            self.try_again(flight)

    def ask_over_tcp(self, flight: _Flight, upstream: Upstream) -> None:
        """Ask again over TCP, within the same try."""
        assert self._loop is not None
        if flight.task is None:
            self.counters.tcp += 1
            flight.upstream = upstream
            task = self._loop.create_task(self._tcp(flight, upstream))
            flight.task = task
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _tcp(self, flight: _Flight, upstream: Upstream) -> None:
        number = secrets.randbits(16)
        query = flight.question.query(number, edns=flight.edns)
        try:
            async with self._tcp_places:
                wire = await tcp.ask(upstream.server, query)
            if messages.id_of(wire) != number or not flight.question.is_answered_by(wire):
                self.counters.wrong += 1
                raise OSError("an answer to something else")
        except OSError as error:
            flight.task = None
            self.failed(flight, upstream, DNSServerFailure, f"over TCP: {error}")
        else:
            flight.task = None
            self.received(flight, upstream, wire, over_tcp=True)

    def _answer(self, flight: _Flight, reading: messages.Reading) -> Answer:
        longest = MAX_TTL if reading.records else MAX_NEGATIVE_TTL
        ttl = min(reading.ttl or 0, longest)
        question = flight.question
        nxdomain = reading.rcode == messages.NXDOMAIN
        expires = self._clock() + ttl
        return Answer(question.name, question.rdtype, reading.records, ttl, expires, nxdomain)

    def finish(self, flight: _Flight, outcome: Outcome, size: int = 0) -> None:
        """Tell who waits, remember, and let the next one have the place."""
        now = self._clock()
        if isinstance(outcome, Failure):
            self.counters.failures += 1
            # That nobody is there says nothing of the name.
            if flight.waiters and outcome.kind is not DNSUnreachable:
                outcome = outcome._replace(expires=now + FAILURE_TTL)
        self._cache.put(flight.key, outcome, size, now)
        del self._flights[flight.key]
        flight.end(outcome)
        if flight.asked:
            self._asked -= 1
            if self._queue:
                assert self._loop is not None
                self._loop.call_soon(self._next_in_the_queue)
        else:
            del self._queue[flight.key]

    def _next_in_the_queue(self) -> None:
        if self._queue and self._asked < self._most_asked and self._loop is not None:
            _, flight = self._queue.popitem(last=False)
            self._ask(flight)

    def _call_later(self) -> None:
        assert self._loop is not None
        self._timer = self._loop.call_later(self._tick_seconds, self._tick)

    def _tick(self) -> None:
        """Look at all the deadlines: one timer, however many look-ups there are."""
        assert self._loop is not None
        now = self._loop.time()
        try:
            for flight in [flight for flight in self._flights.values() if flight.until <= now]:
                if not flight.ended:
                    self._missed(flight, now)
        finally:
            self._timer = None
            if self._flights:
                self._call_later()

    def _missed(self, flight: _Flight, now: float) -> None:
        if flight.asked:
            self.counters.timeouts += 1
            flight.upstream.missed(flight.asked_at, now)
            flight.forget_tcp()
            self.try_again(flight, slow=True)
        else:
            self.finish(flight, Failure(DNSTimeout, "other look-ups took all the time"))

    def _silence(self, flight: _Flight) -> str:
        tried = ", ".join(dict.fromkeys(map(str, flight.tried)))
        return f"no answer from {tried} within {self.timeout:g} s"


class _Flight:
    """One question on its way, and who waits for the answer."""

    __slots__ = (
        "asked",
        "asked_at",
        "deadline",
        "edns",
        "ended",
        "failure",
        "key",
        "places",
        "question",
        "resolver",
        "task",
        "tried",
        "tries",
        "until",
        "upstream",
        "waiters",
    )

    def __init__(
        self, resolver: Resolver, key: Key, question: Question, deadline: float, tries: int
    ) -> None:
        self.resolver = resolver
        self.key = key
        self.question = question
        self.deadline = deadline
        #: When the present try is over.
        self.until = deadline
        self.tries = tries
        self.waiters: set[asyncio.Future[Outcome]] = set()
        #: It has left the queue.
        self.asked = False
        self.ended = False
        self.tried: list[Upstream] = []
        self.upstream: Upstream
        self.asked_at = 0.0
        self.edns = True
        #: Where answers are taken: an earlier try's counts as long as there is none.
        self.places: list[Place] = []
        self.task: asyncio.Task[None] | None = None
        self.failure: Failure | None = None

    # What its port tells one socket's askers may end it while they are told.

    def received(self, upstream: Upstream, wire: bytes) -> None:
        if not self.ended:
            self.resolver.received(self, upstream, wire)

    def refused(self, upstream: Upstream, reason: str) -> None:
        if not self.ended:
            self.resolver.refused(self, upstream, reason)

    def suspected(self, upstream: Upstream) -> None:
        if not self.ended:
            self.resolver.ask_over_tcp(self, upstream)

    def forget_tcp(self) -> None:
        task, self.task = self.task, None
        if task is not None:
            task.cancel()

    def end(self, outcome: Outcome) -> None:
        self.ended = True
        self.forget_tcp()
        for place in self.places:
            place.leave()
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(outcome)
        self.waiters.clear()


_RCODES: Final = {
    messages.FORMERR: "FORMERR",
    messages.SERVFAIL: "SERVFAIL",
    messages.NOTIMP: "NOTIMP",
    messages.REFUSED: "REFUSED",
}


def _rcode_name(rcode: int) -> str:
    return _RCODES.get(rcode, f"RCODE {rcode}")
