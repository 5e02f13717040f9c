"""What scripts/bench measures with, and how it judges."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[3] / "scripts"


@pytest.fixture(autouse=True)
def _scripts_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)


BURN = "import time\nwhile time.process_time() < {}: pass\n"


@pytest.fixture
def parent():
    """A process that burns 0.2 s itself and 0.3 s in a child that ends, then waits."""
    program = (
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-c', {BURN.format(0.3)!r}], check=True)\n"
        f"{BURN.format(0.2)}"
        "print('done', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        yield process
        process.stdin.close()


def test_the_cpu_of_a_tree_counts_children_that_ended(parent):
    from benchmarks.meter import ProcessTree

    tree = ProcessTree(parent.pid)
    before = tree.cpu()
    assert parent.stdout.readline() == b"done\n"
    assert 0.35 < tree.cpu().since(before) < 5


def test_the_memory_and_the_processes_of_a_tree_are_those_of_its_root_and_below(parent):
    from benchmarks.meter import ProcessTree

    parent.stdout.readline()
    assert ProcessTree(parent.pid).pids() == [parent.pid]
    assert parent.pid in ProcessTree(os.getpid()).pids()
    assert 1_000_000 < ProcessTree(parent.pid).memory() < 200_000_000


def test_a_budget_is_a_ratio_of_the_middle_values():
    from benchmarks.report import Figure, table

    peer = Figure("sink", "peer", "µs", [10.0, 11.0, 90.0])
    ours = Figure("sink", "ours", "µs", [21.0, 22.0, 5.0], [1000.0])
    ours.at_most(2, peer, of="peer")
    assert (ours.ratio, ours.met) == (21 / 11, True)
    ours.at_most(1.5, peer, of="peer")
    assert not ours.met
    shown = table([peer, ours])
    assert "≤ 1.5 × peer MISSED" in shown
    assert "1,000 msg/s" in shown
    ours.at_least(1.5, peer, of="peer")
    assert ours.met
    ours.at_most(20)
    assert (ours.ratio, ours.met, ours.budget) == (None, False, "≤ 20")


def test_a_profile_is_summed_by_function(tmp_path):
    from benchmarks.profiler import summary

    raw = tmp_path / "raw"
    raw.write_text("main (a.py:1);run (b.py:7) 30\nmain (a.py:2) 10\nbroken\n")
    assert summary(raw).splitlines() == [
        "40 samples",
        "  own   with what it calls",
        " 75.0 %  75.0 %  run (b.py",
        " 25.0 % 100.0 %  main (a.py",
    ]


def test_every_row_has_a_sentence_for_the_one_who_waits():
    from benchmarks.rows import ROWS

    assert list(ROWS) == [
        "sink",
        "large",
        "idle",
        "scale",
        "durable",
        "policy",
        "blocked",
        "dns",
        "spf",
    ]
    assert all((row.__doc__ or "").strip().endswith(".") for row in ROWS.values())
