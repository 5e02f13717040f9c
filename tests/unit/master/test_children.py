"""What the master sees of its children: real processes, its clock in the test's hands."""

from __future__ import annotations

import logging
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from preforkmx.master import children as children_module
from preforkmx.master.child import MOST_PROBLEMS, Child
from preforkmx.master.children import (
    LOOK_SECONDS,
    MASTER_PAUSE_SECONDS,
    SILENT_SECONDS,
    Children,
)
from preforkmx.master.reactor import Reactor
from preforkmx.master.totals import Totals
from preforkmx.workers.channel import Channel
from preforkmx.workers.heartbeat import HeartbeatMemory, Vitals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class House:
    """Children that are `sleep`, and whose end of the channel the test holds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.reactor = Reactor()
        self.memory = HeartbeatMemory(2)
        self.totals = Totals()
        self.children = Children(self.reactor, self.memory, self.totals, lambda: self.now)
        self.program = ["sleep", "60"]
        self.theirs: Channel
        monkeypatch.setattr(children_module, "fork", self.fork)
        make = Channel.pair

        def pair() -> tuple[Channel, Channel]:
            ours, theirs = make()
            # What the child would have: a copy of its end.
            self.theirs = Channel(theirs._socket.dup())
            return ours, theirs

        monkeypatch.setattr(Channel, "pair", pair)

    def fork(self, run: Callable[[], int]) -> int:
        """Start a program in the place of the function."""
        return os.posix_spawnp(self.program[0], self.program, os.environ)

    def start(self, name: str = "worker 0", **options: float) -> Child:
        """Start a child."""
        return self.children.start(
            name, lambda *_: 0, generation=1, boot_seconds=options.get("boot_seconds", 60.0)
        )

    def look(self, hang_seconds: float = 30.0) -> None:
        """Do what the master does after each turn."""
        self.reactor.turn(0)
        self.children.look(hang_seconds)

    def later(self, seconds: float, hang_seconds: float = 30.0) -> None:
        """Let time pass, with a look each second."""
        for _ in range(int(seconds)):
            self.now += 1.0
            self.look(hang_seconds)

    def wait_gone(self, child: Child) -> None:
        """Wait until the child is reaped."""
        deadline = time.monotonic() + 10
        while child.alive:
            self.reactor.turn(0.1)
            assert time.monotonic() < deadline


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    house = House(monkeypatch)
    yield house
    for child in house.children:
        child.kill()
        house.wait_gone(child)
    house.theirs.close()
    house.reactor.close()
    house.memory.close()


def test_a_child_is_booting_until_it_says_that_it_is_ready(house: House) -> None:
    child = house.start()
    house.look()
    before = child.state
    house.theirs.post("ready")
    house.look()
    assert [before, child.state] == ["booting", "ready"]
    assert child.ready_at == house.now


def test_a_child_that_says_it_twice_is_named_once(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    house.start()
    for _ in range(3):
        house.theirs.post("ready")
        house.look()
    assert caplog.text.count("is ready") == 1


def test_a_child_that_names_problems_for_ever_is_listened_to_for_a_while(house: House) -> None:
    child = house.start()
    for number in range(50):
        house.theirs.post("failed", problems=[f"{number}: {each}" for each in range(7)])
        house.look()
    assert len(child.problems) == MOST_PROBLEMS == 100
    assert child.problems[-1] == "14: 1"


def test_a_child_that_the_master_may_not_signal_is_said_once_and_no_harm(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    child = house.start()
    with monkeypatch.context() as patch:
        patch.setattr(signal, "pidfd_send_signal", refuse)
        child.kill()
        child.abort(house.now)
        child.drain(1.0)
    assert caplog.text.count("takes no signal from the master") == 1
    assert child.alive


def test_how_a_child_ended_is_known(house: House) -> None:
    house.program = ["sh", "-c", "exit 3"]
    failed = house.start()
    house.theirs.close()
    house.wait_gone(failed)
    assert (failed.status, failed.end) == (3, "exit status 3")
    house.program = ["sleep", "60"]
    killed = house.start()
    killed.kill()
    house.wait_gone(killed)
    assert (killed.status, killed.end) == (-9, "killed by SIGKILL")
    assert len(house.children) == 0


def test_its_last_words_are_heard_before_it_is_reaped(house: House) -> None:
    child = house.start()
    house.theirs.post_counters({"messages": 7})
    house.theirs.post_failure(["no such certificate"])
    house.theirs.close()
    os.kill(child.pid, signal.SIGKILL)
    house.wait_gone(child)
    assert house.totals.as_dict()["messages"] == 7
    assert child.problems == ["no such certificate"]
    assert child.problems == ["no such certificate"]


def test_a_channel_that_somebody_else_keeps_open_does_not_hold_up_the_reaping(house: House) -> None:
    child = house.start()
    child.kill()
    house.wait_gone(child)
    assert not house.theirs.ended


def test_a_child_that_is_not_ready_in_time_is_aborted_and_says_why(house: House) -> None:
    child = house.start(boot_seconds=5.0)
    house.later(4)
    house.reactor.turn(0.05)
    assert child.alive
    house.later(1)
    house.wait_gone(child)
    assert child.end == "killed by SIGABRT"
    assert child.problems == ["worker 0 was not ready within 5 s"]


def test_a_loop_that_stays_silent_is_aborted_and_two_seconds_later_killed(house: House) -> None:
    child = house.start()
    # So stopped it cannot even die of SIGABRT.
    os.kill(child.pid, signal.SIGSTOP)
    house.theirs.post("ready")
    assert child.cell is not None
    child.cell.write(Vitals(), 0)
    house.look()
    house.later(30)
    assert not child.aborted
    house.later(1)
    assert child.aborted
    assert child.kill_at == house.now + 2.0
    house.later(2)
    house.wait_gone(child)
    assert child.end == "killed by SIGKILL"


def test_a_loop_that_beats_lives_on(house: House) -> None:
    child = house.start()
    house.theirs.post("ready")
    assert child.cell is not None
    for _ in range(10):
        child.cell.write(Vitals(3, 1, 9), 4)
        house.later(20)
    assert not child.aborted
    reading = child.reading()
    assert reading is not None
    assert reading[1:] == (3, 1, 4, 9, 0)


def test_a_loop_that_is_silent_for_three_seconds_is_hung_until_it_turns_again(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    child = house.start()
    house.theirs.post("ready")
    assert child.cell is not None
    child.cell.write(Vitals(), 0)
    house.look()
    assert house.children.next_look() <= house.now + LOOK_SECONDS
    while house.now < 1002.9:
        house.now += 0.1
        house.look()
    assert not child.hung
    assert house.children.next_look() == pytest.approx(1003.0), "a look in time for it"
    house.now = 1003.0
    house.look()
    assert child.hung
    assert "the loop of worker 0" in caplog.text
    house.later(5)
    assert caplog.text.count("has been silent") == 1
    assert house.children.next_look() == house.now + LOOK_SECONDS, "nothing to be early for"
    child.cell.write(Vitals(), 0)
    house.look()
    assert not child.hung
    assert "turns again" in caplog.text


def test_a_loop_that_is_silent_while_it_boots_is_not_hung(house: House) -> None:
    child = house.start()
    assert child.cell is not None
    child.cell.write(Vitals(), 0)
    house.look()
    house.later(10)
    assert not child.hung
    assert house.children.next_look() == house.now + LOOK_SECONDS


def test_nobody_is_hung_because_the_master_was_stopped_for_a_while(house: House) -> None:
    child = house.start()
    house.theirs.post("ready")
    assert child.cell is not None
    child.cell.write(Vitals(), 0)
    house.look()
    house.now += MASTER_PAUSE_SECONDS + 0.5
    house.look()
    house.later(2)
    assert not child.hung
    house.later(1)
    assert child.hung
    house.now += 3600
    house.look()
    assert not child.hung, "it is measured anew"
    assert MASTER_PAUSE_SECONDS < SILENT_SECONDS


def test_a_process_without_a_first_beat_is_not_silent_but_booting(house: House) -> None:
    child = house.start()
    house.later(50)
    assert not child.aborted


def test_a_master_that_was_stopped_itself_measures_anew(house: House) -> None:
    child = house.start()
    house.theirs.post("ready")
    assert child.cell is not None
    child.cell.write(Vitals(), 0)
    house.look()
    house.now += 3600
    house.look()
    assert not child.aborted
    house.later(29)
    assert not child.aborted
    house.later(2)
    assert child.aborted
    assert MASTER_PAUSE_SECONDS < 30


def test_cells_are_used_again_and_begin_empty(house: House) -> None:
    for _ in range(5):
        child = house.start()
        assert child.reading() == (0, 0, 0, 0, 0, 0)
        assert child.cell is not None
        child.cell.write(Vitals(1, 1, 1), 1)
        child.kill()
        house.wait_gone(child)
        house.theirs.close()


def test_more_processes_than_cells_are_refused(house: House) -> None:
    house.start()
    house.theirs.close()
    house.start()
    with pytest.raises(OSError, match="as many processes"):
        house.start()


def test_what_is_no_message_is_dropped(house: House, caplog: pytest.LogCaptureFixture) -> None:
    child = house.start()
    for rubbish in (b"x", b"[]", b'{"type": 1}', b"[" * 10_000, b"\xff" * 70_000):
        house.theirs._socket.send(rubbish)
    house.theirs.post("ready")
    house.look()
    assert child.state == "ready"
    assert "5 messages that are none" in caplog.text


def test_the_earliest_of_several_kill_times_counts(house: House) -> None:
    child = house.start()
    child.kill_by(1005.0)
    child.kill_by(1100.0)
    assert child.kill_at == 1005.0
    child.kill_by(1001.0)
    assert child.kill_at == 1001.0
    assert house.children.next_look() <= 1001.0


def test_orders_to_a_child_that_is_gone_change_nothing(house: House) -> None:
    child = house.start()
    child.kill()
    house.wait_gone(child)
    for order in (child.stop, child.kill, lambda: child.retire(1.0), lambda: child.drain(1.0)):
        order()
    assert child.state == "gone"
