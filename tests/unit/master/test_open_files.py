"""The limit of open files, which the workers inherit."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import pytest

from preforkmx.master.open_files import RESERVE, raise_open_files

if TYPE_CHECKING:
    from collections.abc import Iterator

MASTERS = 2 * (3 + 2 * 3)
"""Of two slots and three ports: a socket for each port, and two descriptors for each process."""


@pytest.fixture
def limits() -> Iterator[list[tuple[int, int]]]:
    """Limits of the test's own: (soft, hard), and what is set is noted."""
    noted: list[tuple[int, int]] = [(512, 4096)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resource, "getrlimit", lambda _: noted[-1])
        patch.setattr(resource, "setrlimit", lambda _, pair: noted.append(pair))
        yield noted


def test_the_soft_limit_grows_to_what_the_sessions_take(limits: list[tuple[int, int]]) -> None:
    assert raise_open_files(1000, 2, 3) is None
    assert limits[-1] == (1000 + MASTERS + RESERVE, 4096)


def test_what_fits_already_changes_nothing(limits: list[tuple[int, int]]) -> None:
    assert raise_open_files(100, 2, 3) is None
    assert len(limits) == 1


def test_no_limit_is_enough(limits: list[tuple[int, int]]) -> None:
    limits.append((resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert raise_open_files(10**6, 2, 3) is None
    assert len(limits) == 2


def test_what_the_hard_limit_does_not_allow_is_a_problem_with_its_numbers(
    limits: list[tuple[int, int]],
) -> None:
    def refuse(_: int, __: tuple[int, int]) -> None:
        raise PermissionError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resource, "setrlimit", refuse)
        problem = raise_open_files(10_000, 2, 3)
    assert problem is not None
    assert "workers.max_sessions = 10000" in problem
    assert "4096" in problem


def test_a_master_that_may_raises_the_hard_limit_too(limits: list[tuple[int, int]]) -> None:
    assert raise_open_files(10_000, 2, 3) is None
    assert limits[-1] == (10_000 + MASTERS + RESERVE, 10_000 + MASTERS + RESERVE)
