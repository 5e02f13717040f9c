"""``scripts/bench [ROW …]``."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.profiler import py_spy
from benchmarks.report import Figure, machine, table
from benchmarks.rows import ROWS, Plan, say
from benchmarks.server import Failed


def main() -> int:
    options = _options()
    if options.profile and py_spy() is None:
        print("--profile needs py-spy: .venv/bin/python -m pip install py-spy", file=sys.stderr)
        return 1
    # TERM ends the servers too: the context managers see an exception.
    signal.signal(signal.SIGTERM, _terminate)
    folder = Path(tempfile.mkdtemp(prefix="preforkmx-bench-", dir=options.folder))
    figures: list[Figure] = []
    failed = False
    try:
        plan = (
            Plan.quick(folder, profile=options.profile)
            if options.quick
            else Plan(folder, profile=options.profile)
        )
        for name in options.rows or ROWS:
            say(f"{name}: {(ROWS[name].__doc__ or '').strip()}")
            try:
                figures += ROWS[name](plan)
            except Failed as error:
                say(f"{name} failed: {error}")
                failed = True
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    about = machine()
    print("\n" + ", ".join(f"{name} {value}" for name, value in about.items()))
    if figures:
        print(table(figures))
    if options.json:
        report = {"machine": about, "figures": [figure.as_dict() for figure in figures]}
        options.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures preforkmx beside its peers on loopback; read the ratios.",
        epilog="Exit status 1: a server or its load failed. A missed budget is no failure.",
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all")
    parser.add_argument("--quick", action="store_true", help="about a tenth of the load")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there, too")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("/var/tmp"),
        help="where the servers write: the disk of the durable row (default %(default)s)",
    )
    parser.add_argument("--profile", action="store_true", help="py-spy on a worker in the sink row")
    options = parser.parse_args()
    unknown = [row for row in options.rows if row not in ROWS]
    if unknown:
        parser.error(f"there is no row {unknown[0]}: {', '.join(ROWS)}")
    return options


def _terminate(_signal: int, _frame: Any) -> None:
    raise SystemExit(143)


if __name__ == "__main__":
    sys.exit(main())
