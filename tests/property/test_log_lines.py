"""Every line that the log renders reads back to its fields, whatever they hold."""

from __future__ import annotations

import json
import re

from hypothesis import given
from hypothesis import strategies as st

from preforkmx.observe.log import AccessLog

names = st.from_regex(r"\A[a-z][a-z0-9_]{0,12}\Z").filter(
    lambda name: name not in {"time", "level", "event", "worker"}
)
texts = st.text(max_size=60) | st.text(alphabet='ab =",\\\n\r\x1b\x00', max_size=20)
values = (
    texts
    | st.integers(min_value=-(10**30), max_value=10**30)
    | st.floats(allow_nan=False, allow_infinity=False, width=32)
    | st.booleans()
    | st.none()
)
fields = st.dictionaries(names, values, max_size=8)

FIELD = re.compile(r' ?([a-z][a-z0-9_]*)=("(?:[^"\\]|\\.)*"|[^ "=\\]*)')


def parse_logfmt(line: str) -> dict[str, str]:
    parsed, at = {}, 0
    while at < len(line):
        match = FIELD.match(line, at)
        assert match, line[at:]
        key, value = match.groups()
        assert key not in parsed
        parsed[key] = json.loads(value) if value.startswith('"') else value
        at = match.end()
    return parsed


def as_logfmt(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(round(value, 6)) if isinstance(value, float) else str(value)


def lines_of(style: str, first: dict, second: dict) -> str:
    lines: list[str] = []
    log = AccessLog(lines.append, style, worker="7", clock=lambda: 0.0)
    second = {name: value for name, value in second.items() if name not in first}
    log.emit("event-name", log.render(**first), log.render(**second))
    (line,) = lines
    assert line.isprintable()
    return line


def expected(first: dict, second: dict) -> dict:
    return {name: value for name, value in {**second, **first}.items() if value is not None}


@given(fields, fields)
def test_a_logfmt_line_reads_back_to_its_fields(first, second):
    parsed = parse_logfmt(lines_of("logfmt", first, second))
    assert parsed.pop("time") == "1970-01-01T00:00:00.000Z"
    assert parsed.pop("level") == "info"
    assert parsed.pop("event") == "event-name"
    assert parsed.pop("worker") == "7"
    wanted = expected(first, {n: v for n, v in second.items() if n not in first})
    assert parsed == {name: as_logfmt(value) for name, value in wanted.items()}


@given(fields, fields)
def test_a_json_line_reads_back_to_its_fields(first, second):
    parsed = json.loads(
        lines_of("json", first, second), object_pairs_hook=lambda pairs: (len(pairs), dict(pairs))
    )
    count, record = parsed
    assert count == len(record)
    for name in ("time", "level", "event", "worker"):
        del record[name]
    wanted = expected(first, {n: v for n, v in second.items() if n not in first})
    assert record == {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in wanted.items()
    }


@given(fields, fields)
def test_a_console_line_is_one_line_of_printable_characters(first, second):
    line = lines_of("console", first, second)
    wanted = expected(first, {n: v for n, v in second.items() if n not in first})
    _, _, rest = line.partition(" worker=7")
    assert parse_logfmt(rest) == {name: as_logfmt(value) for name, value in wanted.items()}
