"""Crashes, reloads and drains under load: what was acknowledged is stored, once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections import Counter

import pytest

from tests.integration.mx import COMMAND, Generator, serving, stored_numbers

pytestmark = pytest.mark.integration


def under_load(mx, during, **options):
    """Run `during(generator)` while clients send; return what they saw."""

    async def main():
        generator = Generator(mx.ports[0], **options)
        running = asyncio.create_task(generator.run())
        await generator.acknowledged(50)
        await during(generator)
        generator.stopping.set()
        await asyncio.wait_for(running, 60)
        return generator.load

    return asyncio.run(main())


async def in_thread(function, *arguments):
    return await asyncio.to_thread(function, *arguments)


def assert_nothing_lost(mx, load):
    stored = Counter(stored_numbers(mx))
    missing = [number for number in load.acknowledged if number not in stored]
    assert missing == []
    doubled = [number for number in load.acknowledged if stored[number] > 1]
    assert doubled == []


def test_kill_9_of_each_worker_in_turn_loses_no_acknowledged_message(tmp_path):
    """The replacement serves the same sockets; the port never refuses; status has the new pids."""
    with serving(tmp_path, "", workers=3) as mx:
        before = mx.pids()

        async def during(generator):
            for pid in before:
                os.kill(pid, signal.SIGKILL)
                await generator.acknowledged(100)

        load = under_load(mx, during)
        after = mx.pids()
        assert set(before).isdisjoint(after)
        assert len(after) == 3
        assert load.refused == 0
        assert mx.stop() == 0
        assert_nothing_lost(mx, load)


def test_a_reload_under_load_fails_no_transaction(tmp_path):
    """HUP, slot by slot: nobody notices."""
    with serving(tmp_path, "") as mx:
        before = mx.pids()

        async def during(generator):
            for _ in range(3):
                answer = await in_thread(mx.run, "reload")
                assert answer.returncode == 0, answer.stderr
                await generator.acknowledged(50)

        load = under_load(mx, during)
        assert set(before).isdisjoint(mx.pids())
        assert (load.refused, load.resets, load.lost, load.busy) == (0, 0, 0, 0)
        assert_nothing_lost(mx, load)


def test_a_reload_with_a_broken_file_is_refused_and_the_workers_go_on(tmp_path):
    """All errors are told, and the old generation serves."""
    with serving(tmp_path, "") as mx:
        before = mx.pids()
        good = mx.config.read_text()
        mx.config.write_text(good + '\n[limits]\nrecipient = 5\nmessage_size = "many"\n')
        answer = mx.run("reload")
        assert answer.returncode == 2
        assert "limits.recipient" in answer.stderr + answer.stdout
        assert "limits.message_size" in answer.stderr + answer.stdout
        mx.config.write_text(good)
        assert mx.pids() == before

        async def during(generator):
            await generator.acknowledged(20)

        load = under_load(mx, during, sessions=2)
        assert load.busy == 0


def test_a_drain_under_load_resets_nobody_and_loses_nothing(tmp_path):
    """TERM while clients connect and send: 250s are kept, everybody else is told 421."""
    with serving(tmp_path, "") as mx:

        async def during(generator):
            mx.process.send_signal(signal.SIGTERM)
            status = await in_thread(mx.process.wait, 60)
            assert status == 0

        load = under_load(mx, during, sessions=20, messages=3)
        assert load.resets == 0
        assert load.lost == 0
        assert_nothing_lost(mx, load)


def test_a_second_instance_on_the_same_port_refuses_to_start(tmp_path):
    """It would join the reuseport group and take mail: exit 1, and the first one goes on."""
    with serving(tmp_path / "first", "") as mx:
        second = tmp_path / "second"
        second.mkdir()
        config = second / "preforkmx.toml"
        config.write_text(
            mx.config.read_text()
            .replace("127.0.0.1:0", f"127.0.0.1:{mx.ports[0]}")
            .replace(str(mx.directory), str(second))
        )
        answer = subprocess.run(
            [*COMMAND, "serve", "-c", str(config)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert answer.returncode == 1
        assert str(mx.ports[0]) in answer.stderr
        assert mx.status()["state"] == "ready"
