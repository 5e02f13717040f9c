"""What TTIN and TTOU do in which order, with processes that do what the test says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from test_reload_steps import Plant

from preforkmx.master.procedure import Procedure
from preforkmx.master.resizing import GRACE_SECONDS, one_less, one_more

if TYPE_CHECKING:
    from collections.abc import Iterator

    from preforkmx.master.procedure import Steps


@pytest.fixture
def plant() -> Iterator[Plant]:
    plant = Plant()
    yield plant
    plant.sockets.close()


def begun(plant: Plant, steps: Steps) -> Procedure:
    procedure = Procedure(steps, lambda: plant.now)
    procedure.advance()
    return procedure


def more(plant: Plant) -> Procedure:
    return begun(plant, one_more(plant.pool, plant.sockets, lambda: plant.now))


def less(plant: Plant) -> Procedure:
    return begun(plant, one_less(plant.pool, plant.sockets, lambda: plant.now))


def pass_seconds(plant: Plant, procedure: Procedure, seconds: float) -> None:
    for _ in range(round(seconds / 0.25)):
        plant.now += 0.25
        plant.step(procedure)


def test_a_slot_more_counts_when_its_worker_is_ready(plant: Plant) -> None:
    procedure = more(plant)
    plant.step(procedure)
    assert plant.pool.away == {2}
    assert plant.pool.plan.count == 2
    plant.agency.hired[-1].state = "ready"
    plant.step(procedure)
    assert procedure.done
    assert plant.holders()[2] is plant.agency.hired[-1]
    assert (plant.pool.plan.count, plant.sockets.count) == (3, 3)
    assert [process.slots for process in plant.old] == [3, 3], "their share of the limits"
    plant.pool.reconcile()
    assert plant.pool.away == frozenset()


def test_a_slot_that_is_steered_past_stays_so_while_another_one_is_added(plant: Plant) -> None:
    plant.old[0].hung = True
    plant.pool.reconcile()
    more(plant)
    assert plant.shares() == [0, 24, 0]


def test_where_nobody_serves_nobody_is_led_to_a_slot_that_comes_either(plant: Plant) -> None:
    for process in plant.old:
        process.hung = True
    plant.pool.reconcile()
    more(plant)
    shares = plant.shares()
    assert (shares[2], sum(shares)) == (0, 24)


def test_a_slot_whose_worker_cannot_boot_goes_again(plant: Plant) -> None:
    procedure = more(plant)
    plant.agency.hired[-1].problems = ["no database"]
    plant.agency.hired[-1].state = "gone"
    plant.step(procedure)
    assert procedure.done
    assert (len(plant.pool.slots), plant.pool.plan.count, plant.sockets.count) == (2, 2, 2)


def test_a_slot_for_which_nobody_can_be_forked_goes_again(plant: Plant) -> None:
    plant.agency.trouble = OSError("Resource temporarily unavailable")
    assert more(plant).done
    assert (len(plant.pool.slots), plant.sockets.count) == (2, 2)


def test_an_error_of_ours_takes_the_slot_away_again_and_is_not_the_end(
    plant: Plant, caplog: pytest.LogCaptureFixture
) -> None:
    plant.agency.trouble = cast("Any", RuntimeError("a bug"))
    assert more(plant).done
    assert (len(plant.pool.slots), plant.sockets.count) == (2, 2)
    assert "no worker is added: RuntimeError: a bug (" in caplog.text


def test_there_are_1024_slots_at_most(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preforkmx.master.resizing.MOST_SLOTS", 2)
    assert more(plant).done
    assert len(plant.pool.slots) == 2


def test_the_highest_slot_is_led_past_before_its_queue_is_waited_for(plant: Plant) -> None:
    less(plant)
    assert plant.shares() == [24, 0]


def test_an_empty_slot_that_goes_is_filled_once_more_while_its_queue_is_emptied(
    plant: Plant,
) -> None:
    plant.let_back_off(1)
    less(plant)
    assert plant.holders()[1] is not None


def test_the_highest_slot_goes_when_its_queue_was_empty_for_a_second(plant: Plant) -> None:
    procedure = less(plant)
    plant.step(procedure)
    assert plant.pool.away == {1}
    pass_seconds(plant, procedure, 0.75)
    assert not procedure.done
    assert plant.old[1].orders == []
    pass_seconds(plant, procedure, 0.5)
    assert procedure.done
    assert plant.old[1].orders == ["retire"]
    assert (plant.pool.plan.count, plant.sockets.count) == (1, 1)
    assert [process.slots for process in plant.old] == [1, 1]
    assert list(plant.pool.workers()) == plant.old, "it still drains"
    plant.old[1].state = "gone"
    plant.pool.reconcile()
    assert plant.pool.former == []


def test_the_last_slot_stays(plant: Plant) -> None:
    pass_seconds(plant, less(plant), 1.5)
    assert less(plant).done
    assert len(plant.pool.slots) == 1


def test_a_slot_that_comes_back_waits_for_who_still_drains_there(plant: Plant) -> None:
    pass_seconds(plant, less(plant), 1.5)
    hired = len(plant.agency.hired)
    procedure = more(plant)
    plant.step(procedure)
    assert plant.old[1].orders == ["retire"]
    pass_seconds(plant, procedure, GRACE_SECONDS)
    assert plant.old[1].orders == ["retire", "drain"]
    assert len(plant.agency.hired) == hired
    plant.old[1].state = "gone"
    plant.step(procedure)
    assert len(plant.agency.hired) == hired + 1
