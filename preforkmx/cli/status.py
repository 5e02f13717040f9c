"""``preforkmx status``: what the server is doing."""

from __future__ import annotations

import datetime as dt
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from preforkmx.cli.common import (
    Exit,
    control_options,
    control_path,
    reaches_a_server,
    table,
)
from preforkmx.cli.control import Control

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@click.command()
@control_options
@click.option("--json", "as_json", is_flag=True, help="Print the whole document as JSON.")
@reaches_a_server
def status(path: Path | None, control: Path | None, *, as_json: bool) -> None:
    """Show listeners, workers, totals and the store.

    Exit status: 0 ready, 4 draining, 5 not running.
    """
    with Control(control_path(path, control)) as server:
        document = server.ask("status")
    if as_json:
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        click.echo(render(document, dt.datetime.now(dt.UTC)), nl=False)
    sys.exit(Exit.DRAINING if document.get("state") == "draining" else Exit.OK)


def render(document: dict[str, Any], now: dt.datetime) -> str:
    """Return the status document for people."""
    return "\n".join(_lines(document, now)) + "\n"


def _lines(document: dict[str, Any], now: dt.datetime) -> Iterator[str]:
    up = now - dt.datetime.fromisoformat(document["started"])
    yield (
        f"{document['hostname']} is {document['state']}: generation {document['generation']}, "
        f"up {_span(up.total_seconds())}, process {document['pid']}, "
        f"preforkmx {document['version']}"
    )
    yield ""
    yield from table(
        ("LISTENER", "TLS", "QUEUED"),
        [
            (each["address"], each["tls"], "-" if each["queued"] is None else each["queued"])
            for each in document["listeners"]
        ],
    )
    yield ""
    yield from table(
        ("SLOT", "PROCESS", "STATE", "GENERATION", "SESSIONS", "IN DATA", "LAG", "MESSAGES"),
        [
            (
                each["slot"],
                "-" if each["pid"] is None else each["pid"],
                "hangs" if each.get("hung") else each["state"],
                each["generation"],
                each["sessions"],
                each["in_data"],
                f"{each['loop_lag_ms']} ms",
                each["messages"],
            )
            for each in document["workers"]
        ],
    )
    yield ""
    store = document["store"]
    away = f": {store['away']} workers ask nearer by" if store.get("away") else ""
    yield f"store {store['url']} is {store['state']}{away}"
    # A server of the version before this one has none.
    admin = document.get("admin", {})
    if admin.get("address"):
        yield f"admin process http://{admin['address']} is {admin['state']}"
    yield ""
    counted = [(name.replace("_", " "), count) for name, count in document["totals"].items()]
    yield from table(("SINCE THE START", "COUNT"), counted)


def _span(seconds: float) -> str:
    """Return a length of time in its two largest units: ``3 d 4 h``, ``12 min 5 s``."""
    left = max(0, int(seconds))
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or parts or unit == "s":
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])
