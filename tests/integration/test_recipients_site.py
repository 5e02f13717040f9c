"""Recipients against a real Redis, real back ends, and a server that reloads."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess

import pytest

from preforkmx.errors import StoreUnavailable
from preforkmx.state.redis import nodes_for, parse
from preforkmx.state.redis.store import RedisStore
from tests.integration.mx import COMMAND, serving
from tests.integration.peers.smtp_sink import smtp_sink
from tests.integration.redis_servers import free_ports, redis_cluster, redis_server
from tests.integration.sites import Client
from tests.integration.waiting import until

pytestmark = pytest.mark.integration

SITE = """
hostname = "mx.example.com"
domains = ["example.com", "example.net"]
{state}
[[middleware]]
use = "recipients"
{options}
"""
KEY = "mail:recipients"
UNKNOWN = "550 5.1.1 No such recipient here"


@contextlib.contextmanager
def site(tmp_path, options, state=""):
    with serving(tmp_path, SITE.format(options=options, state=state)) as mx:
        yield mx


def rcpt(mx, *addresses):
    """Return the reply to RCPT for each address, each in a session of its own."""
    replies = []
    for address in addresses:
        with Client(mx.ports[0]) as client:
            client.reply()
            client.say("EHLO client.example")
            client.say("MAIL FROM:<a@example.org>")
            replies.append(client.say(f"RCPT TO:<{address}>"))
    return replies


def codes(replies):
    return [reply.split()[0] for reply in replies]


# --- the file -----------------------------------------------------------------------------------


def test_a_reload_reads_the_file_again_and_is_refused_when_it_is_wrong(tmp_path):
    file = tmp_path / "recipients"
    file.write_text("joe@example.com\ninfo@example.com: joe@example.com\n")
    with site(tmp_path, 'file = "recipients"\nextension = "drop"') as mx:
        assert codes(rcpt(mx, "joe@example.com", "ann@example.com")) == ["250", "550"]
        with Client(mx.ports[0]) as client:
            client.reply()
            client.say("EHLO client.example")
            client.say("MAIL FROM:<a@example.org>")
            client.say("RCPT TO:<Info+x@example.com>")
            client.say("DATA")
            assert client.say("Subject: hello\r\n\r\nhello\r\n.").startswith("250")
        (delivered,) = mx.delivered()
        assert delivered.relative_to(mx.mail).parts[:2] == ("example.com", "joe")

        file.write_text(
            "joe@example.com\nann\nann@example.com: eve@example.com\neve@example.com: ann@example.com\n"
        )
        checked = mx.run("check-config")
        assert checked.returncode == 2
        circle = "ann@example.com -> eve@example.com -> ann@example.com"
        wrong = [
            f"{file}:2: has 'ann', which is no address",
            f"{file}:4: eve@example.com goes in a circle: {circle}",
        ]
        assert all(problem in checked.stdout + checked.stderr for problem in wrong)
        reloaded = mx.run("reload")
        assert reloaded.returncode == 2
        assert all(problem in reloaded.stdout + reloaded.stderr for problem in wrong)
        assert codes(rcpt(mx, "joe@example.com", "ann@example.com")) == ["250", "550"]

        file.write_text("ann@example.com\n")
        assert mx.run("reload").returncode == 0
        assert codes(rcpt(mx, "joe@example.com", "ann@example.com")) == ["550", "250"]


def test_a_set_without_a_redis_is_refused(tmp_path):
    config = tmp_path / "preforkmx.toml"
    config.write_text(
        SITE.format(options=f'redis_set = "{KEY}"', state="")
        + '[[listener]]\naddress = "127.0.0.1:0"\n[delivery]\nuse = "discard"\n'
        + f'[admin]\naddress = ""\ncontrol = "{tmp_path}/control.sock"\n'
    )
    checked = subprocess.run(
        [*COMMAND, "check-config", "-c", config],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 2
    assert "has no Redis for its redis_set" in checked.stdout + checked.stderr


# --- Redis --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis():
    with redis_server() as server:
        yield server


def asked(url, question, *, seconds=20):
    """Ask a RedisStore that is connected."""

    async def scenario():
        store = RedisStore(nodes_for(parse(url), deadline=1.0))
        await store.start()
        try:
            async with asyncio.timeout(seconds):
                while not store.nodes.available:  # noqa: ASYNC110 - another process does it
                    await asyncio.sleep(0.01)
            return await question(store)
        finally:
            await store.close()

    return asyncio.run(scenario())


def test_members_of_a_set_are_told_in_one_answer(redis):
    redis.ask("DEL", KEY)
    redis.ask("SADD", KEY, "joe@example.com", "grå@example.com")

    async def question(store):
        return await asyncio.gather(
            store.contains(KEY, ["joe@example.com", "ann@example.com", "grå@example.com"]),
            store.contains(KEY, ["ann@example.com"]),
        )

    found = asked(f"redis://{redis.address}", question)
    assert found == [[True, False, True], [False]]


def test_a_set_that_is_not_there_or_is_none_says_nothing_of_its_members(redis):
    redis.ask("DEL", KEY)
    redis.ask("SET", "text", "x")

    async def question(store):
        for key in (KEY, "text"):
            with pytest.raises(StoreUnavailable):
                await store.contains(key, ["joe@example.com"])

    asked(f"redis://{redis.address}", question)


def test_in_a_cluster_the_node_that_has_the_set_is_asked():
    with redis_cluster() as cluster:

        async def question(store):
            found = []
            for number in range(6):
                key = f"{KEY}:{number}"
                await store.nodes.command("SADD", key, "joe@example.com", key=key.encode())
                found.append(await store.contains(key, ["joe@example.com", "jo@example.com"]))
            return found

        assert asked(cluster.url, question) == [[True, False]] * 6


def test_a_site_asks_its_redis_and_while_it_is_away_answers_451(tmp_path):
    with redis_server() as redis:
        redis.ask("SADD", KEY, "joe@example.com", "@example.net")
        state = f'[state]\nurl = "redis://{redis.address}"\n'
        options = f'redis_set = "{KEY}"\nunknown = "4/hour"'
        with site(tmp_path, options, state) as mx:
            found = rcpt(mx, "Joe+x@example.com", "any@example.net", "jo@example.com")
            assert codes(found) == ["250", "250", "550"]
            assert found[2] == UNKNOWN
            redis.kill()
            away = rcpt(mx, "joe@example.com", "jo@example.com", "postmaster@example.com")
            assert codes(away) == ["451"] * 3
            assert all(reply.startswith("451 4.4.3 ") for reply in away)
            redis.start()
            # It was emptied: there is no set, and nobody is unknown.
            until(
                lambda: redis.ask("CLIENT", "LIST", "TYPE", "normal").count("name=preforkmx") >= 2,
                "the workers' connections",
            )
            assert codes(rcpt(mx, "joe@example.com")) == ["451"]
            redis.ask("SADD", KEY, "joe@example.com")
            until(lambda: codes(rcpt(mx, "joe@example.com")) == ["250"], "the recipient")


def test_unknown_recipients_are_counted_over_all_workers(tmp_path):
    with redis_server() as redis:
        redis.ask("SADD", KEY, "joe@example.com")
        state = f'[state]\nurl = "redis://{redis.address}"\n'
        with site(tmp_path, f'redis_set = "{KEY}"\nunknown = "4/hour"', state) as mx:
            replies = rcpt(mx, *[f"n{number}@example.com" for number in range(30)])
            assert codes(replies).count("550") == 4
            assert codes(replies)[:4] == ["550"] * 4
            assert all(reply.startswith("450 4.7.1 Too many unknown") for reply in replies[4:])
            # Both workers have met the limit meanwhile, and look at no address any more.
            assert set(codes(rcpt(mx, *["joe@example.com"] * 8))) == {"450"}


# --- call-forward -------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["smtp", "lmtp"])
def test_a_real_back_end_is_asked_its_answer_remembered_and_451_while_it_is_away(
    tmp_path, protocol
):
    (port,) = free_ports(1)
    lmtp = ("-L",) if protocol == "lmtp" else ()
    options = f"""
call_forward = ["127.0.0.1:{port}"]
call_forward_protocol = "{protocol}"
call_forward_deadline = "3s"
unknown_for = "0s"
"""
    with site(tmp_path, options) as mx:
        assert rcpt(mx, "joe@example.com")[0].startswith("451 4.4.1 ")
        with smtp_sink(port, *lmtp, keep=False):
            until(lambda: set(codes(rcpt(mx, *["joe@example.com"] * 8))) == {"250"}, "the back end")
        # Both workers have asked, and remember.
        assert codes(rcpt(mx, *["JOE@example.com"] * 4)) == ["250"] * 4
        assert codes(rcpt(mx, "ann@example.com")) == ["451"]
        with smtp_sink(port, *lmtp, "-f", "rcpt", "-B", "550 5.1.1 User unknown", keep=False):
            until(lambda: rcpt(mx, "ann@example.com") == [UNKNOWN], "the back end")
