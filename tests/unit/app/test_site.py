from __future__ import annotations

import asyncio
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import trustme

from preforkmx.app.site import Site, load_configuration, load_plan
from preforkmx.context import Context
from preforkmx.errors import ConfigError, SMTPError
from preforkmx.model import Peer
from preforkmx.server import Server
from preforkmx.session.listener import Listener
from preforkmx.testing import Client, running
from preforkmx.workers.seat import WorkerSeat

PEER = Peer(ip_address("192.0.2.1"), 4000, "mx.example.com", "127.0.0.1:0")

SMALL = """\
hostname = "mx.example.com"
domains = ["example.com"]
[[listener]]
address = "127.0.0.1:0"
backlog = 7
[delivery]
use = "discard"
[admin]
control = "run/control.sock"
"""


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def read(text, app=None, environ=None):
        path = tmp_path / "my.toml"
        path.write_text(text)
        return Site.read(path, app, environ or {})

    return read


def seat(slot=0, count=2):
    return WorkerSeat(slot=slot, count=count, generation=1)


def names(server):
    return [middleware.name for middleware in server.middleware]


def problems_of(site):
    with pytest.raises(ConfigError) as caught:
        site.check()
    return [problem.partition("my.toml:")[2] or problem for problem in caught.value.problems]


def test_a_plan_has_what_the_configuration_says(read, tmp_path):
    plan = read(
        SMALL
        + """
        [workers]
        count = 3
        loop = "asyncio"
        max_sessions = 50
        drain_seconds = 7
        hang_seconds = 9
        [log]
        format = "json"
        level = "debug"
        """
    ).plan()
    assert plan.hostname == "mx.example.com"
    assert plan.listeners == (Listener("127.0.0.1:0", tls="starttls", backlog=7),)
    assert (plan.count, plan.loop, plan.max_sessions) == (3, "asyncio", 50)
    assert (plan.drain_seconds, plan.hang_seconds) == (7.0, 9.0)
    assert (plan.log_format, plan.log_level) == ("json", "debug")


def test_every_key_of_a_listener_is_in_the_plan(read, tmp_path):
    plan = read(
        SMALL
        + """
        [[listener]]
        address = "unix:run/lmtp.sock"
        protocol = "lmtp"
        tls = "off"
        backlog = 9
        [[listener]]
        address = "127.0.0.1:2525"
        proxy_protocol = true
        proxy_from = ["10.0.0.0/8"]
        xclient_from = ["192.0.2.10"]
        """
    ).plan()
    assert plan.listeners[1:] == (
        Listener(f"unix:{tmp_path}/run/lmtp.sock", protocol="lmtp", tls="off", backlog=9),
        Listener(
            "127.0.0.1:2525",
            proxy_protocol=True,
            proxy_from=(ip_network("10.0.0.0/8"),),
            xclient_from=(ip_network("192.0.2.10"),),
        ),
    )


def test_every_limit_and_every_extension_reaches_the_server(read, monkeypatch):
    given = {}

    class Spy(Server):
        def __init__(self, **options):
            given.update(options)
            super().__init__(**options)

    monkeypatch.setattr("preforkmx.app.build.Server", Spy)
    text = SMALL.replace("[admin]", "[limits]\nhops = 7\n[extensions]\nchunking = false\n[admin]")
    site = read(text)
    site.build_server(seat())
    config = site.loaded.config
    for table in (config.limits, config.extensions):
        for key in type(table).model_fields:
            assert given[key] == getattr(table, key), key
    assert (given["hops"], given["chunking"]) == (7, False)


def test_extensions_that_are_switched_off_are_not_offered(read):
    async def keywords(text):
        server = read(text).build_server(seat())
        async with running(server) as address, await Client.connect(address) as client:
            return {line.split()[0] for line in (await client.hello()).lines[1:]}

    every = {"SMTPUTF8", "CHUNKING", "BINARYMIME", "DSN"}
    local = SMALL + '[state]\nurl = "local:"\n'
    table = "[extensions]\nsmtputf8 = {0}\nchunking = {0}\ndsn = {0}\n"
    assert every <= asyncio.run(keywords(local + table.format("true")))
    assert not every & asyncio.run(keywords(local + table.format("false")))
    assert every - asyncio.run(keywords(local)) == {"DSN"}


def test_what_a_delivery_does_not_keep_is_not_offered_by_default(read, site_module):
    module = site_module(
        """
        from preforkmx import Middleware

        async def handle(ctx, peer, envelope): ...

        nothing = Middleware(handler=handle, extensions=frozenset())
        """
    )

    async def keywords(delivery):
        text = SMALL.replace('use = "discard"', delivery) + '[state]\nurl = "local:"\n'
        server = read(text).build_server(seat())
        async with running(server) as address, await Client.connect(address) as client:
            return {line.split()[0] for line in (await client.hello()).lines[1:]}

    assert {"SMTPUTF8", "BINARYMIME"} <= asyncio.run(keywords('path = "mail"'))
    offered = asyncio.run(keywords(f'use = "{module}:nothing"'))
    assert not {"SMTPUTF8", "BINARYMIME"} & offered
    assert "CHUNKING" in offered


def test_a_promise_is_refused_where_the_sites_delivery_does_not_keep_it(read, site_module):
    module = site_module(
        """
        from preforkmx import Middleware

        async def handle(ctx, peer, envelope): ...

        utf8 = Middleware(handler=handle, extensions=frozenset({"SMTPUTF8"}))
        dsn = Middleware(handler=handle, extensions=frozenset({"DSN"}))
        """
    )
    promising = SMALL + "[extensions]\ndsn = true\n"
    for keeps in ("dsn", "handle"):
        read(promising.replace('"discard"', f'"{module}:{keeps}"')).check()
    [problem] = problems_of(read(promising.replace('"discard"', f'"{module}:utf8"')))
    assert problem == (
        "11: extensions.dsn: cannot be kept by the delivery "
        "(got true; its extensions are without DSN)"
    )


def test_automatic_workers_are_as_many_as_cores(read, monkeypatch):
    monkeypatch.setattr("preforkmx.app.site.usable_cores", lambda: 6)
    assert read(SMALL).plan().count == 6


def test_the_store_is_beside_the_control_socket(read, tmp_path):
    plan = read(SMALL).plan()
    store = plan.store
    assert store.socket == tmp_path / "run" / "control.sock.store"
    assert store.database == tmp_path / "run" / "control.sock.db"
    assert plan.state_url == "embedded:"


def test_beside_redis_a_store_process_counts_while_that_is_away(read, tmp_path):
    url = "redis://site:s3cret@redis.example.com/1"
    plan = read(SMALL + f'[state]\nurl = "{url}"').plan()
    assert plan.store.database == tmp_path / "run" / "control.sock.db"
    assert plan.state_url == "redis://site@redis.example.com:6379/1"
    # So a reload may change where the state is: the store process stays the same.
    assert plan.store == read(SMALL).plan().store


def test_a_file_of_redis_tls_that_is_not_there_is_a_problem_of_the_url(read, tmp_path):
    url = f"rediss://redis.example.com?ca={tmp_path}/none.pem"
    with pytest.raises(ConfigError, match=r"state\.url: names a file that cannot be used"):
        read(SMALL + f'[state]\nurl = "{url}"').check()


def test_the_stores_file_may_be_elsewhere_and_there_may_be_no_store(read, tmp_path):
    named = read(SMALL + '[state]\nurl = "embedded:grey.db"').plan().store
    assert named.database == tmp_path / "grey.db"
    assert read(SMALL + '[state]\nurl = "local:"').plan().store is None


CHECKS = """
from preforkmx import Middleware

def quota(*, limit):
    return Middleware(name=f"quota {limit}")

plain = Middleware(name="plain")

async def bare(ctx, peer, address): ...

async def deliver(ctx, peer, envelope):
    async for chunk in envelope.data:
        pass
"""


def test_the_chain_is_store_domains_middleware_delivery(read, site_module):
    module = site_module(CHECKS)
    site = read(
        SMALL
        + f"""
        [[middleware]]
        use = "rate_limit"
        connections = "60/min"
        [[middleware]]
        use = "{module}:quota"
        limit = 3
        [[middleware]]
        use = "greylist"
        [[middleware]]
        use = "require_tls"
        at = "rcpt"
        [[middleware]]
        use = "require_auth"
        [[middleware]]
        use = "rate_limit"
        concurrent = 5
        [[middleware]]
        use = "{module}:plain"
        """
    )
    server = site.build_server(seat())
    assert names(server) == [
        "store",
        "domains",
        "rate_limit",
        "quota 3",
        "greylist",
        "require_tls",
        "require_auth",
        "rate_limit 2",
        "plain",
    ]
    assert server.delivery.name == "discard"
    assert server.hostname == "mx.example.com"


def test_each_worker_has_a_server_of_its_own(read):
    site = read(SMALL)
    assert site.build_server(seat(0)) is not site.build_server(seat(1))


def test_a_maildir_is_a_delivery(read):
    site = read(SMALL.replace('use = "discard"', 'path = "mail"'))
    assert site.build_server(seat()).delivery.name == "maildir"


def test_a_coroutine_function_of_the_site_is_a_delivery(read, site_module):
    module = site_module(CHECKS)
    site = read(SMALL.replace('"discard"', f'"{module}:deliver"'))
    assert site.build_server(seat()).delivery.name == "deliver"


def test_recipients_of_other_domains_are_refused(read):
    [check] = [
        middleware.check_recipient
        for middleware in read(SMALL).build_server(seat()).middleware
        if middleware.check_recipient is not None
    ]
    asyncio.run(check(Context(), PEER, "joe@example.com"))
    with pytest.raises(SMTPError, match="Relaying denied"):
        asyncio.run(check(Context(), PEER, "joe@example.org"))


def test_a_local_store_needs_no_process(read):
    site = read(SMALL + '[state]\nurl = "local:"\n[[middleware]]\nuse = "greylist"')
    server = site.build_server(seat())

    async def start():
        async with server.started():
            pass

    asyncio.run(start())


def test_the_sites_code_is_imported_by_the_check_and_not_before(read, site_module):
    module = site_module(CHECKS)
    site = read(SMALL + f'[[middleware]]\nuse = "{module}:plain"')
    site.plan()
    assert module not in sys.modules
    site.check()
    assert module in sys.modules


def test_the_check_finds_everything_that_is_wrong_with_the_sites_code(read, site_module):
    module = site_module(CHECKS)
    site = read(
        SMALL.replace('"discard"', f'"{module}:delivr"')
        + f"""
        [[middleware]]
        use = "{module}:bare"
        [[middleware]]
        use = "{module}:quota"
        limits = 3
        [[middleware]]
        use = "rate_limit"
        connections = "1/day"
        burst = 1_000_000
        """
    )
    check, quota, limit, delivery = problems_of(site)
    assert check == (
        f'12: middleware[0].use: is a check and no Middleware (got "{module}:bare"; '
        "lift it to a phase: bare = preforkmx.middleware.check_sender(bare))"
    )
    # Python's own words follow; they differ from version to version.
    assert quota.startswith(
        f'14: middleware[1].use: does not take these options (got "{module}:quota"; missing a '
    )
    assert limit == (
        "17: middleware[2].use: a burst of 1000000 at this rate takes over 100 years to earn "
        '(got "rate_limit")'
    )
    assert delivery == (
        f'7: delivery.use: has no delivr (got "{module}:delivr"; did you mean "deliver"?)'
    )


def test_the_context_of_tls_is_made_before_the_workers(read, tmp_path):
    pair = trustme.CA().issue_cert("mx.example.com")
    pair.private_key_pem.write_to_path(tmp_path / "key.pem")
    pair.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    tls = '[tls]\ncertificate = "certificate.pem"\nkey = "key.pem"\n'
    context = read(SMALL + tls + 'minimum_version = "1.3"').tls
    assert context.minimum_version.name == "TLSv1_3"
    assert read(SMALL).tls is None


APP = """
from preforkmx import Middleware, Server

async def deliver(ctx, peer, envelope): ...

server = Server(hostname="app.example.com", handler=deliver)
server.use(Middleware(name="the app's own"))
"""
LISTENER = '[[listener]]\naddress = "127.0.0.1:0"\n'


def test_an_application_runs_behind_the_middleware_of_the_file(read, site_module):
    module = site_module(APP)
    site = read(
        'domains = ["example.com"]\n' + LISTENER + '[[middleware]]\nuse = "require_tls"',
        app=f"{module}:server",
    )
    server = site.build_server(seat())
    assert names(server) == ["store", "domains", "require_tls", "the app's own"]
    assert server.delivery.handler.__name__ == "deliver"
    assert server.hostname == "app.example.com"


def test_a_host_name_in_the_file_must_be_the_applications(read, site_module):
    app = f"{site_module(APP)}:server"
    read('hostname = "app.example.com"\n' + LISTENER, app=app).check()
    assert problems_of(read('hostname = "mx.example.com"\n' + LISTENER, app=app)) == [
        '1: hostname: is not the application\'s (got "mx.example.com"; it says app.example.com)'
    ]


def test_an_application_that_is_no_server_is_refused(read, site_module):
    app = f"{site_module(APP)}:deliver"
    assert problems_of(read(LISTENER, app=app)) == [
        f"--app {app}: is no preforkmx.Server (it is function)"
    ]


def test_an_application_needs_a_certificate_for_implicit_tls(read, site_module):
    app = f"{site_module(APP)}:server"
    [problem] = problems_of(read(LISTENER + 'tls = "implicit"', app=app))
    assert problem == (
        '3: listener[0].tls: needs a certificate (got "implicit"; add [tls] with certificate '
        "and key, or give the application's Server a context)"
    )


def test_without_a_file_the_demo_is_planned(tmp_path, monkeypatch):
    from preforkmx.app.demo_files import prepare

    monkeypatch.chdir(tmp_path)
    prepare()
    plan = load_plan(None, None, {})
    assert [(each.address, each.tls) for each in plan.listeners] == [
        ("127.0.0.1:2525", "starttls"),
        ("127.0.0.1:2465", "implicit"),
    ]
    assert plan.count == 2
    assert plan.store.database.is_relative_to(tmp_path / "preforkmx-data")
    plan.check()


def test_without_a_file_an_application_gets_the_demos_listeners(tmp_path, monkeypatch, site_module):
    from preforkmx.app.demo_files import prepare

    app = f"{site_module(APP)}:server"
    prepare()
    site = Site.read(None, app, {})
    assert [each.address for each in site.plan().listeners] == ["127.0.0.1:2525", "127.0.0.1:2465"]
    assert names(site.build_server(seat())) == ["store", "the app's own"]


def test_the_demo_can_be_shown_before_it_has_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_configuration(None, None, {}, files=False).config.domains == ("*",)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="cannot be read"):
        load_configuration(None, None, {})


def test_a_demo_that_others_could_reach_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environ = {"PREFORKMX_LISTENER__0__ADDRESS": "0.0.0.0:2525"}
    with pytest.raises(ConfigError, match="must be loopback without a configuration file"):
        load_configuration(None, None, environ, files=False)
    assert not Path("preforkmx-data").exists()
