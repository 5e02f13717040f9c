"""Every fuzz target runs its corpus and some thousand inputs made from it; scripts/fuzz TARGET
goes on for as long as one likes. ``TEST_FUZZ_INPUTS`` multiplies their number.
"""

from __future__ import annotations

import os

import pytest
import targets
from inputs import corpus, generated

TIMES = float(os.environ.get("TEST_FUZZ_INPUTS", "1"))


@pytest.mark.timeout(max(60, 60 * TIMES))
@pytest.mark.parametrize("name", targets.NAMES)
def test_no_input_breaks_the_target(name):
    target = targets.target(name)
    outcomes = {_run(target, octets, repr(octets)) for octets in corpus(name)}
    for number in range(int(target.COUNT * TIMES)):
        octets = generated(name, target.TOKENS, f"ci:{number}")
        outcomes.add(_run(target, octets, f"scripts/fuzz {name} --replay ci:{number}: {octets!r}"))
    # The inputs get everywhere.
    assert outcomes >= target.OUTCOMES


def test_a_name_gives_always_the_same_input():
    tokens = targets.target("core").TOKENS
    assert generated("core", tokens, "ci:7") == generated("core", tokens, "ci:7")
    assert len({generated("core", tokens, f"ci:{number}") for number in range(100)}) > 80


def _run(target, octets, what):
    try:
        return target.check(octets)
    except Exception as error:
        raise AssertionError(what) from error
