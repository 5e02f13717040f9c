"""Links to real Redis servers: what leaves in one write, what a fault costs, and the way back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time

import pytest
import trustme
import uvloop

from preforkmx.errors import StoreUnavailable
from preforkmx.state.redis import Script, connection, nodes_for, parse
from preforkmx.state.redis.slots import slot_of
from tests.integration.redis_servers import (
    SERVICE,
    free_ports,
    redis_cluster,
    redis_server,
    sentinel_trio,
)

pytestmark = pytest.mark.integration

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
DEADLINE = 0.3
#: What a machine that others use adds to a deadline.
SLACK = 0.25
#: A failure that waited for nobody.
AT_ONCE = 0.1

COUNT = Script(b"return redis.call('INCRBY', KEYS[1], ARGV[1])")
ECHO = Script(b"return {ARGV[1], #KEYS, false}")


@pytest.fixture(params=list(LOOPS))
def run(request):
    """Run a coroutine to its end, on both loops; it must leave no task behind."""
    return runner(request.param)


@pytest.fixture
def run_once():
    """The same on the loop that workers have, for what takes long."""
    return runner("uvloop")


def runner(loop):
    async def alone(coroutine):
        async with asyncio.timeout(50):
            result = await coroutine
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:  # a server's own, of a connection that ends
            _, left = await asyncio.wait(left, timeout=1)
        assert not left, f"left behind: {left}"
        return result

    def run(coroutine):
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            return runner.run(alone(coroutine))

    return run


@pytest.fixture(scope="module")
def server():
    with redis_server() as server:
        yield server


@pytest.fixture(autouse=True)
def clean(request):
    if "server" in request.fixturenames:
        request.getfixturevalue("server").ask("FLUSHALL")


@contextlib.asynccontextmanager
async def started(url, **options):
    nodes = nodes_for(parse(url), **options)
    await nodes.start()
    try:
        yield nodes
    finally:
        await nodes.close()


@contextlib.asynccontextmanager
async def reached(url, **options):
    """The same, when all connections are there, which a busy machine may need a while for."""
    async with started(url, **options) as nodes:
        links = getattr(nodes, "_links", None)
        if links is None:
            await until(lambda: nodes.available)
        else:
            await until(lambda: links and all(link.ready for link in links.values()))
        yield nodes


def at(server, **options):
    return reached(f"redis://{server.address}", **options)


async def until(condition, seconds=20):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - another process does it
            await asyncio.sleep(0.005)


async def fails(nodes, key=b"key"):
    """Ask, expect no answer, and return why and how long it took."""
    began = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        await nodes.run(COUNT, [key], [1])
    return caught.value, time.monotonic() - began


async def answers(nodes, key=b"key", seconds=20):
    """Ask until there is an answer, and return how long the longest question took."""
    longest = 0.0
    async with asyncio.timeout(seconds):
        while True:
            began = time.monotonic()
            try:
                await nodes.run(COUNT, [key], [1])
            except StoreUnavailable:
                longest = max(longest, time.monotonic() - began)
                await asyncio.sleep(0.01)
            else:
                return longest


class TestOneServer:
    def test_a_reply_is_what_the_script_returns(self, run, server):
        async def main():
            async with at(server) as nodes:
                assert await nodes.run(ECHO, [b"a", b"b"], ["x"]) == [b"x", 2, None]
                assert await nodes.run(COUNT, [b"key"], [5]) == 5
                assert await nodes.command("GET", "key") == b"5"
                assert nodes.names() == (server.address,)

        run(main())

    def test_what_all_ask_in_one_turn_leaves_in_one_write(self, run, server):
        async def main():
            async with at(server) as nodes:
                await nodes.run(COUNT, [b"key"], [0])
                before = int(server.info("stats")["total_reads_processed"])
                replies = await asyncio.gather(
                    *(nodes.run(COUNT, [b"key"], [1]) for _ in range(100))
                )
                after = int(server.info("stats")["total_reads_processed"])
                assert replies == list(range(1, 101))
                # One for all of them; the rest is this question and the end of the last.
                assert after - before <= 3

        run(main())

    def test_all_share_one_connection(self, run, server):
        async def main():
            async with at(server) as nodes:
                await asyncio.gather(*(nodes.run(COUNT, [b"key"], [1]) for _ in range(50)))
                clients = server.ask("CLIENT", "LIST")
                assert clients.count("name=preforkmx") == 1

        run(main())

    def test_a_script_that_was_forgotten_is_brought_again(self, run, server):
        async def main():
            async with at(server) as nodes:
                await nodes.run(COUNT, [b"key"], [1])
                server.ask("SCRIPT", "FLUSH")
                replies = await asyncio.gather(
                    *(nodes.run(COUNT, [b"key"], [1]) for _ in range(20))
                )
                assert sorted(replies) == list(range(2, 22))

        run(main())

    def test_a_script_that_many_ask_for_is_brought_once(self, run, server):
        async def main():
            async with at(server) as nodes:
                await nodes.run(COUNT, [b"key"], [1])
                server.ask("SCRIPT", "FLUSH")
                server.ask("CONFIG", "RESETSTAT")
                await asyncio.gather(*(nodes.run(COUNT, [b"key"], [1]) for _ in range(500)))
                assert "cmdstat_eval:calls=1," in server.ask("INFO", "commandstats")
                # A second flush at once: the script is brought again.
                server.ask("SCRIPT", "FLUSH")
                assert await nodes.run(COUNT, [b"key"], [1]) == 502

        run(main())

    def test_what_nobody_waits_for_is_done_all_the_same(self, run, server):
        async def main():
            async with at(server) as nodes:
                server.ask("SCRIPT", "FLUSH")
                nodes.tell(COUNT, [b"key"], [1])
                await until(lambda: server.ask("GET", "key") == "1")
                nodes.tell(COUNT, [b"key"], [1])
                assert await nodes.run(COUNT, [b"key"], [1]) == 3

        run(main())

    def test_a_caller_that_is_cancelled_shifts_nobody_elses_reply(self, run, server):
        async def main():
            async with at(server) as nodes:
                await nodes.run(ECHO, [b"k"], [0])
                asked = [
                    asyncio.create_task(nodes.run(ECHO, [b"k"], [number])) for number in range(9)
                ]
                await asyncio.sleep(0)
                for task in asked[::2]:
                    task.cancel()
                replies = await asyncio.gather(*asked, return_exceptions=True)
                for number, reply in enumerate(replies):
                    if number % 2:
                        assert reply[0] == str(number).encode()
                    else:
                        assert isinstance(reply, asyncio.CancelledError)

        run(main())

    def test_a_script_that_fails_is_a_store_that_is_not_there(self, run, server):
        async def main():
            async with at(server) as nodes:
                with pytest.raises(StoreUnavailable, match="wrong kind"):
                    await nodes.run(Script(b"return redis.call('LPOP', KEYS[1])"), [b"key"], [])
                with pytest.raises(StoreUnavailable):
                    await nodes.run(COUNT, [b"key"], [object()])
                with pytest.raises(StoreUnavailable):
                    await nodes.run(COUNT, [], [])
                assert await nodes.run(ECHO, [b"k"], ["x"])

        server.ask("SET", "key", "text")
        run(main())

    def test_no_more_wait_than_may(self, run, server, monkeypatch):
        monkeypatch.setattr(connection, "MAX_IN_FLIGHT", 10)

        async def main():
            async with at(server) as nodes:
                replies = await asyncio.gather(
                    *(nodes.run(COUNT, [b"key"], [1]) for _ in range(15)), return_exceptions=True
                )
                refused = [each for each in replies if isinstance(each, StoreUnavailable)]
                assert len(refused) == 5
                assert await nodes.run(COUNT, [b"key"], [1]) == 11

        run(main())

    def test_a_unix_socket_and_a_database(self, run, server):
        async def main():
            async with reached(f"unix://{server.path}?db=3") as nodes:
                assert await nodes.run(COUNT, [b"key"], [7]) == 7
            async with reached(f"redis://{server.address}/3") as nodes:
                assert await nodes.command("GET", "key") == b"7"
            async with reached(f"redis://localhost:{server.port}") as nodes:
                assert await nodes.command("GET", "key") is None

        run(main())


class TestFaults:
    def test_a_server_that_stands_still_costs_one_deadline_and_then_nothing(self, run, server):
        async def main():
            async with at(server) as nodes:
                identity = await nodes.command("CLIENT", "ID")
                server.stand_still()
                try:
                    outcomes = await asyncio.gather(*(fails(nodes) for _ in range(20)))
                    assert all(DEADLINE <= took < DEADLINE + SLACK for _, took in outcomes)
                    assert not nodes.available
                    for _ in range(20):
                        why, took = await fails(nodes)
                        assert took < AT_ONCE
                        assert not why.partial
                finally:
                    server.go_on()
                # The late replies themselves say that it is back.
                await until(lambda: nodes.available)
                assert await nodes.run(COUNT, [b"key"], [1]) == 21
                assert await nodes.command("CLIENT", "ID") == identity

        run(main())

    def test_what_is_told_to_a_server_that_stands_still_comes_behind_what_was_asked(
        self, run, server
    ):
        async def main():
            async with at(server) as nodes:
                await nodes.run(COUNT, [b"key"], [1])
                server.stand_still()
                try:
                    await fails(nodes)
                    nodes.tell(COUNT, [b"key"], [-1])
                finally:
                    server.go_on()
                await until(lambda: nodes.available)
                assert await nodes.run(COUNT, [b"key"], [0]) == 1

        run(main())

    def test_a_connection_that_is_silent_for_too_long_is_given_up(self, run, server, monkeypatch):
        monkeypatch.setattr(connection, "SILENCE", 0.2)

        async def main():
            async with at(server) as nodes:
                identity = await nodes.command("CLIENT", "ID")
                server.stand_still()
                try:
                    await fails(nodes)
                    link = nodes._link
                    await until(lambda: not link.connected)
                    # The kernel accepts connections for it; that is no answer.
                    await asyncio.sleep(0.5)
                    assert not link.connected
                    _, took = await fails(nodes)
                    assert took < AT_ONCE
                finally:
                    server.go_on()
                await answers(nodes)
                assert await nodes.command("CLIENT", "ID") > identity

        run(main())

    def test_a_pause_of_writes_is_noticed_although_pings_are_answered(
        self, run, server, monkeypatch
    ):
        monkeypatch.setattr(connection, "SILENCE", 0.2)

        async def main():
            async with at(server) as nodes:
                await nodes.run(COUNT, [b"key"], [1])
                server.ask("CLIENT", "PAUSE", 60_000, "WRITE")
                try:
                    assert server.ask("PING") == "PONG"
                    _, took = await fails(nodes)
                    assert DEADLINE <= took < DEADLINE + SLACK
                    # A new connection is not taken for one that answers, either.
                    await until(lambda: not nodes._link.connected)
                    await asyncio.sleep(0.5)
                    _, took = await fails(nodes)
                    assert took < AT_ONCE
                finally:
                    server.ask("CLIENT", "UNPAUSE")
                assert await answers(nodes) < DEADLINE + SLACK

        run(main())

    def test_a_server_that_is_killed_fails_at_once_and_comes_back_by_itself(self, run):
        async def main():
            with redis_server() as server:
                async with at(server) as nodes:
                    await nodes.run(COUNT, [b"key"], [1])
                    asked = asyncio.gather(*(fails(nodes) for _ in range(10)))
                    server.stand_still()
                    await asyncio.sleep(0)
                    server.kill()
                    assert all(took < DEADLINE + SLACK for _, took in await asked)
                    _, took = await fails(nodes)
                    assert took < AT_ONCE
                    server.start()
                    assert await answers(nodes) < AT_ONCE

        run(main())

    def test_a_server_that_is_not_there_yet_is_found_when_it_comes(self, run):
        async def main():
            with redis_server() as server:
                server.kill()
                began = time.monotonic()
                async with started(f"redis://{server.address}") as nodes:
                    assert time.monotonic() - began < DEADLINE + SLACK
                    why, took = await fails(nodes)
                    assert took < AT_ONCE
                    assert "refused" in str(why)
                    assert server.address in str(why)
                    server.start()
                    await answers(nodes)

        run(main())

    @pytest.mark.parametrize(
        ("setting", "value", "usual", "code"),
        [
            ("maxmemory", "1mb", "512mb", "OOM"),
            ("min-replicas-to-write", "1", "0", "NOREPLICAS"),
        ],
    )
    def test_a_server_that_refuses_writes_is_away(self, run, server, setting, value, usual, code):
        async def main():
            async with at(server) as nodes:
                await nodes.run(COUNT, [b"key"], [1])
                server.ask("CONFIG", "SET", setting, value)
                try:
                    why, took = await fails(nodes)
                    assert code in str(why)
                    assert took < AT_ONCE
                finally:
                    server.ask("CONFIG", "SET", setting, usual)
                assert await nodes.run(COUNT, [b"key"], [1]) == 2

        run(main())

    def test_a_primary_that_became_a_replica_is_away_until_it_is_a_primary_again(self, run, server):
        async def main():
            async with at(server) as nodes:
                await nodes.run(COUNT, [b"key"], [1])
                server.ask("REPLICAOF", "127.0.0.1", free_ports(1)[0])
                try:
                    why, took = await fails(nodes)
                    assert "READONLY" in str(why)
                    assert took < AT_ONCE
                finally:
                    server.ask("REPLICAOF", "NO", "ONE")
                await answers(nodes)

        run(main())

    def test_a_script_of_somebody_else_that_does_not_end_costs_no_more_than_the_deadline(
        self, run, server
    ):
        async def main():
            async with at(server) as nodes, at(server, deadline=5.0) as others:
                endless = asyncio.create_task(
                    others.run(Script(b"while true do end"), [b"other"], [])
                )
                await asyncio.sleep(0.05)
                _, took = await fails(nodes)
                assert took < DEADLINE + SLACK
                server.ask("SCRIPT", "KILL")
                with pytest.raises(StoreUnavailable):
                    await endless
                await answers(nodes)

        run(main())


class TestGettingIn:
    def test_a_password(self, run):
        async def main():
            with redis_server(password="s3cr#t/@") as server:
                async with reached(f"redis://:s3cr%23t%2F%40@{server.address}") as nodes:
                    assert await nodes.run(COUNT, [b"key"], [1]) == 1

        run(main())

    def test_a_user_with_rights_to_its_own_keys_only(self, run, server):
        async def main():
            server.ask(
                *("ACL", "SETUSER", "joe", "on", ">secret", "~mine:*"),
                *("+eval", "+evalsha", "+incrby"),
            )
            async with reached(f"redis://joe:secret@{server.address}") as nodes:
                assert await nodes.run(COUNT, [b"mine:key"], [1]) == 1
                why, _ = await fails(nodes, b"yours:key")
                assert "permission" in str(why).lower()

        run(main())

    def test_a_wrong_password_is_said_once_and_never_shown(self, run, server, caplog):
        async def main():
            server.ask("ACL", "SETUSER", "joe", "on", ">secret", "~*", "+@all")
            async with started(f"redis://joe:5ecret@{server.address}") as nodes:
                why, took = await fails(nodes)
                assert took < AT_ONCE
                assert "WRONGPASS" in str(why)
                attempts = int(server.info("stats")["total_connections_received"])
                await until(
                    lambda: int(server.info("stats")["total_connections_received"]) > attempts + 30
                )
                return repr(nodes.__dict__), str(why)

        shown = run(main())
        complaints = [each.getMessage() for each in caplog.records if "Redis at" in each.message]
        assert len(complaints) == 1
        assert "WRONGPASS" in complaints[0]
        assert "5ecret" not in f"{shown}{caplog.text}"

    @pytest.mark.parametrize(
        "says",
        [
            b"220 mx.example.com ESMTP\r\n",
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b"-ERR unknown command 'AUTH', with args beginning with: 'joe' 'p4ss' \r\n" * 4,
            b"+OK POP3 ready\r\n+OK\r\n+OK\r\n+OK\r\n",
            b"$100000000\r\n",
            b"",
        ],
    )
    def test_what_is_no_redis_is_away_and_the_password_in_no_log(self, run, says, caplog):
        async def main():
            there = set()

            class Other(asyncio.Protocol):
                def connection_made(self, transport):
                    self.transport = transport
                    there.add(self)

                def connection_lost(self, _exc):
                    there.discard(self)

                def data_received(self, _data):
                    self.transport.write(says)
                    self.transport.close()

            other = await asyncio.get_running_loop().create_server(Other, "127.0.0.1", 0)
            port = other.sockets[0].getsockname()[1]
            async with other:
                async with started(f"redis://joe:p4ss@127.0.0.1:{port}") as nodes:
                    await asyncio.sleep(0.1)
                    why, took = await fails(nodes)
                    assert took < AT_ONCE
                    assert "p4ss" not in str(why)
                # A connection that comes when its server has ended is none of ours.
                await until(lambda: not there and len(asyncio.all_tasks()) == 1)

        run(main())
        assert "p4ss" not in caplog.text

    def test_a_peer_that_swallows_everything_holds_nobody_up(self, run):
        async def main():
            with socket.create_server(("127.0.0.1", 0)) as silent:
                began = time.monotonic()
                async with started(f"redis://127.0.0.1:{silent.getsockname()[1]}") as nodes:
                    assert time.monotonic() - began < DEADLINE + SLACK
                    _, took = await fails(nodes)
                    assert took < AT_ONCE

        run(main())

    def test_a_name_that_nobody_knows_is_away(self, run):
        async def main():
            async with started("redis://redis.invalid") as nodes:
                _, took = await fails(nodes)
                assert took < AT_ONCE

        run(main())


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A server with TLS only, which wants a certificate of its clients, and its files."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    trustme.CA().cert_pem.write_to_path(folder / "other-ca.pem")
    authority.issue_cert("redis.test").private_key_and_cert_chain_pem.write_to_path(
        folder / "server.pem"
    )
    client = authority.issue_cert("client.test")
    client.private_key_pem.write_to_path(folder / "client.key")
    for blob in client.cert_chain_pems:
        blob.write_to_path(folder / "client.pem", append=True)
    with redis_server(
        *("--port", "0", "--tls-port", "PORT", "--tls-auth-clients", "yes"),
        *("--tls-cert-file", f"{folder}/server.pem", "--tls-key-file", f"{folder}/server.pem"),
        *("--tls-ca-cert-file", f"{folder}/ca.pem"),
    ) as server:
        yield server, folder


class TestTls:
    def url(self, tls, ca="ca.pem", name="redis.test", *, client=True):
        server, folder = tls
        options = [f"ca={folder}/{ca}"]
        if name:
            options.append(f"tls_name={name}")
        if client:
            options.append(f"cert={folder}/client.pem&key={folder}/client.key")
        return f"rediss://{server.address}?{'&'.join(options)}"

    def test_both_sides_prove_who_they_are(self, run, tls):
        async def main():
            # A handshake of public keys on a busy machine is no matter of this deadline.
            async with reached(self.url(tls), deadline=5.0) as nodes:
                replies = await asyncio.gather(
                    *(nodes.run(COUNT, [b"key"], [1]) for _ in range(100))
                )
                assert replies == list(range(replies[0], replies[0] + 100))

        run(main())

    @pytest.mark.parametrize(
        ("options", "why"),
        [
            ({"ca": "other-ca.pem"}, "certificate"),
            ({"name": "other.test"}, "certificate"),
            ({"name": ""}, "certificate"),
        ],
    )
    def test_a_server_that_does_not_prove_it_is_refused(self, run, tls, options, why, caplog):
        async def main():
            async with started(self.url(tls, **options), deadline=5.0) as nodes:
                reason, took = await fails(nodes)
                assert took < AT_ONCE
                assert why in str(reason)

        run(main())
        assert "certificate" in caplog.text

    def test_a_client_without_a_certificate_is_away(self, run, tls):
        async def main():
            async with started(self.url(tls, client=False), deadline=5.0) as nodes:
                _, took = await fails(nodes)
                assert took < AT_ONCE

        run(main())

    def test_a_server_without_tls_is_away(self, run, server, tls):
        async def main():
            url = self.url(tls).replace(tls[0].address, server.address)
            async with started(url, deadline=5.0) as nodes:
                _, took = await fails(nodes)
                assert took < AT_ONCE

        run(main())

    def test_files_that_are_none_are_told_before_anything_runs(self, tmp_path):
        with pytest.raises(OSError):
            nodes_for(parse(f"rediss://redis.test?ca={tmp_path}/missing.pem"))
        (tmp_path / "empty.pem").touch()
        with pytest.raises(ssl.SSLError):
            nodes_for(parse(f"rediss://redis.test?cert={tmp_path}/empty.pem"))

    def test_a_cluster_with_tls_everywhere(self, run_once, tls):
        _, folder = tls

        async def main():
            with redis_cluster(
                *("--port", "0", "--tls-port", "PORT", "--tls-auth-clients", "yes"),
                *("--tls-cluster", "yes", "--tls-replication", "yes"),
                *("--tls-cert-file", f"{folder}/server.pem"),
                *("--tls-key-file", f"{folder}/server.pem"),
                *("--tls-ca-cert-file", f"{folder}/ca.pem"),
            ) as cluster:
                url = self.url((cluster.nodes[0], folder)).replace("rediss:", "rediss+cluster:")
                async with reached(url, deadline=5.0) as nodes:
                    replies = await asyncio.gather(
                        *(nodes.run(COUNT, [b"{%d}" % number], [1]) for number in range(100))
                    )
                    assert replies == [1] * 100
                    assert len(nodes.names()) == 3

        run_once(main())


class Load:
    """Asks about many keys all the time, and counts for each slot's owner what came of it."""

    def __init__(self, nodes, keys):
        self._nodes = nodes
        self._keys = keys
        self.good = dict.fromkeys(keys, 0)
        self.failed = dict.fromkeys(keys, 0)
        self.whole = 0
        self.longest = dict.fromkeys(keys, 0.0)
        self._stop = False

    async def _ask(self, key):
        while not self._stop:
            began = time.monotonic()
            try:
                await self._nodes.run(COUNT, [key], [1])
                self.good[key] += 1
            except StoreUnavailable as exc:
                self.failed[key] += 1
                self.whole += not exc.partial
            self.longest[key] = max(self.longest[key], time.monotonic() - began)
            await asyncio.sleep(0.005)

    @contextlib.asynccontextmanager
    async def running(self):
        async with asyncio.TaskGroup() as group:
            for key in self._keys:
                group.create_task(self._ask(key))
            try:
                yield self
            finally:
                self._stop = True


def keys_of(cluster, count=4):
    """Return some keys of each primary, by its port."""
    found = {}
    for number in range(1000):
        key = b"{%d}:k" % number
        of = found.setdefault(cluster.owner(slot_of(key)).port, [])
        if len(of) < count:
            of.append(key)
        if len(found) == 3 and all(len(each) == count for each in found.values()):
            return found
    raise AssertionError(found)


@pytest.fixture(scope="module")
def cluster():
    with redis_cluster() as cluster:
        yield cluster


class TestCluster:
    def test_every_key_reaches_its_node_and_all_of_a_node_share_a_connection(self, run, cluster):
        async def main():
            async with reached(cluster.url) as nodes:
                replies = await asyncio.gather(
                    *(nodes.run(COUNT, [b"{a%d}" % number], [1]) for number in range(200))
                )
                assert len(set(replies)) == 1
                assert set(nodes.names()) == {node.address for node in cluster.primaries()}
                for node in cluster.primaries():
                    assert node.ask("CLIENT", "LIST").count("name=preforkmx") == 1

        run(main())

    def test_one_seed_that_lives_is_enough(self, run, cluster):
        async def main():
            dead = ",".join(f"127.0.0.1:{port}" for port in free_ports(3))
            for node in cluster.nodes:
                async with started(f"redis+cluster://{dead},{node.address}") as nodes:
                    await answers(nodes)
            async with started(f"redis+cluster://{dead}") as nodes:
                why, took = await fails(nodes)
                assert took < AT_ONCE
                assert not why.partial

        run(main())

    def test_a_server_that_is_no_cluster_is_away(self, run, server, caplog):
        async def main():
            async with started(f"redis+cluster://{server.address}") as nodes:
                why, _ = await fails(nodes)
                assert not why.partial

        run(main())
        assert "no node of the Redis cluster" in caplog.text

    def test_keys_of_two_slots_at_once_are_a_store_that_is_not_there(self, run, cluster):
        async def main():
            async with reached(cluster.url) as nodes:
                with pytest.raises(StoreUnavailable) as caught:
                    await nodes.run(COUNT, [b"{a}", b"{b}"], [1])
                assert caught.value.partial

        run(main())

    def test_a_slot_on_its_way_is_followed_with_ask_and_then_with_moved(self, run_once, cluster):
        key = b"{moving}:key"
        slot = slot_of(key)

        async def main():
            async with reached(cluster.url) as nodes:
                await nodes.run(COUNT, [b"{moving}:old"], [1])
                source = cluster.owner(slot)
                target = next(each for each in cluster.primaries() if each is not source)
                target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.identifier(source))
                source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.identifier(target))
                target.ask("SCRIPT", "FLUSH")
                # A key that is there is answered there, a new one beyond.
                assert await nodes.run(COUNT, [b"{moving}:old"], [1]) == 2
                assert await nodes.run(COUNT, [key], [1]) == 1
                replies = await asyncio.gather(*(nodes.run(COUNT, [key], [1]) for _ in range(50)))
                assert sorted(replies) == list(range(2, 52))
                # Two keys of which one has gone: nobody can answer now.
                with pytest.raises(StoreUnavailable, match="TRYAGAIN") as caught:
                    await nodes.run(COUNT, [b"{moving}:old", key], [1])
                assert caught.value.partial
                nodes.tell(COUNT, [key], [1])
                await until(lambda: int(asked(target, "GET", key.decode())) == 52)

                source.ask("MIGRATE", "127.0.0.1", target.port, "{moving}:old", 0, 5000)
                for node in (target, source):
                    node.ask("CLUSTER", "SETSLOT", slot, "NODE", cluster.identifier(target))
                replies = await asyncio.gather(*(nodes.run(COUNT, [key], [1]) for _ in range(50)))
                assert sorted(replies) == list(range(53, 103))
                assert await nodes.run(COUNT, [b"{moving}:old"], [1]) == 3
                # It was learnt: the old node is not asked about it any more.
                before = commands(source)
                for _ in range(20):
                    await nodes.run(COUNT, [key], [1])
                assert commands(source) == before

        def asked(node, *words):
            # Without ASKING a node that imports a slot sends everybody away.
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(node.path))
                client.sendall(b"ASKING\r\n" + " ".join(words).encode() + b"\r\n")
                time.sleep(0.02)
                return client.recv(1000).split(b"\r\n")[2] or 0

        def commands(node):
            return node.info("commandstats").get("cmdstat_evalsha", "").split(",")[0]

        run_once(main())

    @pytest.mark.parametrize("kind", ["hostname", "unknown-endpoint"])
    def test_nodes_that_are_named_by_host_names_or_not_at_all_are_reached(
        self, run_once, cluster, kind
    ):
        async def main():
            for node in cluster.nodes:
                node.ask("CONFIG", "SET", "cluster-announce-hostname", "localhost")
                node.ask("CONFIG", "SET", "cluster-preferred-endpoint-type", kind)
            try:
                # What a node calls itself takes its way to the others.
                await until(lambda: all(hosts(node) == {named} for node in cluster.nodes))
                async with reached(cluster.url) as nodes:
                    keys = [key for keys in keys_of(cluster, 1).values() for key in keys]
                    for key in keys:
                        await answers(nodes, key)
                    expected = "localhost" if kind == "hostname" else "127.0.0.1"
                    assert {name.split(":")[0] for name in nodes.names()} == {expected}
                    # A redirection does not name the host, either.
                    ours, other = (nodes._table[slot_of(key)] for key in keys[:2])
                    nodes._table[slot_of(keys[0])] = other
                    assert await nodes.run(COUNT, [keys[0]], [1])
                    assert nodes._table[slot_of(keys[0])] is ours
            finally:
                for node in cluster.nodes:
                    node.ask("CONFIG", "SET", "cluster-announce-hostname", "")
                    node.ask("CONFIG", "SET", "cluster-preferred-endpoint-type", "ip")

        named = "localhost" if kind == "hostname" else None

        def hosts(node):
            return {each[0] for row in node.ask("CLUSTER", "SLOTS") for each in row[2:]}

        run_once(main())

    def test_however_much_is_redirected_the_table_is_asked_for_once_a_second(
        self, run_once, cluster
    ):
        async def main():
            async with reached(cluster.url) as nodes:
                keys = [key for keys in keys_of(cluster, 10).values() for key in keys]
                await asyncio.gather(*(answers(nodes, key) for key in keys))
                before = asked()
                began = time.monotonic()
                while time.monotonic() - began < 2.5:
                    # All tables are wrong, all the time.
                    links = list(nodes._links.values())
                    nodes._table = [links[slot % 3] for slot in range(len(nodes._table))]
                    await asyncio.gather(*(nodes.run(COUNT, [key], [1]) for key in keys))
                return asked() - before

        def asked():
            return sum(
                int(stats.split("calls=")[1].split(",")[0])
                for node in cluster.nodes
                if (stats := node.info("commandstats").get("cmdstat_cluster|slots"))
            )

        # keys_of asks as well, before.
        assert 2 <= run_once(main()) <= 4

    def test_a_node_that_refuses_is_said_once(self, run_once, cluster, caplog):
        async def main():
            key = b"{refused}"
            owner = cluster.owner(slot_of(key))
            async with reached(cluster.url) as nodes:
                await answers(nodes, key)
                owner.ask("CONFIG", "SET", "maxmemory", "1mb")
                try:
                    for _ in range(10):
                        why, took = await fails(nodes, key)
                        assert why.partial
                        assert took < AT_ONCE
                finally:
                    owner.ask("CONFIG", "SET", "maxmemory", "512mb")
                await answers(nodes, key)

        run_once(main())
        assert caplog.text.count("refuses: OOM") == 1

    def test_a_slot_that_nobody_has_fails_alone(self, run_once, cluster):
        key = b"{nobody}"
        slot = slot_of(key)

        async def main():
            owner = cluster.owner(slot)
            for node in cluster.nodes:
                with contextlib.suppress(Exception):
                    node.ask("CLUSTER", "DELSLOTS", slot)
            try:
                async with reached(cluster.url) as nodes:
                    why, took = await fails(nodes, key)
                    assert why.partial
                    assert took < DEADLINE + SLACK
                    assert await nodes.run(COUNT, [b"{other}"], [1])
            finally:
                owner.ask("CLUSTER", "ADDSLOTS", slot)

        run_once(main())

    def test_a_failover_that_an_operator_asks_for_is_followed(self, run_once, cluster):
        async def main():
            async with reached(cluster.url) as nodes:
                key = b"{planned}"
                await nodes.run(COUNT, [key], [1])
                old = cluster.owner(slot_of(key))
                about = old.info("replication")
                port = int(about["slave0"].split("port=")[1].split(",")[0])
                async with Load(nodes, [key]).running() as load:
                    cluster.of_port(port).ask("CLUSTER", "FAILOVER")
                    await until(lambda: cluster.owner(slot_of(key)).port == port)
                    good = load.good[key]
                    await until(lambda: load.good[key] > good + 20)
                assert load.longest[key] < DEADLINE + SLACK
                await until(lambda: f"127.0.0.1:{port}" in nodes.names())
                await until(lambda: old.address not in nodes.names())

        run_once(main())

    @pytest.mark.parametrize("fault", ["stands still", "is killed"])
    def test_a_primary_that_goes_costs_its_slots_one_deadline_and_the_others_nothing(
        self, run_once, cluster, fault, caplog
    ):
        caplog.set_level(logging.WARNING)

        async def main():
            of = keys_of(cluster)
            lost, *_ = of
            victim = cluster.of_port(lost)
            own = of[lost]
            healthy = [key for port, keys in of.items() if port != lost for key in keys]
            async with reached(cluster.url) as nodes:
                async with Load(nodes, own + healthy).running() as load:
                    await until(lambda: all(load.good.values()))
                    if fault == "is killed":
                        victim.kill()
                    else:
                        victim.stand_still()
                    try:
                        await until(lambda: all(load.failed[key] for key in own))
                        good = {key: load.good[key] for key in own}
                        # Its replica takes over, and nobody tells us.
                        await until(
                            lambda: all(load.good[key] > good[key] for key in own), seconds=30
                        )
                    finally:
                        if fault == "is killed":
                            victim.start()
                        else:
                            victim.go_on()
                # Every one of the others went on, through all of it; but for what a machine that
                # does too much at once holds up.
                failed = sum(load.failed[key] for key in healthy)
                assert failed * 100 <= sum(load.good[key] for key in healthy)
                assert min(load.good[key] for key in healthy) > 50
                # Its own slots waited for one deadline at most.
                assert max(load.longest.values()) < DEADLINE + SLACK
                assert load.whole == 0
            await until(lambda: victim.info("replication")["role"] == "slave", seconds=30)
            await until(
                lambda: victim.info("replication")["master_link_status"] == "up", seconds=30
            )

        run_once(main())
        assert "is away" in caplog.text

    def test_a_cluster_of_which_nothing_answers_is_away_as_a_whole(self, run_once, cluster):
        async def main():
            async with reached(cluster.url) as nodes:
                keys = [key for keys in keys_of(cluster, 1).values() for key in keys]
                for node in cluster.nodes:
                    node.stand_still()
                try:
                    outcomes = await asyncio.gather(*(fails(nodes, key) for key in keys))
                    assert all(took < DEADLINE + SLACK for _, took in outcomes)
                    why, took = await fails(nodes, keys[0])
                    assert took < AT_ONCE
                    assert not why.partial
                    assert not nodes.available
                finally:
                    for node in cluster.nodes:
                        node.go_on()
                for key in keys:
                    await answers(nodes, key)

        run_once(main())


@pytest.fixture
def trio():
    with sentinel_trio() as trio:
        yield trio


class TestSentinel:
    @pytest.mark.parametrize("fault", ["stands still", "is killed"])
    def test_the_new_primary_is_found_when_the_old_one_goes(self, run_once, trio, fault):
        async def main():
            async with reached(trio.url) as nodes:
                await nodes.run(COUNT, [b"key"], [1])
                assert nodes.names() == (trio.primary.address,)
                trio.sentinels[0].kill()
                async with Load(nodes, [b"key"]).running() as load:
                    await until(lambda: load.good[b"key"] > 10)
                    if fault == "is killed":
                        trio.primary.kill()
                    else:
                        trio.primary.stand_still()
                    await until(lambda: load.failed[b"key"])
                    good = load.good[b"key"]
                    await until(lambda: load.good[b"key"] > good, seconds=40)
                    if fault != "is killed":
                        trio.primary.go_on()
                assert load.longest[b"key"] < DEADLINE + SLACK
                assert nodes.names() == (trio.replica.address,)
                assert int(trio.replica.ask("GET", "key")) > good

        run_once(main())

    def test_a_role_that_changes_is_noticed(self, run_once, trio):
        async def main():
            async with reached(trio.url) as nodes:
                await nodes.run(COUNT, [b"key"], [1])
                async with Load(nodes, [b"key"]).running() as load:
                    trio.sentinels[1].ask("SENTINEL", "FAILOVER", SERVICE)
                    await until(lambda: nodes.names() == (trio.replica.address,), seconds=30)
                    good = load.good[b"key"]
                    await until(lambda: load.good[b"key"] > good + 10)
                assert load.longest[b"key"] < DEADLINE + SLACK

        run_once(main())

    def test_sentinels_that_are_dead_or_know_nothing_are_passed_over(self, run_once, trio, caplog):
        async def main():
            for sentinel in trio.sentinels[:2]:
                sentinel.kill()
            async with reached(trio.url) as nodes:
                assert await nodes.run(COUNT, [b"key"], [1]) == 1
            async with started(trio.url.replace(SERVICE, "other")) as nodes:
                why, took = await fails(nodes)
                assert took < AT_ONCE
                assert "other" in str(why)

        run_once(main())
        assert "does not know the service" in caplog.text

    def test_sentinels_have_a_password_of_their_own(self, run_once, trio, caplog):
        async def main():
            trio.primary.ask("ACL", "SETUSER", "joe", "on", ">secret", "~*", "+@all")
            for sentinel in trio.sentinels:
                sentinel.ask("ACL", "SETUSER", "watcher", "on", ">s3cret", "+@all")
            url = trio.url.replace("//", "//joe:secret@") + "?sentinel_user=watcher"
            async with reached(f"{url}&sentinel_password=s3cret") as nodes:
                assert await nodes.run(COUNT, [b"key"], [1]) == 1
            assert not caplog.records
            async with started(f"{url}&sentinel_password=5ecret") as nodes:
                why, took = await fails(nodes)
                assert took < AT_ONCE
                assert "WRONGPASS" in str(why)

        run_once(main())
        assert "WRONGPASS" in caplog.text
        assert "ecret" not in caplog.text
