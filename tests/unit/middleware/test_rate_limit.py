"""Limits on connections, as a session meets them."""

from __future__ import annotations

import asyncio
from importlib import import_module
from ipaddress import ip_address, ip_network

import pytest

from preforkmx.context import Context
from preforkmx.errors import SMTPError, StoreUnavailable
from preforkmx.middleware import check_connection
from preforkmx.middleware.rate_limit import ip_rate_limit, rate_limit
from preforkmx.model import Peer, ProxyInfo
from preforkmx.state.decisions import Rate
from preforkmx.state.local import LocalStore


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Counting(LocalStore):
    """A store that counts what it is asked, and may be away."""

    def __init__(self, clock):
        super().__init__(clock)
        self.asked = 0
        self.away = False

    async def open_connection(self, address, limits):
        self.asked += 1
        if self.away:
            raise StoreUnavailable("away")
        return await super().open_connection(address, limits)

    async def take(self, limit, key, cost=1):
        self.asked += 1
        if self.away:
            raise StoreUnavailable("away")
        return await super().take(limit, key, cost)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return Counting(clock)


def peer(address):
    return Peer(
        address=None if address is None else ip_address(address),
        port=40000,
        server_name="mx.example.com",
        listener="127.0.0.1:25",
    )


def connect(middleware, address="192.0.2.1", ctx=None, proxy=None):
    """Run check_connection as a session does; return the Context that the session goes on with."""
    ctx = ctx if ctx is not None else Context()
    client = peer(address)._replace(proxy=proxy)
    returned = asyncio.run(middleware.check_connection(ctx, client))
    return returned if returned is not None else ctx


def disconnect(middleware, ctx, address="192.0.2.1"):
    asyncio.run(middleware.disconnect(ctx, peer(address), None))


def refusal(middleware, address="192.0.2.1"):
    with pytest.raises(SMTPError) as caught:
        connect(middleware, address)
    return str(caught.value)


def test_a_host_above_its_rate_gets_421_with_the_limit_and_the_seconds_to_wait(store, clock):
    limited = rate_limit(store, connections=Rate(60, 60.0, 3), clock=clock)
    for _ in range(3):
        connect(limited)
    assert refusal(limited) == (
        "421 4.7.0 Too many connections from your address (limit: connections), try again in 1 s"
    )
    connect(limited, "192.0.2.2")


def test_the_wait_is_told_in_whole_seconds_and_is_never_zero(store, clock):
    limited = rate_limit(store, connections=Rate(1, 100.0, 1), clock=clock)
    connect(limited)
    clock.now += 0.5
    assert refusal(limited).endswith("in 100 s")
    clock.now += 99.4
    assert refusal(limited).endswith("in 1 s")
    clock.now += 0.1
    connect(limited)


def test_a_blocked_host_costs_no_store_operation(store, clock):
    limited = rate_limit(store, connections=Rate(1, 100.0, 1), clock=clock)
    connect(limited)
    refusal(limited)
    asked = store.asked
    for _ in range(100):
        clock.now += 0.9
        refusal(limited)
    assert store.asked == asked
    clock.now += 10.0
    connect(limited)
    assert store.asked == asked + 1


def test_who_is_blocked_is_remembered_within_bounds(store, clock, monkeypatch):
    module = import_module("preforkmx.middleware.blocked")
    monkeypatch.setattr(module, "MAX_BLOCKED", 100)
    limited = rate_limit(store, connections=Rate(1, 100.0, 1), clock=clock)
    # An IPv6 /64 each: no attacker is short of them.
    hosts = [str(ip_address(n << 64)) for n in range(200)]
    for host in hosts:
        connect(limited, host)
        refusal(limited, host)
    asked = store.asked
    for host in hosts:
        refusal(limited, host)
    assert store.asked >= asked + 100


def test_open_connections_are_limited_and_a_closed_one_makes_room_at_once(store, clock):
    limited = rate_limit(store, concurrent=2, clock=clock)
    first = connect(limited)
    connect(limited)
    assert refusal(limited) == (
        "421 4.7.0 Too many open connections from your address (limit: concurrent), "
        "try again in 1 s"
    )
    disconnect(limited, first)
    connect(limited)


def test_a_host_without_room_is_asked_about_once_a_second(store, clock):
    limited = rate_limit(store, concurrent=1, clock=clock)
    connect(limited)
    refusal(limited)
    asked = store.asked
    for _ in range(10):
        clock.now += 0.05
        refusal(limited)
    assert store.asked == asked
    clock.now += 1.0
    refusal(limited)
    assert store.asked == asked + 1


def test_a_rate_keeps_its_host_blocked_though_a_lease_ends(store, clock):
    limited = rate_limit(store, connections=Rate(1, 100.0, 1), concurrent=5, clock=clock)
    ctx = connect(limited)
    refusal(limited)
    asked = store.asked
    disconnect(limited, ctx)
    refusal(limited)
    assert store.asked == asked


def test_a_refused_connection_holds_no_lease(store, clock):
    limited = rate_limit(store, connections=Rate(1, 100.0, 1), concurrent=5, clock=clock)
    ctx = connect(limited)
    refusal(limited)
    disconnect(limited, Context())  # the refused session: its Context never had a lease
    assert store.limits.leases == 1
    disconnect(limited, ctx)
    assert store.limits.leases == 0


def test_two_rate_limits_on_one_store_count_apart(store, clock):
    one = rate_limit(store, concurrent=1, name="one", clock=clock)
    two = rate_limit(store, concurrent=1, name="two", clock=clock)
    ctx = connect(two, ctx=connect(one))
    assert store.limits.leases == 2
    disconnect(one, ctx)
    disconnect(two, ctx)
    assert store.limits.leases == 0


def test_a_second_check_of_a_session_takes_the_place_of_the_first(store, clock):
    limited = rate_limit(store, concurrent=1, clock=clock)
    ctx = connect(limited, "192.0.2.1")
    ctx = connect(limited, "198.51.100.1", ctx)
    assert store.limits.leases == 1
    connect(limited, "192.0.2.1")
    disconnect(limited, ctx, "198.51.100.1")
    assert store.limits.leases == 1


def test_allowed_networks_and_unix_sockets_have_no_limit(store, clock):
    limited = rate_limit(
        store, connections=Rate(1, 100.0, 1), allow=[ip_network("192.0.2.0/24")], clock=clock
    )
    for address in ("192.0.2.1", "192.0.2.1", "::ffff:192.0.2.1", None, None):
        connect(limited, address)
    assert store.asked == 0
    connect(limited, "198.51.100.1")
    refusal(limited, "198.51.100.1")


HEALTH_CHECK = ProxyInfo(2, local=True)
PROXIED = ProxyInfo(2, source=(ip_address("192.0.2.1"), 40000))


def test_a_balancer_s_health_check_has_no_limit(store, clock):
    limited = rate_limit(store, connections=Rate(1, 100.0, 1), concurrent=1, clock=clock)
    for _ in range(5):
        ctx = connect(limited, proxy=HEALTH_CHECK)
        disconnect(limited, ctx)
    assert (store.asked, store.limits.leases) == (0, 0)
    # Who came through the balancer is no health check, nor is who came without addresses.
    connect(limited, proxy=PROXIED)
    refusal(limited)
    connect(limited, "198.51.100.1", proxy=ProxyInfo(1))
    refusal(limited, "198.51.100.1")


def test_a_health_check_passes_while_its_address_is_blocked(store, clock):
    limited = rate_limit(store, connections=Rate(1, 100.0, 1), clock=clock)
    connect(limited)
    refusal(limited)
    connect(limited, proxy=HEALTH_CHECK)


def test_a_second_check_without_a_limit_gives_the_first_lease_back(store, clock):
    limited = rate_limit(store, concurrent=1, allow=[ip_network("198.51.100.0/24")], clock=clock)
    ctx = connect(limited, "192.0.2.1")
    ctx = connect(limited, "198.51.100.1", ctx)
    assert store.limits.leases == 0
    # Once: what the session had is somebody else's by now.
    other = connect(limited, "192.0.2.1")
    disconnect(limited, ctx, "198.51.100.1")
    assert store.limits.leases == 1
    disconnect(limited, other)
    assert store.limits.leases == 0


def test_a_second_check_may_be_the_first_with_a_limit(store, clock):
    limited = rate_limit(store, concurrent=1, allow=[ip_network("198.51.100.0/24")], clock=clock)
    ctx = connect(limited, "192.0.2.1", connect(limited, "198.51.100.1"))
    assert store.limits.leases == 1
    disconnect(limited, ctx)
    assert store.limits.leases == 0


def test_a_second_check_that_is_refused_keeps_the_lease_until_the_session_ends(store, clock):
    limited = rate_limit(store, concurrent=1, clock=clock)
    taken = connect(limited, "198.51.100.1")
    ctx = connect(limited, "192.0.2.1")
    with pytest.raises(SMTPError):
        connect(limited, "198.51.100.1", ctx)
    assert store.limits.leases == 2
    disconnect(limited, ctx, "198.51.100.1")
    assert store.limits.leases == 1
    disconnect(limited, taken, "198.51.100.1")
    assert store.limits.leases == 0


def test_a_second_check_of_the_same_host_needs_a_place_of_its_own(store, clock):
    limited = rate_limit(store, concurrent=2, clock=clock)
    ctx = connect(limited)
    ctx = connect(limited, ctx=ctx)
    assert store.limits.leases == 1
    disconnect(limited, ctx)
    assert store.limits.leases == 0


def test_limits_never_fail_closed(store, clock):
    limited = rate_limit(store, connections=Rate(1, 100.0, 1), concurrent=1, clock=clock)
    store.away = True
    for _ in range(5):
        disconnect(limited, connect(limited))


def test_a_rate_limit_without_a_limit_is_a_mistake(store):
    with pytest.raises(ValueError, match="connections"):
        rate_limit(store)


# --- ip_rate_limit, as the seed has it -----------------------------------------------------------


def test_a_lifted_check_limits_connections_a_second(store, clock):
    limited = check_connection(ip_rate_limit(rate=1, burst=3, store=store, clock=clock))
    assert limited.name == "ip_rate_limit"
    for _ in range(3):
        connect(limited)
    assert refusal(limited).startswith("421 4.7.0 Too many connections")
    asked = store.asked
    refusal(limited)
    assert store.asked == asked
    clock.now += 1.0
    connect(limited)
    connect(limited, None)
    connect(limited, "192.0.2.2")


def test_a_lifted_check_needs_no_store():
    limited = check_connection(ip_rate_limit(rate=0.001, burst=1))
    connect(limited)
    refusal(limited)


def test_a_lifted_check_does_not_fail_closed(store, clock):
    limited = check_connection(ip_rate_limit(rate=1, burst=1, store=store, clock=clock))
    store.away = True
    for _ in range(5):
        connect(limited)


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (float("nan"), 1), (1, 0)])
def test_a_rate_that_makes_no_sense_is_a_mistake(rate, burst):
    with pytest.raises(ValueError):
        ip_rate_limit(rate, burst)


def test_a_lifted_check_lets_a_health_check_pass(store, clock):
    limited = check_connection(ip_rate_limit(rate=1, burst=1, store=store, clock=clock))
    for _ in range(5):
        connect(limited, proxy=HEALTH_CHECK)
    assert store.asked == 0
    connect(limited, proxy=PROXIED)
    refusal(limited)
    connect(limited, proxy=HEALTH_CHECK)
