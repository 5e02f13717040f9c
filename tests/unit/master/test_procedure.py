"""Procedures: steps with waits between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from preforkmx.master.procedure import Procedure, Steps, Wait

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_goes_on_when_what_it_waits_for_is_there() -> None:
    clock, facts, seen = Clock(), set(), []

    def steps() -> Steps:
        seen.append((yield Wait(lambda: "first" in facts, seconds=5)))
        seen.append((yield Wait(lambda: "second" in facts, seconds=5)))

    procedure = Procedure(steps(), clock)
    procedure.advance()
    assert seen == []
    facts.add("second")
    procedure.advance()
    assert seen == []
    facts.add("first")
    procedure.advance()
    assert seen == [True, True]
    assert procedure.done


def test_a_wait_that_takes_too_long_is_told_so() -> None:
    clock, seen = Clock(), []

    def steps() -> Steps:
        seen.append((yield Wait(lambda: False, seconds=5)))

    procedure = Procedure(steps(), clock)
    procedure.advance()
    assert procedure.deadline == 105.0
    clock.now = 104.9
    procedure.advance()
    assert not procedure.done
    clock.now = 105.0
    procedure.advance()
    assert seen == [False]
    assert procedure.deadline is None


def test_what_is_there_counts_although_the_time_is_over_too() -> None:
    clock, seen = Clock(), []

    def steps() -> Steps:
        seen.append((yield Wait(lambda: True, seconds=5)))

    procedure = Procedure(steps(), clock)
    clock.now = 200.0
    procedure.advance()
    assert seen == [True]


def test_each_wait_has_its_own_deadline() -> None:
    clock = Clock()

    def steps() -> Steps:
        yield Wait(seconds=5)
        yield Wait(seconds=7)

    procedure = Procedure(steps(), clock)
    procedure.advance()
    clock.now = 106.0
    procedure.advance()
    assert procedure.deadline == 113.0


def test_a_cancelled_procedure_runs_its_finally_blocks() -> None:
    seen = []

    def steps() -> Steps:
        try:
            yield Wait(lambda: False)
        finally:
            seen.append("undone")

    procedure = Procedure(steps(), Clock())
    procedure.advance()
    procedure.cancel()
    assert seen == ["undone"]
    assert procedure.done
    procedure.advance()


def test_an_error_in_a_step_reaches_the_caller() -> None:
    def steps() -> Steps:
        yield Wait(seconds=0)
        raise OSError("no process")

    with pytest.raises(OSError, match="no process"):
        Procedure(steps(), Clock()).advance()


def test_a_step_may_be_a_procedure_of_its_own() -> None:
    seen = []

    def inner(name: str, condition: Callable[[], bool]) -> Steps:
        seen.append((name, (yield Wait(condition, seconds=1))))

    def steps() -> Steps:
        yield from inner("a", lambda: True)
        yield from inner("b", lambda: True)

    Procedure(steps(), Clock()).advance()
    assert seen == [("a", True), ("b", True)]
