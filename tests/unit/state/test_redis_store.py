"""RedisStore: what only it does, against a real server. test_stores has what all stores do."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest

from preforkmx.errors import StoreUnavailable
from preforkmx.state.decisions import ConnectionLimits, GreylistSettings, GreylistState, Rate, Spent
from preforkmx.state.redis import nodes_for, parse
from preforkmx.state.redis import store as module
from preforkmx.state.redis.keys import Keys
from preforkmx.state.redis.slots import slot_of
from preforkmx.state.redis.store import LEASE_SECONDS, RedisStore

pytestmark = pytest.mark.integration

HOST = ip_address("192.0.2.1")
NEIGHBOUR = ip_address("192.0.2.2")
MINUTELY = Rate(60, 60.0, 10)
GREYLIST = GreylistSettings()
PLACES = ConnectionLimits("in", concurrent=2)
EVERYTHING = ConnectionLimits(
    "in",
    host=MINUTELY,
    network=MINUTELY,
    concurrent=8,
    messages=MINUTELY,
    recipients=MINUTELY,
    auth_failures=MINUTELY,
    octets=Rate(1 << 20, 60.0, 1 << 20),
    errors=MINUTELY,
)


@pytest.fixture
def connected(redis):
    """``async with connected() as store``: a store of its own in the one Redis, emptied before."""
    redis.ask("FLUSHALL")

    @asynccontextmanager
    async def connected(**options):
        deadline = options.pop("deadline", 10.0)
        nodes = nodes_for(parse(f"unix://{redis.path}"), deadline=deadline)
        store = RedisStore(nodes, **options)
        await store.start()
        try:
            yield store
        finally:
            await store.close()

    return connected


async def _killed(store):
    """What is left when a worker is killed: no renewals, no connection, nothing given back."""
    store._renewer.cancel()
    await asyncio.gather(store._renewer, return_exceptions=True)
    store._renewer = None
    await store.nodes.close()


def _calls(redis, command):
    about = redis.info("commandstats").get(f"cmdstat_{command}", "calls=0,")
    return int(about.partition("calls=")[2].partition(",")[0])


def _leases(redis, host=HOST, limits=PLACES, prefix="preforkmx"):
    key = Keys(prefix).connection(limits.key, host.packed)[module.LEASES]
    words = redis.ask("ZRANGE", key, 0, -1, "WITHSCORES")
    return [float(score) for score in words[1::2]]


# --- marks --------------------------------------------------------------------------------------


def test_marks_of_one_sender_are_one_script_and_have_one_slot_and_an_expiry(redis, connected, run):
    sender = [b"send" + number.to_bytes(16, "big") for number in range(module.MARKS_AT_ONCE)]

    async def scenario():
        async with connected(prefix="site") as store:
            await store.remember(sender[:1], 1.0)  # the scripts are known from now on
            await store.known(sender[:1])
            await store.forget(sender[:1])
            assert redis.ask("DBSIZE") == 0
            redis.ask("CONFIG", "RESETSTAT")
            await store.remember(sender, 600.0)
            assert await store.known(sender) == set(sender)
            assert _calls(redis, "evalsha") == 2
            keys = [key.encode() for key in redis.ask("KEYS", "*")]
            assert len(keys) == len(sender)
            assert {slot_of(key) for key in keys} == {slot_of(b"{73656e64}")}
            assert all(key.startswith(b"site:{73656e64}:d:") for key in keys)
            assert all(590_000 < redis.ask("PTTL", key) <= 600_001 for key in keys)
            await store.forget(sender)
            assert redis.ask("DBSIZE") == 0

    run(scenario())


def test_a_mark_outlives_the_worker_that_remembered_it(redis, connected, run):
    mark = b"m" * 20

    async def scenario():
        async with connected() as store:
            await store.remember([mark], 600.0)
            await _killed(store)
        async with connected() as store:
            assert await store.known([mark]) == {mark}

    run(scenario())


# --- one step -----------------------------------------------------------------------------------


def test_a_connection_with_every_limit_costs_one_script_to_open_and_one_to_close(
    redis, connected, run, until
):
    async def scenario():
        async with connected() as store:
            # The script is known from now on.
            first = (await store.open_connection(HOST, EVERYTHING)).lease
            await store.close_connection(first)
            await store.settle((await store.open_connection(HOST, EVERYTHING)).lease, Spent())
            redis.ask("CONFIG", "RESETSTAT")
            lease = (await store.open_connection(HOST, EVERYTHING)).lease
            assert _calls(redis, "evalsha") == 1
            await store.close_connection(lease, Spent(messages=1))
            await until(lambda: _calls(redis, "evalsha") == 2)
            assert _calls(redis, "eval") == 0

    run(scenario())


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        (ConnectionLimits("in", host=Rate(1, 3600.0, 40)), "connections"),
        (ConnectionLimits("in", network=Rate(1, 3600.0, 40)), "network"),
        (ConnectionLimits("in", concurrent=40), "concurrent"),
        (ConnectionLimits("in", messages=Rate(1, 3600.0, 40)), "messages"),
    ],
)
def test_two_stores_on_one_redis_admit_exactly_as_many_as_the_limit_says(
    connected, run, limits, name
):
    async def scenario():
        async with connected() as one, connected() as other:
            admissions = await asyncio.gather(
                *(store.open_connection(HOST, limits) for _ in range(100) for store in (one, other))
            )
            admitted = [admission for admission in admissions if admission.admitted]
            assert len(admitted) == 40
            assert {admission.limit for admission in admissions} == {"", name}

    run(scenario())


def test_two_stores_grant_no_more_of_a_budget_than_there_is(connected, run):
    async def scenario():
        limits = ConnectionLimits("in", recipients=Rate(1, 3600.0, 100))
        async with connected() as one, connected() as other:
            leases = [
                (store, (await store.open_connection(HOST, limits)).lease)
                for store in (one, other) * 5
            ]
            settlements = await asyncio.gather(
                *(
                    store.settle(lease, Spent(), Spent(recipients=50))
                    for store, lease in leases * 10
                )
            )
            assert sum(lease.reserved[1] for _, lease in leases) == 100
            assert {answer.limit for answer in settlements} == {"", "recipients"}

    run(scenario())


# --- keys ---------------------------------------------------------------------------------------


async def _everything(store):
    """Do whatever writes a key."""
    lease = (await store.open_connection(HOST, EVERYTHING)).lease
    await store.settle(lease, Spent(1, 1, 1, 1000, 1), Spent(5, 5, 5))
    await store.take(MINUTELY, "sender:somebody@example.com", 3)
    shortly = GreylistSettings(delay=0.0)
    for _ in range(2):
        await store.greylist("192.0.2.0/24", "a@example.com", "b@example.net", shortly)
    await store.greylist("192.0.2.0/24", "c@example.com", "b@example.net", GREYLIST)
    store.renew(float("inf"))
    return lease


@pytest.mark.parametrize("clock", [None, lambda: 1_800_000_000.0])
def test_every_key_has_an_expiry(redis, connected, run, clock):
    async def scenario():
        async with connected(clock=clock) as store:
            lease = await _everything(store)
            await store.take(MINUTELY, "behind the renewal")
            keys = sorted(redis.ask("KEYS", "*"))
            assert [key.split("}")[1].split(":")[1] for key in keys] == [
                *("a", "g", "g", "n"),  # 192.0.2.0/24
                "t",
                *("h", "l", "n"),  # c00002
                "t",
            ]
            await store.close_connection(lease, Spent(messages=1))
            await store.take(MINUTELY, "behind the end")
            assert not _leases(redis, limits=EVERYTHING)
            for key in redis.ask("KEYS", "*"):
                assert 0 < redis.ask("PTTL", key) <= 36 * 86_400_000 + 60_000

    run(scenario())


def test_a_key_lives_as_long_as_what_it_says_has_a_meaning(redis, connected, run):
    def ends():
        """When each key expires, and when the last of what it says does, in µs."""
        for key in redis.ask("KEYS", "*"):
            match redis.ask("TYPE", key):
                case "hash":
                    last = max(map(int, redis.ask("HVALS", key)))
                case "zset":
                    last = max(map(float, redis.ask("ZRANGE", key, 0, -1, "WITHSCORES")[1::2]))
                case _:
                    last = int(redis.ask("GET", key).split()[0])
            yield redis.ask("PEXPIRETIME", key) * 1000, last

    async def scenario():
        async with connected() as store:
            leases = []
            for _ in range(3):
                leases.append(await _everything(store))
                assert all(expiry >= last for expiry, last in ends())
            # It was renewed alone, later than the others.
            await asyncio.sleep(0.01)
            store.renew(float("inf"))
            for lease in leases:
                await store.close_connection(lease, Spent(octets=1000, errors=5))
                await store.take(MINUTELY, "behind the end")
                assert all(expiry >= last for expiry, last in ends())

    run(scenario())


def test_by_its_own_time_redis_forgets_what_means_nothing_any_more(redis, connected, run, until):
    async def scenario():
        shortly = Rate(20, 1.0, 2)
        limits = ConnectionLimits("in", host=shortly, network=shortly, messages=shortly)
        settings = GreylistSettings(delay=0.0, window=0.05, life=0.05)
        async with connected() as store:
            began = time.time()
            await store.open_connection(HOST, limits)
            for _ in range(2):
                assert (await store.take(shortly, "key")).allowed
            refused = await store.take(shortly, "key")
            if time.time() - began < 0.04:
                assert not refused.allowed
            assert 0.0 <= refused.wait <= 0.05
            await store.greylist("net", "a", "b", settings)
            await until(lambda: redis.ask("KEYS", "*[^n]") == [])
            assert (await store.take(shortly, "key")).allowed

    run(scenario())


def test_the_time_to_wait_is_that_of_the_server_s_clock(redis, connected, run):
    async def scenario():
        rate = Rate(1, 3600.0, 1)
        async with connected() as store:
            await store.take(rate, "key")
            seconds, micros = map(int, redis.ask("TIME"))
            wait = (await store.take(rate, "key")).wait
            stored = int(redis.ask("GET", "preforkmx:{key}:t"))
            assert stored <= 1_000_000 * (seconds + 3600) + micros
            assert 3540.0 < wait <= 3600.0

    run(scenario())


NAMES = [b"", b"in", b"a:b", b"{a}", b"}{", "ü*?[".encode(), bytes(range(64))]


def test_the_keys_of_one_decision_share_a_slot_and_no_two_names_share_a_key():
    keys = Keys("site-a")
    seen = set()
    for name in NAMES:
        for host in (b"\xc0\0\x02\x01", b"\xc0\0\x02\x02", b"}{}{}{}{", b"12345678"):
            three = keys.connection(name, host)
            assert len({slot_of(key) for key in three}) == 1
            # The network's key is that of all its hosts.
            seen |= {
                (key, name, host if number != 1 else host[:3]) for number, key in enumerate(three)
            }
        for triplet in (b"0123456789abcdef", b"}{}{}{}{}{}{}{}{"):
            three = keys.greylist(name, triplet)
            assert len({slot_of(key) for key in three}) == 1
            seen |= {(three[0], name), (three[1], name, triplet), (three[2], name)}
        seen.add((keys.rate(name), name))
    assert len({key for key, *_ in seen}) == len(seen)
    for key, *_ in seen:
        assert key.startswith(b"site-a:{")
        assert key.isascii()
        assert not set(key) & set(b"*?[]\\ \n")


@pytest.mark.parametrize("prefix", ["", "a b", "{a}", "a*", "ü", "a" * 65])
def test_a_prefix_that_would_break_keys_is_refused(prefix):
    with pytest.raises(ValueError, match="a prefix has"):
        Keys(prefix)


def test_sites_with_different_prefixes_count_apart(connected, run):
    async def scenario():
        rate = Rate(1, 3600.0, 1)
        async with connected(prefix="a") as one, connected(prefix="b") as other:
            for store in (one, other):
                assert (await store.take(rate, "key")).allowed
                assert not (await store.take(rate, "key")).allowed

    run(scenario())


# --- leases -------------------------------------------------------------------------------------


def test_the_places_of_a_killed_worker_are_free_when_its_leases_have_expired(connected, run, clock):
    async def scenario():
        async with connected(clock=clock) as alive:
            async with connected(clock=clock) as store:
                for _ in range(2):
                    assert (await store.open_connection(HOST, PLACES)).admitted
                await _killed(store)
            clock.advance(LEASE_SECONDS - 0.001)
            assert (await alive.open_connection(HOST, PLACES)).limit == "concurrent"
            clock.advance(0.001)
            for _ in range(2):
                assert (await alive.open_connection(HOST, PLACES)).admitted
            assert (await alive.open_connection(HOST, PLACES)).limit == "concurrent"

    run(scenario())


def test_a_clock_that_is_set_back_does_not_make_the_dead_live_longer(connected, run, clock):
    async def scenario():
        async with connected(clock=clock) as alive:
            async with connected(clock=clock) as store:
                for _ in range(2):
                    assert (await store.open_connection(HOST, PLACES)).admitted
                await _killed(store)
            clock.advance(-86_400.0)
            assert (await alive.open_connection(HOST, PLACES)).limit == "concurrent"
            clock.advance(LEASE_SECONDS)
            assert (await alive.open_connection(HOST, PLACES)).admitted

    run(scenario())


def test_a_lease_that_is_renewed_lives_on(redis, connected, run, clock):
    async def scenario():
        async with connected(clock=clock) as store, connected(clock=clock) as other:
            for _ in range(2):
                await store.open_connection(HOST, PLACES)
            for _ in range(4):
                clock.advance(LEASE_SECONDS - 1)
                store.renew(float("inf"))
            await store.take(MINUTELY, "behind the renewal")
            assert (await other.open_connection(HOST, PLACES)).limit == "concurrent"
            assert _leases(redis) == [(clock() + LEASE_SECONDS) * 1e6] * 2

    run(scenario())


def test_only_older_leases_are_renewed_and_those_of_a_host_in_one_command(
    redis, connected, run, clock
):
    async def scenario():
        async with connected(clock=clock) as store:
            loop = asyncio.get_running_loop()
            many = ConnectionLimits("in", concurrent=1000)
            first = (await store.open_connection(HOST, many)).lease
            store.renew(float("inf"))  # the script is known from now on
            await store.take(MINUTELY, "behind the renewal")
            await store.close_connection(first)
            for _ in range(3):
                await store.open_connection(HOST, many)
            between = loop.time()
            await asyncio.sleep(0.001)
            await store.open_connection(HOST, many)
            await store.open_connection(NEIGHBOUR, many)
            clock.advance(10.0)
            expiry = (clock() + LEASE_SECONDS) * 1e6
            redis.ask("CONFIG", "RESETSTAT")
            store.renew(between)
            await store.take(MINUTELY, "behind the renewal")
            assert (_calls(redis, "evalsha"), _calls(redis, "zadd")) == (2, 3)
            assert sorted(_leases(redis))[1:] == [expiry] * 3
            assert expiry not in _leases(redis, NEIGHBOUR)
            # They were renewed just now.
            store.renew(between)
            await store.take(MINUTELY, "behind the renewal")
            assert _calls(redis, "zadd") == 3

    run(scenario())


def test_one_task_renews_by_itself(redis, connected, run, until, monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.02)

    async def scenario():
        async with connected() as store:
            lease = (await store.open_connection(HOST, PLACES)).lease
            first = _leases(redis)
            await until(lambda: _leases(redis) > first)
            await store.close_connection(lease)
            await store.take(MINUTELY, "behind the end")
            assert _leases(redis) == []

    run(scenario())


@pytest.mark.parametrize("reply", [None, b"", 7, [], [99, 0], [1, None], [0, 0, "x"], b"OK"])
def test_a_reply_that_is_none_is_no_answer(run, reply):
    class Odd:
        told = 0

        async def run(self, *_):
            return reply

        def tell(self, *_):
            self.told += 1

    async def scenario():
        nodes = Odd()
        store = RedisStore(nodes)
        store._token = b"token"
        for operation in (
            store.open_connection(HOST, EVERYTHING),
            store.greylist("n", "s", "r", GREYLIST),
            store.contains("set", ["a", "b", "c", "d"]),
        ):
            with pytest.raises(StoreUnavailable, match="none"):
                await operation
        assert nodes.told == 1  # the place that may have been given
        if not isinstance(reply, int):
            with pytest.raises(StoreUnavailable, match="none"):
                await store.take(MINUTELY, "key")

    run(scenario())


def test_many_keys_are_renewed_in_several_turns(redis, connected, run, monkeypatch):
    monkeypatch.setattr(module, "RENEW_KEYS", 1)

    async def scenario():
        async with connected() as store:
            for host in (HOST, NEIGHBOUR):
                assert (await store.open_connection(host, PLACES)).admitted
            before = asyncio.get_running_loop().time()
            await asyncio.sleep(0.01)
            assert store.renew(before)
            assert not store.renew(before)
            assert min(store._places.values()) >= before
            await store.nodes.close()
            assert not store.renew(float("inf"))

    run(scenario())


def test_a_lease_that_redis_has_forgotten_is_counted_again(redis, connected, run):
    async def scenario():
        async with connected() as store:
            for _ in range(2):
                await store.open_connection(HOST, PLACES)
            redis.ask("FLUSHALL")
            store.renew(float("inf"))
            await store.take(MINUTELY, "behind the renewal")
            assert (await store.open_connection(HOST, PLACES)).limit == "concurrent"

    run(scenario())


def test_a_session_whose_lease_has_expired_is_booked_all_the_same(connected, run, clock):
    async def scenario():
        limits = ConnectionLimits("in", concurrent=1, messages=Rate(1, 3600.0, 4))
        async with connected(clock=clock) as store, connected(clock=clock) as other:
            lease = (await store.open_connection(HOST, limits)).lease
            assert (await store.settle(lease, Spent(), Spent(messages=2))).grants.messages == 1 + 1
            clock.advance(LEASE_SECONDS)
            second = (await other.open_connection(HOST, limits)).lease
            # One of the two that are reserved is spent, one comes back, and one is the other's.
            await store.close_connection(lease, Spent(messages=1))
            await store.take(MINUTELY, "behind the end")
            await other.settle(second, Spent(), Spent(messages=9))
            await other.settle(second, Spent(), Spent(messages=9))
            answer = await other.settle(second, Spent(), Spent(messages=9))
            assert answer.limit == "messages"
            assert answer.grants.messages == 3

    run(scenario())


def test_a_store_that_closes_gives_its_leases_back(redis, connected, run):
    async def scenario():
        limits = ConnectionLimits("in", concurrent=2, messages=Rate(1, 3600.0, 2))
        async with connected() as other:
            async with connected() as store:
                for _ in range(2):
                    await store.open_connection(HOST, limits)
                assert not (await other.open_connection(HOST, limits)).admitted
            for _ in range(2):
                assert (await other.open_connection(HOST, limits)).admitted

    run(scenario())


# --- no answer ----------------------------------------------------------------------------------


LATE = ConnectionLimits("in", concurrent=2, messages=Rate(1, 3600.0, 5))


def _messages(redis):
    """Return how many messages are charged."""
    key = Keys("preforkmx").connection(LATE.key, HOST.packed)[module.ARRIVALS]
    seconds, micros = map(int, redis.ask("TIME"))
    stored = int(redis.ask("HGET", key, "m") or 0)
    return round(max(0, stored - 1_000_000 * seconds - micros) / 3_600_000_000)


def test_a_lease_whose_reply_came_too_late_is_given_back(redis, connected, run, until):
    async def scenario():
        async with connected() as other, connected(deadline=0.1) as store:
            # The scripts are known from now on.
            await other.close_connection((await other.open_connection(HOST, LATE)).lease)
            await other.take(MINUTELY, "behind the end")
            await until(lambda: store.nodes.available)
            redis.ask("CONFIG", "RESETSTAT")
            redis.stand_still()
            try:
                with pytest.raises(StoreUnavailable):
                    await store.open_connection(HOST, LATE)
            finally:
                redis.go_on()
            await until(lambda: _calls(redis, "zadd") == 1 and _calls(redis, "zrem") == 1)
            await until(lambda: _leases(redis) == [])
            assert _messages(redis) == 0

    run(scenario())


def test_a_refusal_that_came_too_late_gives_nothing_back(redis, connected, run, until):
    async def scenario():
        async with connected() as other, connected(deadline=0.1) as store:
            neighbour = (await other.open_connection(NEIGHBOUR, LATE)).lease
            await other.close_connection(neighbour)
            for _ in range(2):
                await other.open_connection(HOST, LATE)
            await until(lambda: store.nodes.available)
            redis.ask("CONFIG", "RESETSTAT")
            redis.stand_still()
            try:
                with pytest.raises(StoreUnavailable):
                    await store.open_connection(HOST, LATE)
            finally:
                redis.go_on()
            await until(lambda: _calls(redis, "zrem") == 1)
            assert len(_leases(redis)) == 2
            assert _messages(redis) == 2

    run(scenario())


def test_a_session_that_is_cancelled_while_it_asks_leaves_no_lease(redis, connected, run, until):
    async def scenario():
        async with connected() as store:
            await store.close_connection((await store.open_connection(HOST, LATE)).lease)
            await store.take(MINUTELY, "behind the end")
            redis.ask("CONFIG", "RESETSTAT")
            asking = asyncio.create_task(store.open_connection(HOST, LATE))
            await asyncio.sleep(0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await until(lambda: _calls(redis, "zrem") == 1)
            assert _leases(redis) == []
            assert _messages(redis) == 0

    run(scenario())


def test_after_a_settlement_without_an_answer_nothing_is_given_back_that_was_spent(
    redis, connected, run, until
):
    async def scenario():
        async with connected(deadline=0.5) as store:
            lease = (await store.open_connection(HOST, LATE)).lease
            redis.stand_still()
            try:
                with pytest.raises(StoreUnavailable):
                    await store.settle(lease, Spent(messages=1), Spent())
                assert lease.reserved == (0, 0, 0)
                await store.close_connection(lease)
            finally:
                redis.go_on()
            await until(lambda: _leases(redis) == [])
            assert _messages(redis) == 1

    run(scenario())


def test_a_lease_ends_though_redis_is_away(connected, run):
    async def scenario():
        async with connected() as store:
            lease = (await store.open_connection(HOST, EVERYTHING)).lease
            await store.nodes.close()
            await store.close_connection(lease, Spent(messages=1))
            with pytest.raises(StoreUnavailable):
                await store.settle(lease, Spent())

    run(scenario())


# --- greylisting by Redis' own time ------------------------------------------------------------


def test_a_triplet_passes_by_the_server_s_clock(redis, connected, run, until):
    async def scenario():
        settings = GreylistSettings(delay=0.05, window=60.0, life=60.0)
        async with connected() as store:
            triplet = ("192.0.2.0/24", "a@example.com", "b@example.net")
            assert (await store.greylist(*triplet, settings)).state is GreylistState.NEW
            while (verdict := await store.greylist(*triplet, settings)).deferred:
                assert 0 < verdict.seconds_left <= 0.05
            assert verdict.state is GreylistState.PASSED
            assert verdict.waited >= 0.05
            assert (await store.greylist(*triplet, settings)).state is GreylistState.KNOWN

    run(scenario())


@pytest.mark.parametrize(("life", "grain"), [(6400.0, 100.0), (36 * 86_400.0, 3600.0)])
def test_a_sight_is_noted_no_more_often_than_the_settings_say(
    redis, connected, run, clock, life, grain
):
    async def scenario():
        settings = GreylistSettings(delay=0.0, window=60.0, life=life, auto_allow_after=1)
        known = GreylistSettings(delay=0.0, window=60.0, life=life, auto_allow_after=0)
        triplet = ("192.0.2.0/24", "a@example.com", "b@example.net")
        async with connected(clock=clock) as store:
            for _ in range(2):
                await store.greylist(*triplet, known)
            for chosen, pattern in ((known, "*:g:*"), (settings, "*:a")):
                (key,) = redis.ask("KEYS", pattern)
                await store.greylist(*triplet, chosen)
                first = redis.ask("GET", key)
                clock.advance(grain)
                await store.greylist(*triplet, chosen)
                assert redis.ask("GET", key) == first
                clock.advance(0.001)
                await store.greylist(*triplet, chosen)
                assert redis.ask("GET", key) != first

    run(scenario())
