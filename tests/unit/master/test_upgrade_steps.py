"""The try of an upgrade, with a child that does what the test says."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from preforkmx.master.procedure import Procedure
from preforkmx.master.upgrade import Upgrade

if TYPE_CHECKING:
    from collections.abc import Callable

    from preforkmx.master.children import Children


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class Nursery:
    """Forks one child, which runs until the test ends it."""

    def __init__(self) -> None:
        self.child = SimpleNamespace(
            alive=True, problems=[], status=None, ready_at=None, end="", kill=lambda: None
        )

    def start(self, name: str, run: Any, **_: Any) -> Any:
        return self.child


@pytest.mark.parametrize("ends", ["by itself", "broken off"])
def test_a_worker_that_is_forked_meanwhile_can_close_what_the_try_writes_to(ends: str) -> None:
    nursery = Nursery()
    foreign: list[Callable[[], None]] = []
    before = open_descriptors()
    upgrade = Upgrade(
        cast("Children", nursery), cast("Any", lambda: None), generation=1, foreign=foreign
    )
    procedure = Procedure(upgrade.steps(), lambda: 0.0)
    procedure.advance()
    assert len(foreign) == 1
    pid = os.fork()
    if pid == 0:
        for close in foreign:
            close()
        os._exit(open_descriptors() - before)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    if ends == "by itself":
        nursery.child.alive, nursery.child.status, nursery.child.ready_at = False, 0, 1.0
        procedure.advance()
        assert upgrade.problems == []
    else:
        procedure.cancel()
    assert foreign == []
    assert open_descriptors() == before
