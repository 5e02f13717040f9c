"""What was asked for, and who waits for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from preforkmx.master.agenda import Agenda
from preforkmx.master.plan import MOST_SLOTS

if TYPE_CHECKING:
    from preforkmx.master.control import ControlConnection


class Client:
    """A client of the control socket that notes its answers."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []

    def answer(self, answer: dict[str, Any]) -> None:
        self.answers.append(answer)


def clients(count: int) -> list[ControlConnection]:
    return cast("list[ControlConnection]", [Client() for _ in range(count)])


def test_all_who_ask_before_it_begins_share_one() -> None:
    agenda, (first, second, third) = Agenda(), clients(3)
    assert (agenda.take_reload(), agenda.take_upgrade()) == (None, None)
    agenda.want_reload([first])
    agenda.want_upgrade([third])
    agenda.want_reload()
    agenda.want_reload([second])
    assert agenda.take_reload() == [first, second]
    assert agenda.take_reload() is None
    assert agenda.take_upgrade() == [third]
    agenda.want_upgrade()
    assert agenda.take_upgrade() == [], "nobody waits for it, and it is wanted"


@pytest.mark.parametrize("more", [1, -1])
def test_slots_are_taken_one_by_one_and_are_bounded(more: int) -> None:
    agenda = Agenda()
    for _ in range(MOST_SLOTS + 5):
        agenda.want_slots(more)
    assert [agenda.take_slot() for _ in range(MOST_SLOTS + 1)] == [more] * MOST_SLOTS + [0]
    agenda.want_slots(more)
    agenda.want_slots(-more)
    assert agenda.take_slot() == 0


def test_a_reload_forgets_the_slots_that_were_asked_for_before_it() -> None:
    agenda = Agenda()
    agenda.want_slots(2)
    agenda.want_reload()
    agenda.want_slots(1)
    assert [agenda.take_slot(), agenda.take_slot()] == [1, 0]


def test_who_waits_when_it_closes_and_who_comes_later_is_refused() -> None:
    agenda, everybody = Agenda(), clients(4)
    agenda.want_reload([everybody[0]])
    agenda.want_upgrade([everybody[1]])
    agenda.want_slots(1)
    for _ in range(2):
        agenda.close("the server is stopping")
    agenda.want_reload([everybody[2]])
    agenda.want_upgrade([everybody[3]])
    agenda.want_slots(1)
    refusal = {"ok": False, "problems": ["the server is stopping"]}
    assert [cast("Any", client).answers for client in everybody] == [[refusal]] * 4
    assert (agenda.take_reload(), agenda.take_upgrade(), agenda.take_slot()) == (None, None, 0)
