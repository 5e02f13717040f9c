"""The test suites of RFC 7208 and RFC 4408, which come with pyspf's source distribution."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from pathlib import Path

import pytest
import yaml
from zone import Zone

from preforkmx.middleware.spf_check import check_host

FOLDER = Path(__file__).parents[3] / ".venv" / "peers" / "pyspf-2.0.14" / "test"


def cases(suite):
    path = FOLDER / f"{suite}-tests.yml"
    if not path.exists():
        # A failure of its own, and not an empty list of cases.
        yield pytest.param(None, None, id=f"{suite}-is-missing")
        return
    with path.open("rb") as file:
        for scenario in yaml.load_all(file, yaml.CSafeLoader):
            records = {name: list(_records(of)) for name, of in scenario["zonedata"].items()}
            for name, case in scenario["tests"].items():
                yield pytest.param(records, case, id=f"{suite}-{name}")


def _records(entries):
    """Give each record; a record of type SPF stands for a TXT record too where there is none."""
    alone = not any("TXT" in entry for entry in entries if isinstance(entry, dict))
    for entry in entries:
        if isinstance(entry, str):
            yield entry
            continue
        for kind, data in entry.items():
            if data == "NONE":
                continue
            if kind != "SPF":
                yield kind, tuple(data) if isinstance(data, list) else data
            elif alone:
                yield "TXT", tuple(data) if isinstance(data, list) else data


@pytest.mark.parametrize("cached", [False, True], ids=["asked", "cached"])
@pytest.mark.parametrize(("records", "case"), [*cases("rfc7208"), *cases("rfc4408")])
def test_each_case_of_the_suites_has_its_result(records, case, cached):
    assert case is not None, f"{FOLDER} is missing: scripts/test puts it there"
    zone = Zone(records, cached=cached)
    host = ip_address(case["host"])
    found = asyncio.run(check_host(zone, host, case["helo"], case["mailfrom"]))
    expected = case["result"]
    assert found.result in ([expected] if isinstance(expected, str) else expected), found.reason
    if "explanation" in case:
        assert (found.explanation or "DEFAULT") == case["explanation"]


def test_both_suites_are_whole():
    assert len([*cases("rfc7208")]) == 203
    assert len([*cases("rfc4408")]) == 191
