"""scripts/chaos makes every test longer that can be."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_sets_every_number_that_the_integration_tests_read():
    read = {
        name
        for path in (ROOT / "tests/integration").rglob("*.py")
        for name in re.findall(r'environ\.get\("(TEST_\w+)"', path.read_text("utf-8"))
    }
    script = (ROOT / "scripts/chaos").read_text("utf-8")
    assert read
    assert read == set(re.findall(r"(TEST_\w+)=\$\{\1:-", script))
