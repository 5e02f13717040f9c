"""The table of listeners that ``preforkmx status`` prints."""

from __future__ import annotations

import datetime as dt

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
        "store": {"url": "local:", "state": "ready"},
    }
    table = render(document, dt.datetime(2024, 5, 1, 12, 0, 1, tzinfo=dt.UTC)).split("\n\n")[1]
    assert table.splitlines() == [
        "LISTENER             TLS       QUEUED",
        "unix:/run/lmtp.sock  off            -",
        "0.0.0.0:25           starttls      12",
    ]
