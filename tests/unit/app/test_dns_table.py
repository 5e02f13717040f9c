"""The resolver that a configuration asks for."""

from __future__ import annotations

from preforkmx.app.resolver import (
    SharedResolver,
    make_resolver,
    resolver_lifespan,
    resolver_of,
)
from preforkmx.config.names import DNSServers
from preforkmx.config.schema import Dns
from preforkmx.dns.servers import MAX_SERVERS
from preforkmx.middleware.base import Middleware


def test_the_resolver_asks_the_servers_of_the_configuration_and_lives_with_its_worker(run):
    table = Dns.model_validate({"servers": ["127.0.0.1:5353", "[::1]:5353"], "timeout": "2500ms"})
    resolver = make_resolver(table)
    link = Middleware(lifespan=resolver.lifespan, name="dns")

    async def scenario():
        async with link.lifespan() as running:
            assert running is resolver
            assert resolver.servers == ("127.0.0.1:5353", "[::1]:5353")
        assert resolver.timeout == 2.5

    run(scenario())


def test_the_configuration_takes_as_many_servers_as_the_resolver():
    assert DNSServers.MOST == MAX_SERVERS


def test_all_middleware_of_a_worker_shares_one_resolver_that_lives_with_it(run):
    shared = SharedResolver(Dns())
    resolver = resolver_of(shared)
    assert resolver_of(shared) is resolver
    link = resolver_lifespan(shared)
    assert link is not None

    async def scenario():
        async with link.lifespan() as running:
            assert running is resolver
            assert resolver.servers

    run(scenario())


def test_a_worker_that_looks_nothing_up_has_no_resolver():
    assert resolver_lifespan(SharedResolver(Dns())) is None
