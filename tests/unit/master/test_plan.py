"""What a reload cannot bring."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
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
        ({"listeners": (Listener("127.0.0.1:2526"),)}, "listeners"),
        ({"listeners": (Listener("127.0.0.1:2525", backlog=1),)}, "listeners"),
        ({"listeners": (Listener("127.0.0.1:2525", protocol="lmtp"),)}, "listeners"),
        ({"listeners": (Listener("127.0.0.1:2525", tls="off"),)}, "listeners"),
        ({"listeners": (Listener("unix:/run/smtp.sock"),)}, "listeners"),
        ({"count": 3}, "workers.count"),
        ({"store": None}, "state.url"),
        ({"store": StorePlan(Path("store.sock"), Path("other.db"))}, "state.url"),
    ],
)
def test_what_the_master_holds_takes_a_restart(change: dict[str, Any], about: str) -> None:
    (problem,) = restart_problems(PLAN, replace(PLAN, **change))
    assert about in problem
    assert "takes a restart" in problem


def test_whom_a_listener_trusts_may_change() -> None:
    def trusting(*networks: str) -> Plan:
        trusted = tuple(ip_network(network) for network in networks)
        listener = Listener(
            "127.0.0.1:2525", proxy_protocol=True, proxy_from=trusted, xclient_from=trusted
        )
        return replace(PLAN, listeners=(listener,))

    assert restart_problems(trusting("10.0.0.0/8"), trusting("192.0.2.1", "2001:db8::/32")) == []


def test_every_problem_is_named_at_once() -> None:
    assert len(restart_problems(PLAN, replace(PLAN, listeners=(), count=1, store=None))) == 3


def test_anything_else_may_change() -> None:
    other = replace(
        PLAN,
        hostname="mx2.example.com",
        loop="asyncio",
        drain_seconds=1.0,
        hang_seconds=5.0,
        max_sessions=7,
        log_format="json",
        log_level="debug",
    )
    assert restart_problems(PLAN, other) == []
