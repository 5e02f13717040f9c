"""The master and its processes, as an operator and a client see them: all of it is real."""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import preforkmx
from tests.integration.mx import Generator
from tests.integration.processes import alive, dead, title
from tests.integration.sites import Client, Site, read_line, replaced, start
from tests.integration.waiting import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.integration

__all__ = ["start"]

QUEUED = 20


# The start.


def test_every_process_says_in_its_title_who_it_is(
    start: Callable[..., Site], tmp_path: Path
) -> None:
    site = start(store=str(tmp_path)).wait_ready()
    assert title(site.process.pid) == "preforkmx: master [mx.example.com]"
    assert title(site.store()) == "preforkmx: store"
    assert sorted(title(pid) for pid in site.workers().values()) == [
        "preforkmx: worker 0 ready (0 sessions)",
        "preforkmx: worker 1 ready (0 sessions)",
    ]
    with Client(site.port) as client:
        client.begin()
        shown = {"preforkmx: worker 0 ready (1 sessions)", "preforkmx: worker 1 ready (1 sessions)"}
        until(lambda: shown & {title(pid) for pid in site.workers().values()})


def test_the_status_document_says_what_runs(start: Callable[..., Site], tmp_path: Path) -> None:
    site = start(store=str(tmp_path), count=3).wait_ready()
    with Client(site.port) as client:
        assert client.deliver().startswith("250 2.0.0 ")
    with Client(site.port) as open_client:
        open_client.begin()
        status = until(lambda: (s := site.status())["totals"]["messages"] and s)
    assert status["state"] == "ready"
    assert status["hostname"] == "mx.example.com"
    assert status["version"] == preforkmx.__version__
    assert status["pid"] == site.process.pid
    assert status["generation"] == 1
    assert status["listeners"] == [
        {
            "address": f"127.0.0.1:{site.port}",
            "protocol": "smtp",
            "tls": "starttls",
            "proxy_protocol": False,
            "queued": 0,
            "dropped": 0,
        }
    ]
    assert [worker["slot"] for worker in status["workers"]] == [0, 1, 2]
    assert set(status["workers"][0]) == {
        "slot",
        "started",
        "pid",
        "state",
        "generation",
        "sessions",
        "in_data",
        "loop_lag_ms",
        "hung",
        "messages",
    }
    assert sum(worker["messages"] for worker in status["workers"]) == 1
    assert status["totals"]["connections"] >= 1
    assert status["store"] == {"url": "embedded:", "state": "ready", "away": 0, "process": "ready"}


def test_a_worker_holds_no_descriptor_of_another_process(
    start: Callable[..., Site], tmp_path: Path
) -> None:
    site = start(store=str(tmp_path), count=3).wait_ready()

    def sockets(pid: int) -> set[str]:
        targets = set()
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                targets.add(str(link.readlink()))
        assert not any(".lock" in target for target in targets)
        return {target for target in targets if target.startswith("socket:")}

    held = [sockets(pid) for pid in [*site.workers().values(), site.store()]]
    assert all(held)
    assert sum(map(len, held)) == len(set.union(*held)), "two children share a socket"


def test_a_second_server_on_the_same_port_refuses_to_start(
    start: Callable[..., Site], tmp_path: Path
) -> None:
    site = start().wait_ready()
    other = start(control=str(tmp_path / "other.sock"), listeners=[f"127.0.0.1:{site.port}"])
    assert other.wait() == 1
    assert f"127.0.0.1:{site.port} is taken" in other.log()
    with Client(site.port) as client:
        assert client.deliver().startswith("250 ")


def test_a_second_server_with_the_same_control_socket_refuses_to_start(
    start: Callable[..., Site],
) -> None:
    site = start().wait_ready()
    other = start()
    assert other.wait() == 1
    assert "another preforkmx runs" in other.log()
    assert f"process {site.process.pid}" in other.log()
    assert site.status()["state"] == "ready"


def test_a_worker_that_cannot_boot_ends_the_start_with_status_3(start: Callable[..., Site]) -> None:
    site = start(boot_failure_in_slot=1, boot_failure="mymx.checks has no object named spam")
    assert site.wait() == 3
    assert "mymx.checks has no object named spam" in site.log()
    assert not Path(site.settings["control"]).exists()


def test_a_configuration_that_the_checker_refuses_ends_the_start_with_status_2(
    start: Callable[..., Site],
) -> None:
    site = start(check_problems=["mx.toml:3: no such domain", "mx.toml:9: no such middleware"])
    assert site.wait() == 2
    assert "mx.toml:3: no such domain" in site.log()
    assert "mx.toml:9: no such middleware" in site.log()


def test_a_store_that_cannot_open_its_file_ends_the_start_with_status_3(
    start: Callable[..., Site], tmp_path: Path
) -> None:
    (tmp_path / "greylist.db").mkdir()
    site = start(store=str(tmp_path))
    assert site.wait() == 3
    assert "store could not start" in site.log()


def test_a_stop_during_the_start_ends_with_status_0(start: Callable[..., Site]) -> None:
    site = start(check_takes=60)
    until(lambda: "checker started" in site.log())
    site.signal(signal.SIGTERM)
    assert site.wait() == 0


# Crashes.


def queue_up(site: Site, stack: ExitStack) -> list[Client]:
    """Connect until so many wait for a worker that is stopped; return these and the others."""

    clients: list[Client] = []
    # After 3 s there is a stand-in, which would greet them.
    while site.status()["listeners"][0]["queued"] < QUEUED:
        assert len(clients) < 10 * QUEUED, site.log()
        clients.append(stack.enter_context(Client(site.port)))
        # One that another worker is about to greet shall not be counted.
        select.select([clients[-1].socket], [], [], 0.03)
    return clients


def test_connections_queued_for_a_killed_worker_are_greeted_by_its_replacement(
    start: Callable[..., Site],
) -> None:
    """Each worker in turn, with twenty of them."""
    site = start().wait_ready()
    for slot, pid in site.workers().items():
        os.kill(pid, signal.SIGSTOP)
        with ExitStack() as stack:
            clients = queue_up(site, stack)
            os.kill(pid, signal.SIGKILL)
            for client in clients:
                assert client.deliver().startswith("250 ")
        assert site.workers()[slot] != pid


def test_workers_killed_under_load_lose_nothing_that_was_acknowledged(
    start: Callable[..., Site], tmp_path: Path
) -> None:
    messages = tmp_path / "messages"
    messages.mkdir()
    site = start(messages=str(messages)).wait_ready()
    old = site.workers()
    generator = Generator(site.port, messages=1)

    async def scenario() -> None:
        async with generator.sending():
            for pid in old.values():
                await generator.acknowledged(50)
                os.kill(pid, signal.SIGKILL)
            await generator.acknowledged(50)

    asyncio.run(scenario())
    load = generator.load
    assert (load.refused, load.busy) == (0, 0)
    assert load.failures <= 20, "at most the sessions of the two processes"
    acknowledged = len(load.acknowledged)
    assert acknowledged <= len(list(messages.iterdir())) <= acknowledged + 20
    assert not set(site.workers().values()) & set(old.values())


def test_a_slot_that_crashes_again_waits_longer_and_longer(start: Callable[..., Site]) -> None:
    site = start(count=1).wait_ready()
    for _ in range(3):
        pid = until(lambda: site.workers().get(0))
        os.kill(pid, signal.SIGKILL)
        until(partial(replaced, site, pid))
    found = re.findall(r"killed by SIGKILL; replaced (at once|in [0-9.]+ s)", site.log())
    assert found == ["at once", "in 0.25 s", "in 0.5 s"]


def test_totals_do_not_go_back_when_a_worker_is_replaced(start: Callable[..., Site]) -> None:
    site = start(count=1).wait_ready()
    for _ in range(3):
        with Client(site.port) as client:
            client.deliver()
    until(lambda: site.status()["totals"]["messages"] == 3)
    pid = site.workers()[0]
    os.kill(pid, signal.SIGKILL)
    until(partial(replaced, site, pid))
    status = site.status()
    assert status["totals"]["messages"] == 3
    assert status["totals"]["worker_crashes"] == 1
    assert status["workers"][0]["messages"] == 0
    with Client(site.port) as client:
        client.deliver()
    until(lambda: site.status()["totals"]["messages"] == 4)


def test_a_loop_that_hangs_prints_its_stack_and_is_replaced(start: Callable[..., Site]) -> None:
    site = start(count=1, hang_seconds=1.0).wait_ready()
    pid = site.workers()[0]
    with Client(site.port) as client, Client(site.port) as waiting:
        assert client.reply().startswith("220 ")
        assert client.say("HELO client.example.net").startswith("250 ")
        client.socket.sendall(b"MAIL FROM:<hang@example.net>\r\n")
        until(partial(replaced, site, pid))
        assert "in misbehave" in site.log()
        assert "has been silent for 1 s" in site.log()
        assert "killed by SIGABRT" in site.log()
        waiting.socket.close()
    with Client(site.port) as client:
        assert client.deliver().startswith("250 ")


def test_a_stopped_process_is_killed_after_its_sigabrt(start: Callable[..., Site]) -> None:
    site = start(count=1, hang_seconds=1.0).wait_ready()
    pid = site.workers()[0]
    os.kill(pid, signal.SIGSTOP)
    # A stand-in has the slot before the stopped one is killed.
    until(partial(replaced, site, pid))
    until(lambda: "killed by SIGKILL" in site.log())


def test_a_worker_that_is_told_to_end_is_replaced_before_it_goes(
    start: Callable[..., Site],
) -> None:
    site = start(count=1).wait_ready()
    pid = site.workers()[0]
    with Client(site.port) as client:
        client.begin()
        os.kill(pid, signal.SIGTERM)
        new = until(lambda: (w := site.workers().get(0, pid)) != pid and w)
        assert site.workers("draining") == {0: pid}
        assert until(lambda: title(pid)) == "preforkmx: worker 0 draining (1 sessions)"
        with Client(site.port) as other:
            assert other.deliver().startswith("250 ")
        assert client.say("RSET").startswith("250 ")
        assert client.say("QUIT").startswith("221 ")
    until(partial(dead, pid))
    assert site.workers() == {0: new}
    assert site.status()["totals"]["worker_crashes"] == 0


def test_a_killed_store_process_is_replaced(start: Callable[..., Site], tmp_path: Path) -> None:
    site = start(store=str(tmp_path)).wait_ready()
    pid = site.store()
    os.kill(pid, signal.SIGKILL)
    until(lambda: site.log().count("store is ready") == 2)
    assert site.store() != pid
    assert site.status()["store"]["state"] == "ready"


# The end of the master.


def test_workers_of_a_killed_master_drain_and_the_port_refuses(
    start: Callable[..., Site], tmp_path: Path
) -> None:
    site = start(store=str(tmp_path)).wait_ready()
    workers = list(site.workers().values())
    store = site.store()
    with Client(site.port) as idle, Client(site.port) as busy:
        assert idle.reply().startswith("220 ")
        assert idle.say("EHLO client.example.net").startswith("250 ")
        busy.begin()
        site.signal(signal.SIGKILL)
        assert site.wait() == -signal.SIGKILL
        assert idle.reply().startswith("421 4.3.2 ")
        with pytest.raises(ConnectionRefusedError):
            until(lambda: Client(site.port).close())
        assert alive(store), "the store process outlives the workers"
        assert busy.say("DATA").startswith("354 ")
        assert busy.say("Subject: x\r\n\r\nx\r\n.").startswith("250 ")
        assert busy.reply().startswith("421 4.3.2 ")
    for pid in [*workers, store]:
        until(partial(dead, pid))


def test_a_master_starts_while_the_processes_of_a_killed_one_still_end(
    start: Callable[..., Site], tmp_path: Path
) -> None:
    first = start(store=str(tmp_path), drain_seconds=60.0).wait_ready()
    workers = list(first.workers().values())
    first.store()
    with Client(first.port) as busy:
        busy.begin()
        first.signal(signal.SIGKILL)
        first.wait()
        with pytest.raises(ConnectionRefusedError):
            until(lambda: Client(first.port).close())
        second = start(store=str(tmp_path)).wait_ready()
        assert second.status()["store"]["state"] != "ready"
        with Client(second.port) as client:
            assert client.deliver().startswith("250 ")
        assert busy.say("QUIT").startswith("221 ")
    for pid in workers:
        until(partial(dead, pid))
    until(lambda: second.status()["store"]["state"] == "ready")


# The drain.


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_drain_under_load_resets_nobody(
    start: Callable[..., Site], tmp_path: Path, loop: str
) -> None:
    messages = tmp_path / "messages"
    messages.mkdir()
    site = start(messages=str(messages), loop=loop).wait_ready()
    generator = Generator(site.port, sessions=20, messages=1)

    async def scenario() -> None:
        async with generator.sending():
            await generator.acknowledged(100)
            site.signal(signal.SIGTERM)
            await asyncio.to_thread(site.process.wait, PATIENCE)

    asyncio.run(scenario())
    assert site.wait() == 0
    load = generator.load
    assert (load.resets, load.lost) == (0, 0)
    assert load.refused > 0, "the port is closed after the drain"
    assert len(list(messages.iterdir())) == len(load.acknowledged)
    assert f"messages {len(load.acknowledged)}," in site.log()


def test_a_drain_lets_transactions_finish_and_tells_the_idle(start: Callable[..., Site]) -> None:
    site = start().wait_ready()
    with Client(site.port) as idle, Client(site.port) as busy, Client(site.port) as slow:
        assert idle.reply().startswith("220 ")
        assert idle.say("EHLO client.example.net").startswith("250 ")
        busy.begin()
        slow.begin("slow@example.net")
        assert slow.say("DATA").startswith("354 ")
        slow.socket.sendall(b"Subject: x\r\n\r\nx\r\n.\r\n")
        site.signal(signal.SIGTERM)
        assert idle.reply().startswith("421 4.3.2 ")
        assert idle.reply() == ""
        assert slow.reply().startswith("250 ")
        assert slow.reply().startswith("421 4.3.2 ")
        assert busy.say("DATA").startswith("354 ")
        assert busy.say("Subject: x\r\n\r\nx\r\n.").startswith("250 ")
        assert busy.reply().startswith("421 4.3.2 ")
    assert site.wait() == 0


def test_a_message_that_still_arrives_at_the_deadline_gets_no_250(
    start: Callable[..., Site], tmp_path: Path
) -> None:
    messages = tmp_path / "messages"
    messages.mkdir()
    site = start(messages=str(messages), drain_seconds=0.5).wait_ready()
    with Client(site.port) as client:
        client.begin()
        assert client.say("DATA").startswith("354 ")
        client.socket.sendall(b"Subject: x\r\n\r\nhalf of it")
        site.signal(signal.SIGTERM)
        assert client.reply().startswith("421 4.3.2 ")
        assert client.reply() == ""
    assert site.wait() == 0
    assert list(messages.iterdir()) == []


def test_the_queue_of_a_worker_that_crashes_in_the_drain_is_greeted(
    start: Callable[..., Site],
) -> None:
    site = start().wait_ready()
    pid = site.workers()[0]
    os.kill(pid, signal.SIGSTOP)
    with ExitStack() as stack:
        clients = queue_up(site, stack)
        site.signal(signal.SIGTERM)
        until(lambda: site.status()["state"] == "draining")
        os.kill(pid, signal.SIGKILL)
        for client in clients:
            assert client.reply().startswith("220 ")
    assert site.wait() == 0


def test_drain_is_answered_at_once_and_the_connection_ends_with_the_master(
    start: Callable[..., Site],
) -> None:
    site = start().wait_ready()
    with Client(site.port) as busy, site.control() as control:
        busy.begin()
        control.sendall(b'{"command": "drain"}\n')
        assert read_line(control) == {"ok": True, "pid": site.process.pid}
        until(lambda: site.status()["state"] == "draining")
        assert site.command("reload") == {"ok": False, "problems": ["the server is stopping"]}
        assert busy.say("QUIT").startswith("221 ")
        assert control.recv(1) == b""
        # The next master can take over at once.
        assert not Path(site.settings["control"]).exists()
    assert site.wait() == 0


@pytest.mark.parametrize("how", ["INT", "QUIT", "TERM twice", "stop-now"])
def test_a_fast_stop_waits_for_no_session(
    start: Callable[..., Site], tmp_path: Path, how: str
) -> None:
    site = start(store=str(tmp_path), drain_seconds=60.0).wait_ready()
    children = site.children()
    with Client(site.port) as busy:
        busy.begin()
        if how == "stop-now":
            assert site.command("stop-now") == {"ok": True, "pid": site.process.pid}
        elif how == "TERM twice":
            site.signal(signal.SIGTERM)
            until(lambda: site.status()["state"] == "draining")
            site.signal(signal.SIGTERM)
        else:
            site.signal(signal.Signals[f"SIG{how}"])
        with suppress(ConnectionResetError):
            assert busy.reply() == ""
    assert site.wait() == 0
    assert not any(alive(pid) for pid in children)


def test_a_whole_process_group_that_is_told_to_end_still_drains(
    start: Callable[..., Site], tmp_path: Path
) -> None:
    site = start(store=str(tmp_path)).wait_ready()
    with Client(site.port) as busy:
        busy.begin()
        os.killpg(site.process.pid, signal.SIGTERM)
        until(lambda: site.workers("draining"))
        assert busy.say("DATA").startswith("354 ")
        assert busy.say("Subject: x\r\n\r\nx\r\n.").startswith("250 ")
        assert busy.reply().startswith("421 4.3.2 ")
    assert site.wait() == 0


# Reloads.


def test_a_reload_under_load_fails_nobody(start: Callable[..., Site], tmp_path: Path) -> None:
    messages = tmp_path / "messages"
    messages.mkdir()
    site = start(messages=str(messages)).wait_ready()
    old = site.workers()
    generator = Generator(site.port, messages=1)

    async def scenario() -> None:
        async with generator.sending():
            for generation in (2, 3, 4):
                answer = await asyncio.to_thread(site.command, "reload")
                assert answer == {"ok": True, "generation": generation}
                await generator.acknowledged(50)

    asyncio.run(scenario())
    load = generator.load
    assert load.failures == 0, load
    assert len(list(messages.iterdir())) == len(load.acknowledged)
    new = site.workers()
    assert set(new) == set(old)
    assert not set(new.values()) & set(old.values())
    until(lambda: site.status()["totals"]["messages"] == len(load.acknowledged))
    assert {worker["generation"] for worker in site.status()["workers"]} == {4}


def test_hup_reloads_and_open_sessions_go_on_in_the_old_workers(start: Callable[..., Site]) -> None:
    site = start().wait_ready()
    old = site.workers()
    with Client(site.port) as client:
        assert client.reply().startswith("220 mx.example.com ")
        site.configure(hostname="mx2.example.com")
        site.signal(signal.SIGHUP)
        until(lambda: site.status()["generation"] == 2)
        assert title(site.process.pid) == "preforkmx: master [mx2.example.com]"
        assert client.say("NOOP").startswith("250 ")
        # Of the two that retire only the one with the session stays.
        until(lambda: len(site.workers("draining")) == 1)
        assert set(site.workers("draining").items()) < set(old.items())
        with Client(site.port) as other:
            assert other.reply().startswith("220 mx2.example.com ")
        assert client.say("QUIT").startswith("221 ")
    until(lambda: not site.workers("draining"))


def test_a_retired_worker_says_421_at_the_next_command_after_its_deadline(
    start: Callable[..., Site],
) -> None:
    site = start(drain_seconds=0.5).wait_ready()
    with Client(site.port) as client:
        assert client.reply().startswith("220 ")
        (pid,) = [w["pid"] for w in until(lambda: with_session(site))]
        assert site.command("reload")["ok"]
        select.select([client.socket], [], [], 1.0)
        assert alive(pid), "an idle session of a retired worker is left alone"
        assert client.say("EHLO client.example.net").startswith("421 ")
    until(partial(dead, pid))


def with_session(site: Site) -> list[dict[str, Any]]:
    """Return the workers that have a session."""
    return [worker for worker in site.status()["workers"] if worker["sessions"]]


def test_the_next_reload_ends_the_idle_sessions_of_those_who_still_drain(
    start: Callable[..., Site],
) -> None:
    site = start(count=1).wait_ready()
    with Client(site.port) as client:
        assert client.reply().startswith("220 ")
        assert site.command("reload")["ok"]
        assert site.workers("draining")
        assert site.command("reload")["ok"]
        assert client.reply().startswith("421 ")
    assert len(site.children()) <= 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"problems": ["mx.toml:1: bad", "mx.toml:2: worse"]}, "mx.toml:2: worse"),
        ({"check_problems": ["mymx.checks cannot be imported"]}, "mymx.checks cannot be imported"),
        (
            {"boot_failure_in_slot": 1, "boot_failure": "no such certificate"},
            "no such certificate",
        ),
        ({"listeners": ["192.0.2.1:2525"]}, "does not have that address"),
        ({"store": "/nowhere"}, "takes a restart"),
        ({"max_sessions": 10**9}, "workers.max_sessions = 1000000000 needs"),
    ],
)
def test_a_refused_reload_says_why_and_changes_nothing(
    start: Callable[..., Site], change: dict[str, Any], problem: str
) -> None:
    site = start().wait_ready()
    old = site.workers()
    with Client(site.port) as client:
        client.begin()
        site.configure(hostname="never.example.com", **change)
        answer = site.command("reload")
        assert answer["ok"] is False
        assert any(problem in text for text in answer["problems"])
        assert problem in site.log()
        assert client.say("NOOP").startswith("250 ")
    status = site.status()
    assert (status["state"], status["generation"]) == ("ready", 1)
    assert status["hostname"] == "mx.example.com"
    until(lambda: site.workers() == old and not site.workers("draining"))
    with Client(site.port) as client:
        assert client.deliver().startswith("250 ")
    site.configure(**dict.fromkeys(change) | FIRST_SETTINGS, hostname="mx.example.com")
    assert site.command("reload")["ok"] is True


FIRST_SETTINGS = {"listeners": ["127.0.0.1:0"], "count": 2, "max_sessions": 500}


def test_reloads_are_done_one_after_the_other(start: Callable[..., Site]) -> None:
    site = start(check_takes=0.2).wait_ready()
    with ExitStack() as stack:
        controls = [stack.enter_context(site.control()) for _ in range(3)]
        controls[0].sendall(b'{"command": "reload"}\n')
        until(lambda: site.status()["state"] == "reloading")
        for control in controls[1:]:
            control.sendall(b'{"command": "reload"}\n')
        # Those who came while the first one was under way share the next one.
        assert [read_line(control)["generation"] for control in controls] == [2, 3, 3]


def test_a_drain_breaks_off_a_reload(start: Callable[..., Site]) -> None:
    site = start().wait_ready()
    site.configure(check_takes=60)
    with site.control() as control:
        control.sendall(b'{"command": "reload"}\n')
        until(lambda: site.status()["state"] == "reloading")
        site.signal(signal.SIGTERM)
        answer = read_line(control)
        assert answer["ok"] is False
        assert "stopping" in answer["problems"][0]
    assert site.wait() == 0


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_both_loops_serve_and_drain(start: Callable[..., Site], loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    site = start(loop=loop).wait_ready()
    with Client(site.port) as client:
        assert client.deliver().startswith("250 ")
    site.signal(signal.SIGTERM)
    assert site.wait() == 0
