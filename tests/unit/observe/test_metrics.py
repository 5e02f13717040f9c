"""What the metrics say of a status document, and that their page and their alerts name them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from preforkmx.observe.counters import HELP, Counters
from preforkmx.observe.metrics import SERVER_STATES, StatusCollector, exposition

ROOT = Path(__file__).parents[3]
STARTED = "2024-05-01T12:00:00+00:00"


def worker(slot, state="ready", **values):
    return {
        "slot": slot,
        "pid": 100 + slot,
        "state": state,
        "generation": 1,
        "sessions": 0,
        "in_data": 0,
        "loop_lag_ms": 0,
        "hung": False,
        "messages": 0,
        "started": STARTED,
        **values,
    }


def listener(address, queued=0, dropped=0):
    return {
        "address": address,
        "protocol": "smtp",
        "tls": "off",
        "proxy_protocol": False,
        "queued": queued,
        "dropped": dropped,
    }


def document(**values):
    return {
        "state": "ready",
        "hostname": "mx.example.com",
        "version": "1.2.3",
        "pid": 1,
        "generation": 4,
        "started": STARTED,
        "listeners": [listener("0.0.0.0:25", 7, 2), listener("unix:/run/smtp", None, None)],
        "served": 1,
        "workers": [worker(0)],
        "totals": {**dict.fromkeys(HELP, 0), "worker_crashes": 0},
        "store": {"url": "embedded:", "state": "ready", "away": 0, "process": "ready"},
        "admin": {"address": "127.0.0.1:8025", "state": "ready"},
        **values,
    }


def samples(text):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in prometheus(text.decode())
        for sample in family.samples
    }


def of(**values):
    return samples(exposition(document(**values))[0])


def test_every_counter_has_a_sentence_and_a_metric():
    found = of(totals={**dict.fromkeys(HELP, 3), "worker_crashes": 5})
    assert set(HELP) == set(Counters().as_dict())
    for name, sentence in HELP.items():
        assert re.fullmatch(r"[A-Z].*\.", sentence), name
        assert found[f"preforkmx_{name}_total",] == 3
    assert found["preforkmx_worker_crashes_total",] == 5


def test_two_processes_of_a_slot_are_one_series():
    """While an old worker drains beside a new one."""
    found = of(
        workers=[
            worker(0, "draining", sessions=3, in_data=2, loop_lag_ms=1500),
            worker(0, sessions=4, in_data=1, started="2024-05-01T12:00:09+00:00"),
            worker(1, "gone", pid=None, started=None),
        ]
    )
    assert found["preforkmx_sessions", "0"] == 7
    assert found["preforkmx_in_data", "0"] == 3
    assert found["preforkmx_loop_lag_seconds", "0"] == 1.5
    assert found["preforkmx_worker_start_time_seconds", "0"] == 1714564809
    assert ("preforkmx_worker_start_time_seconds", "1") not in found
    assert {state: found["preforkmx_workers", state] for state in ("ready", "draining")} == {
        "ready": 1,
        "draining": 1,
    }
    assert found["preforkmx_workers", "gone"] == 1
    assert found["preforkmx_workers", "booting"] == 0


@pytest.mark.parametrize("served", [0, 2])
def test_how_many_slots_are_served_is_a_metric(served):
    assert of(served=served)["preforkmx_slots_served",] == served


def test_a_state_that_is_not_is_0_and_not_absent():
    found = of(
        state="draining",
        store={"url": "embedded:", "state": "away", "away": 2, "process": "gone"},
    )
    assert found["preforkmx_state", "draining"] == 1
    assert found["preforkmx_state", "ready"] == 0
    assert found["preforkmx_store_state", "gone"] == 1
    assert found["preforkmx_store_state", "ready"] == 0
    assert found["preforkmx_store_away",] == 2


def test_a_unix_socket_has_no_queue_to_show():
    found = of()
    assert found["preforkmx_queue_length", "0.0.0.0:25"] == 7
    assert found["preforkmx_queue_dropped_total", "0.0.0.0:25"] == 2
    assert not [key for key in found if "unix:/run/smtp" in key]


def test_who_asks_for_openmetrics_gets_the_same():
    text, media_type = exposition(document(), "application/openmetrics-text; version=1.0.0")
    assert media_type.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")
    names = {sample.name for family in openmetrics(text.decode()) for sample in family.samples}
    assert names == {name for name, *_ in of()}


@pytest.mark.parametrize("accept", ["", "text/plain", "*/*", "x" * 5000, ",;=,"])
def test_whatever_else_is_asked_for_is_answered_as_text(accept):
    text, media_type = exposition(document(), accept)
    assert media_type.startswith("text/plain")
    assert samples(text)


def test_the_page_is_current(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from reference.metrics import metrics

    assert (ROOT / "docs/reference/metrics.md").read_text("utf-8") == metrics(), "run: scripts/docs"


def test_the_alert_rules_are_yaml_and_name_metrics_that_there_are():
    rules = yaml.safe_load((ROOT / "deploy/prometheus/preforkmx.rules.yml").read_text("utf-8"))
    (group,) = rules["groups"]
    known = {
        sample.name for metric in StatusCollector(document()).collect() for sample in metric.samples
    }
    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"])
    for rule in group["rules"]:
        assert set(re.findall(r"preforkmx_\w+", rule["expr"])) <= known, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]


def test_drops_that_a_reload_or_a_drain_means_wake_nobody():
    """As long as they are within the minutes that the alert looks back on."""
    rules = yaml.safe_load((ROOT / "deploy/prometheus/preforkmx.rules.yml").read_text("utf-8"))
    (rule,) = (
        each for each in rules["groups"][0]["rules"] if each["alert"] == "PreforkmxQueueFull"
    )
    drops, meant = rule["expr"].split("unless on (instance, job)")
    states = re.search(r'preforkmx_state\{state=~"([a-z|]+)"\}', meant)[1].split("|")
    assert set(states) == {"draining", "reloading"}
    assert set(states) < set(SERVER_STATES)
    assert "max_over_time(" in meant
    assert re.findall(r"\[\w+\]", drops) == re.findall(r"\[\w+\]", meant)


def test_the_scrape_configuration_is_yaml_and_names_the_default_address():
    from preforkmx.config.schema import Admin

    (job,) = yaml.safe_load((ROOT / "deploy/prometheus/scrape.yml").read_text("utf-8"))
    assert job["static_configs"] == [{"targets": [Admin().address]}]
