"""The engine of the shared state against its rules, with whatever hypothesis thinks of."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from preforkmx.state.decisions import (
    BUDGETS,
    GIVE_BACK,
    NOTHING,
    PREPAID,
    UNLIMITED,
    ConnectionLimits,
    GreylistSettings,
    GreylistState,
    Rate,
    Spent,
)
from preforkmx.state.embedded import frames
from preforkmx.state.embedded.server import MAX_LEASES, _Client, _Clients
from preforkmx.state.expiring import ExpiringMap
from preforkmx.state.greylisting import Greylisting
from preforkmx.state.limits import Limits
from preforkmx.state.local import LocalStore

NOW = 1_800_000_000_000_000

rates = st.builds(
    Rate,
    count=st.integers(1, 1000),
    period=st.floats(0.001, 100_000.0),
    burst=st.integers(1, 50),
)
arrivals = st.lists(st.tuples(st.integers(0, 5_000_000), st.integers(1, 60)), max_size=60)


@settings(deadline=None)
@given(rate=rates, arrivals=arrivals)
def test_no_span_of_time_sees_more_than_the_burst_and_what_the_rate_earns(rate, arrivals):
    limits = Limits(10)
    now = NOW
    allowed = []  # (when, events)
    for pause, events in arrivals:
        now += pause
        cost = min(events, rate.burst)
        if not limits.take(b"key", rate.interval * cost, rate.tolerance, now):
            allowed.append((now, cost))
    for first in range(len(allowed)):
        total = 0
        for when, events in allowed[first:]:
            total += events
            # In whole µs: total ≤ burst + span / interval.
            assert (total - rate.burst) * rate.interval <= when - allowed[first][0]


@settings(deadline=None)
@given(rate=rates, arrivals=arrivals)
def test_the_wait_is_exact_to_the_microsecond(rate, arrivals):
    limits = Limits(10)
    now = NOW
    for pause, events in arrivals:
        now += pause
        cost = rate.interval * min(events, rate.burst)
        wait = limits.take(b"key", cost, rate.tolerance, now)
        if wait:
            assert limits.take(b"key", cost, rate.tolerance, now + wait - 1) == 1
            now += wait
            assert limits.take(b"key", cost, rate.tolerance, now) == 0


@settings(deadline=None)
@given(rate=rates, arrivals=arrivals, back=st.integers(0, 10**15))
def test_no_clock_makes_anybody_wait_longer_than_the_burst_takes(rate, arrivals, back):
    limits = Limits(10)
    now = NOW
    for pause, events in arrivals:
        now += pause
        limits.take(b"key", rate.interval * min(events, rate.burst), rate.tolerance, now)
    wait = limits.take(b"key", rate.tolerance, rate.tolerance, now - back)
    assert wait <= rate.tolerance


class MapMachine(RuleBasedStateMachine):
    """A bounded map of values that are their own expiry, against a plain dictionary."""

    CAPACITY = 8

    def __init__(self):
        super().__init__()
        self.map = ExpiringMap(self.CAPACITY, int, journal=True)
        self.model = {}
        self.saved = {}
        self.now = 0

    @rule(key=st.integers(0, 20), life=st.integers(0, 30))
    def put(self, key, life):
        self.map.put(key, self.now + life, self.now)
        self.model[key] = self.now + life

    @rule(key=st.integers(0, 20))
    def get(self, key):
        value = self.map.get(key, self.now)
        if value is not None:
            assert value == self.model[key] > self.now

    @rule(pause=st.integers(0, 20))
    def wait(self, pause):
        self.now += pause

    @rule()
    def save(self):
        for key in self.map.take_journal():
            if key in self.map.entries:
                self.saved[key] = self.map.entries[key]
            else:
                self.saved.pop(key, None)
        assert self.saved == self.map.entries

    @invariant()
    def bounded(self):
        assert len(self.map) <= self.CAPACITY
        assert sorted(self.map._ring) == sorted(self.map.entries)

    @invariant()
    def nothing_alive_is_dropped_while_there_is_room(self):
        alive = {key for key, expiry in self.model.items() if expiry > self.now}
        if len(self.model) <= self.CAPACITY:
            assert all(self.map.get(key, self.now) for key in alive)


class GreylistMachine(RuleBasedStateMachine):
    """The greylist against the rules written down naively."""

    SETTINGS = GreylistSettings(
        delay=300.0, window=7200.0, life=100_000.0, auto_allow_after=3, auto_allow_spacing=3600.0
    )
    GRAIN = 100_000_000_000 >> 6  # an entry's last sight is noted this coarsely

    def __init__(self):
        super().__init__()
        self.engine = Greylisting(Limits(100), pending=1000, known=1000, networks=1000)
        self.now = NOW
        self.first = {}
        self.seen = {}
        self.passes = {}

    @rule(seconds=st.sampled_from([1, 100, 299, 300, 301, 3599, 3600, 7199, 7200, 50_000, 100_000]))
    def wait(self, seconds):
        self.now += seconds * 1_000_000

    @rule(network=st.sampled_from([b"a", b"b"]), triplet=st.sampled_from([b"1", b"2", b"3", b"4"]))
    def attempt(self, network, triplet):
        triplet = network + triplet
        delay, window, life, after, spacing = self.SETTINGS.numbers
        number, left, waited = self.engine.decide(network, triplet, self.SETTINGS.numbers, self.now)
        state = GreylistState(number)
        if state is GreylistState.AUTO_ALLOWED:
            count, _, seen = self.passes[network]
            assert count >= after
            assert self.now - seen < life
            self.passes[network][2] = self.now
            return
        count, last, seen = self.passes.get(network, (0, 0, 0))
        assert count < after or self.now - seen > life - self.GRAIN - 1
        if state is GreylistState.KNOWN:
            assert self.now - self.seen[triplet] < life
            self.seen[triplet] = self.now
            return
        if triplet in self.seen:
            assert self.now - self.seen.pop(triplet) > life - self.GRAIN - 1
        first = self.first.get(triplet)
        if first is None or self.now - first >= window:
            assert (state, left, waited) == (GreylistState.NEW, delay, 0)
            self.first[triplet] = self.now
        elif self.now - first < delay:
            assert (state, left, waited) == (
                GreylistState.EARLY,
                delay - (self.now - first),
                0,
            )
        else:
            assert (state, left, waited) == (GreylistState.PASSED, 0, self.now - first)
            del self.first[triplet]
            self.seen[triplet] = self.now
            if count and self.now - seen >= life:
                count = 0
            if not count or self.now - last >= spacing:
                count, last = count + 1, self.now
            self.passes[network] = [count, last, self.now]


def _at_once(operation):
    """The result of a coroutine that never waits."""
    try:
        operation.send(None)
    except StopIteration as result:
        return result.value
    raise AssertionError("a local store waited")


class LeaseMachine(RuleBasedStateMachine):
    """However connections open and close, no host has more of them than it may."""

    held = Bundle("held")
    LIMITS = ConnectionLimits("in", concurrent=3)

    def __init__(self):
        super().__init__()
        self.store = LocalStore(lambda: 1_800_000_000.0)
        self.open = {}

    @rule(target=held, host=st.integers(1, 3))
    def connect(self, host):
        admission = _at_once(self.store.open_connection(IPv4Address(host), self.LIMITS))
        assert admission.admitted == (self.open.get(host, 0) < 3)
        assert (admission.lease is not None) == admission.admitted
        if admission.admitted:
            self.open[host] = self.open.get(host, 0) + 1
        return host, admission.lease

    @rule(connection=consumes(held), times=st.integers(1, 2))
    def disconnect(self, connection, times):
        host, lease = connection
        if lease is not None:
            for _ in range(times):
                _at_once(self.store.close_connection(lease))
            self.open[host] -= 1

    @invariant()
    def counted(self):
        assert self.store.limits.leases == sum(self.open.values())


class _Bucket:
    """One budget written down naively: how many units are left, in parts of a unit.

    A unit has `interval` parts, and one part is earned every µs.
    """

    def __init__(self, rate):
        self.unit = rate.interval
        self.most = rate.tolerance
        self.level = self.most

    def wait(self, microseconds):
        self.level = min(self.most, self.level + microseconds)

    def add(self, units):
        self.level = max(-self.most, min(self.most, self.level + units * self.unit))

    @property
    def left(self):
        return max(0, self.level // self.unit)

    @property
    def wait_for_one(self):
        return max(0, self.unit - self.level)


class BudgetMachine(RuleBasedStateMachine):
    """However sessions open, settle and close: the store against buckets of units.

    And no prepaid budget ever gives more than its burst and what it earns, sessions that spend
    no more than they were granted provided.
    """

    sessions = Bundle("sessions")
    amounts = st.tuples(*(st.integers(0, 6) for _ in BUDGETS))

    @initialize(
        limits=st.builds(
            ConnectionLimits,
            name=st.just("in"),
            host=st.none() | rates,
            **{budget: st.none() | rates for budget in BUDGETS},
        )
    )
    def begin(self, limits):
        self.limits = limits
        self.now = self.began = NOW
        # Not the clock: seconds as a float would round the microseconds.
        self.store = LocalStore()
        self.store.now = lambda: self.now
        self.host = None if limits.host is None else _Bucket(limits.host)
        self.buckets = {
            index: _Bucket(rate) for index, rate in enumerate(limits.budgets) if rate is not None
        }
        self.reserved = {}
        self.honest = {index: 0 for index in self.buckets if index < PREPAID}
        self.debtors = set()
        # When, and how much was spent and was reserved, at each step.
        self.history = [(NOW, dict(self.honest), dict(self.honest))]

    def _expected_grants(self, reserved):
        return {
            index: reserved.get(index, 0) if index < PREPAID else bucket.left
            for index, bucket in self.buckets.items()
        }

    def _check_grants(self, grants, reserved):
        expected = self._expected_grants(reserved)
        assert {index: grants[index] for index in self.buckets} == expected

    def _check_refusal(self, limit, wait, waits):
        longest = max(waits.values())
        assert waits[limit] == longest
        assert round(wait * 1_000_000) == longest

    def _book(self, reserved, spent):
        for index, bucket in self.buckets.items():
            units = spent[index]
            if index < PREPAID:
                covered = min(units, reserved[index])
                reserved[index] -= covered
                if units > covered:
                    self.debtors.add(index)
                self.honest[index] += units
                units -= covered
            bucket.add(-units)

    def _note(self):
        held = {
            index: sum(reserved[index] for reserved in self.reserved.values())
            for index in self.honest
        }
        self.history.append((self.now, dict(self.honest), held))

    @rule(microseconds=st.integers(0, 5_000_000))
    def wait(self, microseconds):
        self.now += microseconds
        for bucket in self.buckets.values():
            bucket.wait(microseconds)
        if self.host is not None:
            self.host.wait(microseconds)

    @rule(target=sessions)
    def open(self):
        admission = _at_once(self.store.open_connection(IPv4Address(1), self.limits))
        waits = {BUDGETS[index]: bucket.wait_for_one for index, bucket in self.buckets.items()}
        if self.host is not None:
            waits["connections"] = self.host.wait_for_one
        assert admission.admitted == (not any(waits.values()))
        if not admission.admitted:
            self._check_refusal(admission.limit, admission.wait, waits)
            return None
        if self.host is not None:
            self.host.add(-1)
        if not self.buckets:
            assert admission.lease is None
            return None
        reserved = {index: min(1, 2 - index) for index in self.honest}  # 1, 1 and 0
        for index, units in reserved.items():
            self.buckets[index].add(-units)
        self.reserved[admission.lease] = reserved
        self._check_grants(admission.grants, reserved)
        self._note()
        return admission.lease

    @rule(lease=sessions, amounts=amounts, want=amounts, honest=st.booleans())
    def settle(self, lease, amounts, want, honest):
        if lease not in self.reserved:
            return
        reserved = self.reserved[lease]
        if honest:
            amounts = [min(units, reserved.get(n, units)) for n, units in enumerate(amounts)]
        self._book(reserved, amounts)
        settled = _at_once(self.store.settle(lease, Spent(*amounts), Spent(*want)))
        short, waits = {}, {"": 0}
        for index, bucket in self.buckets.items():
            if index >= PREPAID:
                waits[BUDGETS[index]] = bucket.wait_for_one
            elif want[index] > reserved[index]:
                short[index] = min(want[index] - reserved[index], max(1, bucket.left // 4))
                waits[BUDGETS[index]] = bucket.wait_for_one
        assert settled.allowed == (not any(waits.values()))
        self._check_refusal(settled.limit, settled.wait, waits)
        if settled.allowed:
            for index, units in short.items():
                self.buckets[index].add(-units)
                reserved[index] += units
        self._check_grants(settled.grants, reserved)
        self._note()

    @rule(lease=consumes(sessions), amounts=amounts, honest=st.booleans())
    def close(self, lease, amounts, honest):
        if lease not in self.reserved:
            return
        reserved = self.reserved.pop(lease)
        if honest:
            amounts = [min(units, reserved.get(n, units)) for n, units in enumerate(amounts)]
        self._book(reserved, amounts)
        _at_once(self.store.close_connection(lease, Spent(*amounts)))
        for index, units in reserved.items():
            self.buckets[index].add(units)
        self._note()

    def teardown(self):
        # Over any span: spent ≤ burst + what is earned + what was reserved before it.
        for index in self.honest:
            if index in self.debtors:
                continue
            rate = self.limits.budgets[index]
            for first, (began, before, held) in enumerate(self.history):
                for ended, after, _ in self.history[first + 1 :]:
                    units = after[index] - before[index] - held[index] - rate.burst
                    assert units * rate.interval <= ended - began


TestMap = MapMachine.TestCase
TestGreylist = GreylistMachine.TestCase
TestLeases = LeaseMachine.TestCase
TestBudgets = BudgetMachine.TestCase
TestMap.settings = TestGreylist.settings = TestLeases.settings = TestBudgets.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None
)


class _Wire(asyncio.Transport):
    """What the server writes, and whether it closed the connection."""

    def __init__(self):
        super().__init__()
        self.octets = b""
        self.closed = False

    def write(self, data):
        self.octets += data

    def abort(self):
        self.closed = True


def _client(clients):
    client, wire = _Client(clients), _Wire()
    client.connection_made(wire)
    return client, wire


numbers = st.integers(0, (1 << 64) - 1)
small = st.integers(0, 1 << 40)
spent = st.builds(Spent, numbers, numbers, numbers, numbers, numbers) | st.just(NOTHING)
units = st.integers(GIVE_BACK, UNLIMITED)
wanted = st.builds(Spent, units, units, units, units, units) | st.just(NOTHING)
budgeted = st.builds(
    ConnectionLimits,
    name=st.text(max_size=8),
    concurrent=st.none() | st.integers(1, 3),
    messages=st.none() | rates,
    octets=rates,
)
few = st.integers(1, 4)
commands = st.one_of(
    st.builds(frames.take, numbers, numbers, st.binary(max_size=80)),
    st.builds(frames.hold, small, st.binary(max_size=80)),
    st.builds(frames.close, small | few),
    st.builds(frames.settle, few, spent, wanted),
    st.builds(frames.close_account, few, spent),
    st.builds(frames.hold_account, few, st.binary(min_size=4, max_size=8), budgeted),
    st.builds(frames.open_connection, few, st.binary(min_size=4, max_size=8), budgeted),
    st.builds(
        frames.greylist,
        st.tuples(numbers, small, small, st.integers(0, 9), numbers),
        st.binary(min_size=16, max_size=16),
        st.binary(max_size=64),
    ),
    st.builds(
        frames.open_connection,
        small,
        st.binary(min_size=4, max_size=8),
        st.builds(ConnectionLimits, st.just("in"), host=rates, concurrent=st.integers(1, 3)),
    ),
    st.binary(max_size=40),
)
TOKEN = b"0123456789abcdef"


@settings(deadline=None)
@given(stream=st.lists(commands, max_size=30), cuts=st.lists(st.integers(0, 2000), max_size=10))
def test_no_octets_bring_the_store_process_down_and_pieces_change_nothing(stream, cuts):
    octets = frames.hello(TOKEN) + b"".join(stream)
    whole = _Clients(LocalStore(lambda: 1_800_000_000.0))
    client, wire = _client(whole)
    client.data_received(octets)

    pieces = _Clients(LocalStore(lambda: 1_800_000_000.0))
    other, other_wire = _client(pieces)
    edges = [0, *sorted(min(cut, len(octets)) for cut in cuts), len(octets)]
    for start, stop in pairwise(edges):
        if start < stop:
            other.data_received(octets[start:stop])

    assert wire.closed == other_wire.closed
    # What is cut off by a malformed frame may have been answered in pieces already.
    assert other_wire.octets.startswith(wire.octets)
    if not wire.closed:
        assert wire.octets == other_wire.octets
        assert len(client._rest) <= 255
        assert len(client._leases) <= MAX_LEASES
        assert client._accounts.keys() <= client._leases.keys()
    for one in (client, other):
        one.connection_lost(None)
    assert whole.store.limits.leases == pieces.store.limits.leases == 0
    assert len(whole) == len(pieces) == 0
