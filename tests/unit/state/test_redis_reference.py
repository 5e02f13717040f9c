"""What docs/reference/redis.md promises to whoever runs the Redis."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from preforkmx.errors import StoreUnavailable
from preforkmx.state.decisions import ConnectionLimits, GreylistSettings, Rate, Spent, running
from preforkmx.state.redis import nodes_for, parse
from preforkmx.state.redis.operator import RedisOperator
from preforkmx.state.redis.store import RedisStore

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "reference" / "redis.md").read_text()
CONFIGURATION = (ROOT / "deploy" / "redis" / "redis.conf").read_text()

DAILY = Rate(1, 86_400.0, 10)
HOST = ip_address("192.0.2.1")
MARK = b"mark" * 5
BUDGETS = dict.fromkeys(("messages", "recipients", "auth_failures", "octets", "errors"), DAILY)


def _user(text):
    """The words of the line that makes preforkmx' user, without its name."""
    (line,) = (
        line.lstrip("# ").split()
        for line in text.splitlines()
        if line.lstrip("# ").startswith("user preforkmx on ")
    )
    return line[2:]


@asynccontextmanager
async def _store(url, **options):
    async with running(RedisStore(nodes_for(parse(url), deadline=10.0), **options)) as store:
        yield store


@pytest.fixture
def user(redis):
    """Make the user of the page; it is gone afterwards."""

    def make(*words):
        redis.ask("ACL", "SETUSER", "preforkmx", *(words or _user(PAGE)))
        return f"unix://preforkmx:PASSWORD@{redis.path}?db=1"

    yield make
    redis.ask("ACL", "DELUSER", "preforkmx")


async def _everything(store):
    limits = ConnectionLimits("in", host=DAILY, network=DAILY, concurrent=1, **BUDGETS)
    lease = (await store.open_connection(HOST, limits)).lease
    assert (await store.open_connection(HOST, limits)).limit == "concurrent"
    assert (await store.settle(lease, Spent(1, 1, 1, 1, 1), Spent(2, 2, 2))).allowed
    store.renew(float("inf"))
    await store.close_connection(lease)
    assert not (await store.take(DAILY, "key", 10)).wait
    for _ in range(3):
        verdict = await store.greylist("net", "a", "b", GreylistSettings(delay=0.0))
    assert not verdict.deferred
    await store.remember([MARK], 60.0)
    assert await store.known([MARK]) == {MARK}
    await store.forget([MARK])


def test_the_user_of_the_page_may_do_all_that_is_done(redis, user, run):
    async def scenario():
        redis.ask("FLUSHALL")
        redis.ask("SCRIPT", "FLUSH")
        async with _store(user()) as store:
            await _everything(store)
        # Nothing was refused that nobody waited for.
        assert redis.ask("ACL", "LOG") == []

    redis.ask("ACL", "LOG", "RESET")
    run(scenario())


def test_the_user_of_the_page_is_enough_for_operators(redis, user, run):
    async def scenario():
        redis.ask("FLUSHALL")
        redis.ask("SCRIPT", "FLUSH")
        limits = ConnectionLimits("in", host=DAILY, network=DAILY, concurrent=1, **BUDGETS)
        settings, paths = GreylistSettings(), ("a", "b")
        operator = RedisOperator(nodes_for(parse(user()), deadline=10.0))
        async with _store(user()) as store, running(operator):
            await store.open_connection(HOST, limits)
            await store.take(DAILY, "key")
            await store.greylist("net", *paths, settings)
            assert (await operator.look_at_host(HOST, limits)).open == 1
            assert (await operator.look_at_rate(DAILY, "key")).left == 9
            assert (await operator.look_at_greylist("net", paths, settings)).left > 0
            await operator.allow_network("net", 86_400.0, settings)
            assert await operator.forget_host(HOST, limits)
            assert await operator.forget_rate("key")
            assert await operator.forget_greylist("net", paths)
        assert redis.ask("ACL", "LOG") == []

    redis.ask("ACL", "LOG", "RESET")
    run(scenario())


#: What sentinels and clusters need, and what may be missing.
_ELSEWHERE = {"+role", "+asking", "+cluster|slots", "+client|setname"}


@pytest.mark.parametrize(
    "right", [word for word in _user(PAGE) if word.startswith("+") and word not in _ELSEWHERE]
)
def test_the_user_of_the_page_has_no_right_without_need(redis, user, run, right):
    async def scenario():
        redis.ask("FLUSHALL")
        redis.ask("SCRIPT", "FLUSH")
        nodes = nodes_for(parse(user(*_user(PAGE), right.replace("+", "-"))), deadline=10.0)
        async with running(RedisStore(nodes)) as store:
            with suppress(StoreUnavailable):
                await _everything(store)
                await store.take(DAILY, "behind the end")
        assert redis.ask("ACL", "LOG") != []

    redis.ask("ACL", "LOG", "RESET")
    run(scenario())


def test_the_configuration_to_begin_with_has_the_same_user():
    assert _user(CONFIGURATION) == _user(PAGE)


def test_the_user_has_no_other_site_s_keys(user, run):
    async def scenario():
        async with _store(user(), prefix="other") as store:
            with pytest.raises(StoreUnavailable, match="NOPERM"):
                await store.take(DAILY, "key")

    run(scenario())


def _octets():
    """The rows of the page's table: entry → MEMORY USAGE."""
    rows = PAGE.partition("| entry |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {entry: int(usage) for entry, usage, _ in cells}


def test_entries_have_the_octets_that_the_page_says(redis, run):
    measured = {}

    def usage(kind):
        (key,) = (key for key in redis.ask("KEYS", "*") if key.split("}:")[1].startswith(kind))
        return redis.ask("MEMORY", "USAGE", key, "SAMPLES", 0)

    async def connect(store, count=1, **limits):
        redis.ask("FLUSHALL")
        for _ in range(count):
            lease = (await store.open_connection(HOST, ConnectionLimits("limits", **limits))).lease
        return lease

    async def scenario():
        async with _store(f"unix://{redis.path}") as store:
            await connect(store, host=DAILY)
            measured["host with a limit on connections"] = usage("h")
            lease = await connect(store, host=DAILY, **BUDGETS)
            await store.settle(lease, Spent(1, 1, 1, 1, 1))
            measured["host with that and all five budgets"] = usage("h")
            await connect(store, network=DAILY)
            measured["network with a limit"] = usage("n")
            await connect(store, concurrent=1000)
            measured["host with one open connection"] = one = usage("l")
            await connect(store, 128, concurrent=1000)
            many = usage("l")
            measured["each open connection more, of up to 128"] = (many - one) / 127
            await connect(store, 1000, concurrent=1000)
            measured["each open connection above that"] = usage("l") / 1000

            redis.ask("FLUSHALL")
            await store.take(DAILY, "limits:per_sender:somebody@example.com")
            measured["rate of a sender, recipient or user"] = usage("t")
            await store.greylist("192.0.2.0/24", "a", "b", GreylistSettings(delay=0.0))
            measured["triplet that is deferred"] = usage("g")
            measured["network with new triplets"] = usage("n")
            await store.greylist("192.0.2.0/24", "a", "b", GreylistSettings(delay=0.0))
            measured["known triplet"] = usage("g")
            measured["network with a pass"] = usage("a")
            await store.remember([MARK], 6 * 86_400.0)
            measured["mark"] = usage("d")

    run(scenario())
    # An allocator's classes and a hash table's growth make some difference.
    assert measured == pytest.approx(_octets(), rel=0.05, abs=8)
