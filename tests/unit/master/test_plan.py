"""What a reload cannot bring."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from preforkmx.master.plan import Plan, StorePlan, restart_problems
from preforkmx.server import Server
from preforkmx.session.listener import Listener

PLAN = Plan(
    hostname="mx.example.com",
    listeners=(Listener("127.0.0.1:2525"),),
    count=2,
    loop="auto",
    build_server=lambda seat: Server(hostname="mx.example.com"),
    check=lambda: None,
    store=StorePlan(Path("store.sock"), Path("greylist.db")),
    drain_seconds=60.0,
    hang_seconds=30.0,
    max_sessions=100,
    log_format="logfmt",
    log_level="info",
)


@pytest.mark.parametrize(
    ("change", "about"),
    [
        ({"store": None}, "store process"),
        ({"store": StorePlan(Path("store.sock"), Path("other.db"))}, "store process"),
    ],
)
def test_what_the_master_holds_takes_a_restart(change: dict[str, Any], about: str) -> None:
    (problem,) = restart_problems(PLAN, replace(PLAN, **change))
    assert about in problem
    assert "takes a restart" in problem


def test_anything_else_may_change() -> None:
    other = replace(
        PLAN,
        listeners=(Listener("127.0.0.1:2526", tls="off"),),
        count=3,
        hostname="mx2.example.com",
        loop="asyncio",
        drain_seconds=1.0,
        hang_seconds=5.0,
        max_sessions=7,
        log_format="json",
        log_level="debug",
    )
    assert restart_problems(PLAN, other) == []
