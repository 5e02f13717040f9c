"""The table of listeners that ``preforkmx status`` prints."""

from __future__ import annotations

import datetime as dt

import pytest

from preforkmx.cli.status import render


def test_a_queue_that_is_not_known_is_a_dash_among_numbers():
    document = {
        "state": "ready",
        "hostname": "mx.example.com",
        "version": "1",
        "pid": 4711,
        "generation": 1,
        "started": "2024-05-01T12:00:00+00:00",
        "listeners": [
            {"address": "unix:/run/lmtp.sock", "tls": "off", "queued": None},
            {"address": "0.0.0.0:25", "tls": "starttls", "queued": 12},
        ],
        "workers": [],
        "totals": {"messages": 1},
        "store": {"url": "local:", "state": "ready", "away": 0, "process": None},
    }
    table = render(document, dt.datetime(2024, 5, 1, 12, 0, 1, tzinfo=dt.UTC)).split("\n\n")[1]
    assert table.splitlines() == [
        "LISTENER             TLS       QUEUED",
        "unix:/run/lmtp.sock  off            -",
        "0.0.0.0:25           starttls      12",
    ]


@pytest.mark.parametrize(
    ("admin", "shown"),
    [
        ({"admin": {"address": "127.0.0.1:8025", "state": "ready"}}, True),
        ({"admin": {"address": "", "state": "gone"}}, False),
        ({}, False),
    ],
)
def test_the_admin_process_is_shown_where_there_is_one(admin, shown):
    """A server that is older than this command says nothing of one."""
    document = {
        "state": "ready",
        "hostname": "mx.example.com",
        "version": "1",
        "pid": 4711,
        "generation": 1,
        "started": "2024-05-01T12:00:00+00:00",
        "listeners": [],
        "workers": [],
        "totals": {},
        "store": {"url": "local:", "state": "ready", "away": 0, "process": None},
        **admin,
    }
    lines = render(document, dt.datetime(2024, 5, 1, 12, 0, 1, tzinfo=dt.UTC)).splitlines()
    assert ("admin process http://127.0.0.1:8025 is ready" in lines) is shown
    assert any("admin" in line for line in lines) is shown
