"""Which errand comes after which, what is told of it, and to whom."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from test_agenda import Client
from test_reload_steps import NEW, Plant

from preforkmx._version import __version__
from preforkmx.errors import ConfigError
from preforkmx.master import errands as errands_module
from preforkmx.master.admin_port import AdminPort
from preforkmx.master.errands import Errands
from preforkmx.master.signals import SignalInbox

if TYPE_CHECKING:
    from collections.abc import Iterator

    from preforkmx.master.control import ControlConnection
    from preforkmx.master.hiring import Hiring
    from preforkmx.master.holdings import Holdings
    from preforkmx.master.notify import ServiceManager
    from preforkmx.master.plan import Plan
    from preforkmx.master.procedure import Steps


class Manager:
    """A service manager that notes what it is told."""

    def __init__(self) -> None:
        self.environment: dict[str, str] = {}
        self.told: list[str] = []

    def ready(self) -> None:
        self.told.append("ready")

    def reloading(self) -> None:
        self.told.append("reloading")

    def alive(self) -> None:
        self.told.append("alive")


class Office:
    """A pool of two ready workers, and the errands of its master."""

    def __init__(self, plant: Plant) -> None:
        self.plant = plant
        self.manager = Manager()
        self.waiting: list[ControlConnection] = []
        self.problems: list[str] = []
        self.reloads = 0
        self.holdings = SimpleNamespace(
            listeners=plant.sockets,
            admin=AdminPort(),
            control=SimpleNamespace(waiting=lambda: self.waiting),
            children=None,
            foreign=[],
        )
        self.errands = Errands(
            plant.pool,
            cast("Hiring", plant.agency),
            cast("Holdings", self.holdings),
            cast("ServiceManager", self.manager),
            load=self.load,
            clock=lambda: plant.now,
            started="2024-05-01T12:00:00+00:00",
            reloaded=self.reloaded,
        )

    def load(self) -> Plan:
        if self.problems:
            raise ConfigError(self.problems)
        return NEW

    def reloaded(self) -> None:
        self.reloads += 1

    def turn(self, count: int = 1) -> None:
        """Do what the master does in so many turns, with workers that boot and end at once."""
        for _ in range(count):
            for process in self.plant.agency.hired:
                process.state = {"booting": "ready", "draining": "gone"}.get(
                    process.state, process.state
                )
            self.plant.pool.reconcile()
            self.errands.advance()

    def ask(self, what: str) -> Client:
        """Ask for a reload or an upgrade."""
        client = Client()
        connections = [cast("ControlConnection", client)]
        if what == "reload":
            self.errands.agenda.want_reload(connections)
        else:
            self.errands.agenda.want_upgrade(connections)
        return client


@pytest.fixture
def office() -> Iterator[Office]:
    plant = Plant()
    yield Office(plant)
    plant.sockets.close()


class Tried:
    """An upgrade whose try says what the test wants."""

    def __init__(self, *_: object, **__: object) -> None:
        self.problems: list[str] = []
        self.program = None

    def steps(self) -> Steps:
        return
        yield


@pytest.fixture
def execution(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give why the execution fails."""
    reasons: list[str] = ["Exec format error"]

    def execute(*_: object) -> None:
        raise OSError(8, reasons[0])

    monkeypatch.setattr(errands_module, "Upgrade", Tried)
    monkeypatch.setattr(errands_module, "execute", execute)
    monkeypatch.setattr(Errands, "_handover", lambda *_: None)
    return reasons


def test_a_reload_is_told_to_the_manager_and_answered_when_it_is_done(office: Office) -> None:
    client = office.ask("reload")
    assert not office.errands.reloading
    office.turn()
    assert office.errands.reloading
    late = office.ask("reload")
    office.turn(3)
    assert client.answers == [{"ok": True, "generation": 2}]
    office.turn(8)
    assert late.answers == [{"ok": True, "generation": 3}], "it may have read its files before"
    assert not office.errands.reloading
    assert office.manager.told == ["reloading", "ready"] * 2
    assert office.reloads == 2


def test_slots_wait_for_what_is_under_way(office: Office) -> None:
    office.ask("reload")
    office.turn()
    office.errands.agenda.want_slots(1)
    assert len(office.plant.pool.slots) == 2
    office.turn(8)
    assert len(office.plant.pool.slots) == 3
    assert office.errands.deadline is None


def test_what_is_under_way_and_what_waits_is_answered_when_the_server_stops(
    office: Office,
) -> None:
    under_way = office.ask("reload")
    office.turn()
    others = [office.ask("reload"), office.ask("upgrade")]
    office.errands.close()
    (answer,) = under_way.answers
    assert answer["ok"] is False
    assert "the server is stopping" in answer["problems"][0]
    refusal = {"ok": False, "problems": ["the server is stopping"]}
    assert [client.answers for client in [*others, office.ask("reload")]] == [[refusal]] * 3
    office.errands.close()
    assert not office.errands.reloading
    assert office.manager.told == ["reloading"], "the manager hears STOPPING instead"


def test_signals_that_came_while_an_execution_failed_are_taken_after_its_answer(
    office: Office, execution: list[str]
) -> None:
    office.holdings.inbox = inbox = SignalInbox([signal.SIGHUP, signal.SIGUSR2])
    try:
        client = office.ask("upgrade")
        for number in (signal.SIGHUP, signal.SIGUSR2):
            signal.raise_signal(number)
        office.errands.advance()
        assert client.answers == [{"ok": False, "problems": execution}]
        assert not office.errands.reloading
        assert inbox.take() == [signal.SIGHUP, signal.SIGUSR2]
    finally:
        inbox.close()
    assert office.manager.told == ["reloading", "alive", "ready"]


def test_a_reload_that_waits_for_an_upgrade_comes_when_that_has_failed(
    office: Office, execution: list[str]
) -> None:
    office.holdings.inbox = SimpleNamespace(take=list)
    reload, upgrade = office.ask("reload"), office.ask("upgrade")
    office.turn()
    assert (upgrade.answers, reload.answers) == ([{"ok": False, "problems": execution}], [])
    office.turn(3)
    assert reload.answers == [{"ok": True, "generation": 2}]


def test_the_first_reload_that_is_done_after_an_upgrade_replaces_the_admin_process(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: list[int] = []
    monkeypatch.setattr(office.plant.pool, "change_admin", lambda: changes.append(1))
    client = Client()
    office.waiting = [cast("ControlConnection", client)]
    office.problems = ["mx.toml:1: bad"]
    office.errands.go_on(cast("Any", SimpleNamespace(reloads=4)))
    office.turn()
    (answer,) = client.answers
    assert answer["problems"][0].startswith("the master is the new program")
    assert answer["problems"][1:] == office.problems
    assert changes == []
    office.problems = []
    for generation in (6, 7):
        client = office.ask("reload")
        office.turn(8)
        assert client.answers == [{"ok": True, "generation": generation}]
        assert changes == [1]


def test_an_upgrade_is_answered_with_the_version_that_serves(office: Office) -> None:
    client = Client()
    office.waiting = [cast("ControlConnection", client)]
    office.errands.go_on(cast("Any", SimpleNamespace(reloads=1)))
    office.turn(3)
    assert client.answers == [{"ok": True, "generation": 2, "version": __version__}]
