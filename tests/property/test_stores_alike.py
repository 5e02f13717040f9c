"""The scripts in Redis against the engine in memory: whatever is asked, they answer alike."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    multiple,
    rule,
    run_state_machine_as_test,
)

from preforkmx.state.decisions import (
    LONGEST_SPAN,
    ConnectionLimits,
    GreylistSettings,
    Rate,
    Spent,
)
from preforkmx.state.expiring import ExpiringMap
from preforkmx.state.local import LocalStore
from preforkmx.state.redis import nodes_for, parse
from preforkmx.state.redis.store import RedisStore

pytestmark = pytest.mark.integration

SLOW, FAST = Rate(7, 3600.0, 3), Rate(1000, 1.0, 40)
CENTURY = Rate(1, float(LONGEST_SPAN), 1)
ALL = {
    "host": Rate(60, 60.0, 20),
    "network": Rate(100, 60.0, 30),
    "concurrent": 4,
    "messages": Rate(3, 60.0, 8),
    "recipients": Rate(1000, 60.0, 50),
    "auth_failures": Rate(3, 3600.0, 3),
    "octets": Rate(1 << 20, 60.0, 1 << 24),
    "errors": Rate(10, 60.0, 20),
}
LIMITS = [
    ConnectionLimits("in", **ALL),
    # A reload made the same limits smaller, and forgot some.
    ConnectionLimits("in", host=SLOW, concurrent=2, messages=SLOW, errors=FAST),
    ConnectionLimits("out", host=SLOW, network=FAST),
    ConnectionLimits("out", **{name: CENTURY for name in ALL if name != "concurrent"}),
    ConnectionLimits("{a}:b *", recipients=Rate(60, 60.0, 100), octets=FAST),
]
HOSTS = [ip_address(a) for a in ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:0:1::1")]
GREYLISTS = [
    GreylistSettings(auto_allow_after=2),
    GreylistSettings(delay=60.0, window=3600.0, life=86_400.0, auto_allow_spacing=0.0),
    GreylistSettings(delay=0.0, life=1000.0, auto_allow_after=0),
]

amounts = st.builds(
    Spent,
    st.integers(0, 4),
    st.integers(0, 60),
    st.integers(0, 2),
    st.one_of(st.integers(0, 1 << 23), st.just(1 << 62)),
    st.integers(0, 30),
)
spans = st.one_of(
    st.sampled_from([1e-6, 0.5, 1.0, 59.0, 60.0, 300.0, 3600.0, 86_400.0, 40 * 86_400.0]),
    st.floats(0.0, 100.0),
)


class AlikeMachine(RuleBasedStateMachine):
    """Two stores with one clock."""

    leases = Bundle("leases")

    def __init__(self, runner, nodes):
        super().__init__()
        self.runner = runner
        self.now = 1_800_000_000.0
        self.greylists = False
        self.local = LocalStore(lambda: self.now)
        self.redis = RedisStore(nodes, clock=lambda: self.now)
        runner.run(self.redis.start())
        runner.run(nodes.command("FLUSHALL"))

    def teardown(self):
        self.runner.run(self.redis.close())

    def both(self, ask):
        """Ask both, and return what they answered when it is the same."""

        async def asked():
            return await ask(self.local, 0), await ask(self.redis, 1)

        return self.runner.run(asked())

    @rule(seconds=spans, back=st.booleans())
    def wait(self, seconds, back):
        # A greylist in memory keeps what has expired elsewhere than what came after it.
        self.now += -seconds if back and not self.greylists else seconds

        async def renew():
            # Only Redis' leases end by themselves.
            self.redis.renew(float("inf"))

        self.runner.run(renew())

    @rule(rate=st.sampled_from([SLOW, FAST, CENTURY]), key=st.sampled_from("ab"))
    def take(self, rate, key):
        local, redis = self.both(lambda store, _: store.take(rate, key, 2))
        assert local == redis

    @rule(target=leases, host=st.sampled_from(HOSTS), limits=st.sampled_from(LIMITS))
    def connect(self, host, limits):
        local, redis = self.both(lambda store, _: store.open_connection(host, limits))
        pair = (local.lease, redis.lease)
        local.lease = redis.lease = None
        assert local == redis
        assert (pair[0] is None) == (pair[1] is None)
        return multiple() if pair[0] is None else pair

    @rule(pair=leases, spent=amounts, want=amounts)
    def settle(self, pair, spent, want):
        local, redis = self.both(lambda store, which: store.settle(pair[which], spent, want))
        assert local == redis
        assert pair[0].reserved == pair[1].reserved

    @rule(pair=consumes(leases), spent=amounts)
    def disconnect(self, pair, spent):
        self.both(lambda store, which: store.close_connection(pair[which], spent))

    @rule(
        network=st.sampled_from(["192.0.2.0/24", "}{", ""]),
        sender=st.sampled_from("abc"),
        chosen=st.sampled_from(GREYLISTS),
    )
    def greylist(self, network, sender, chosen):
        self.greylists = True
        local, redis = self.both(lambda store, _: store.greylist(network, sender, "r", chosen))
        assert local == redis


def test_redis_decides_as_the_engine_in_memory_does(redis, monkeypatch):
    # In memory an expired entry may be dropped, or be there still when the clock is set back.
    monkeypatch.setattr(ExpiringMap, "_make_room", lambda self, now: None)
    with asyncio.Runner() as runner:
        run_state_machine_as_test(
            lambda: AlikeMachine(runner, nodes_for(parse(f"unix://{redis.path}"), deadline=30.0)),
            settings=settings(max_examples=60, stateful_step_count=60, deadline=None),
        )
