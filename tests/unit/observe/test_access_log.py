from __future__ import annotations

import json
import logging
import warnings

import pytest

from preforkmx.observe.format import MAX_VALUE
from preforkmx.observe.log import MAX_LINE, AccessLog, LogWriter, configure_logging

NOON = 1_700_000_000.25


def access_log(style: str = "logfmt", **options) -> tuple[AccessLog, list[str]]:
    lines: list[str] = []
    return AccessLog(lines.append, style, clock=lambda: NOON, **options), lines


def test_a_logfmt_line_has_time_level_event_and_worker_before_its_fields():
    log, lines = access_log(worker="2")
    log.emit("session", log.render(session="a1", messages=3, seconds=1.5, tls=False))
    (line,) = lines
    head, _, fields = line.partition(" session=")
    assert head == "time=2023-11-14T22:13:20.250Z level=info event=session worker=2"
    assert fields == "a1 messages=3 seconds=1.5 tls=false"


def test_a_json_line_is_one_object_with_typed_values():
    log, lines = access_log("json", worker="2")
    log.emit("session", log.render(session="a1", messages=3, seconds=1.5, tls=True))
    assert json.loads(lines[0]) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "event": "session",
        "worker": 2,
        "session": "a1",
        "messages": 3,
        "seconds": 1.5,
        "tls": True,
    }


def test_a_console_line_names_the_event_without_a_key():
    log, lines = access_log("console", worker="2")
    log.emit("session", log.render(session="a1"), level="warning")
    assert lines[0].endswith(".250 warning session worker=2 session=a1")


def test_only_a_console_that_may_have_colours_has_them():
    assert "\x1b" not in access_log_line("console", colour=False)
    assert "\x1b[32minfo" in access_log_line("console", colour=True)
    assert "\x1b" not in access_log_line("logfmt", colour=True)
    assert "\x1b" not in access_log_line("json", colour=True)


def access_log_line(style: str, *, colour: bool) -> str:
    log, lines = access_log(style, colour=colour)
    log.emit("session")
    return lines[0]


def test_a_field_without_a_value_is_left_out():
    log, _ = access_log()
    assert log.render(tls=None, username=None) == ""
    assert log.render(tls=None, username="") == ' username=""'


def test_a_fragment_can_be_used_in_many_lines():
    log, lines = access_log("json")
    who = log.render(session="a1")
    log.emit("transaction", who, log.render(size=1))
    log.emit("session", who)
    assert [json.loads(line)["session"] for line in lines] == ["a1", "a1"]


@pytest.mark.parametrize("style", ["logfmt", "json", "console"])
@pytest.mark.parametrize(
    "hostile",
    [
        "x\nlevel=info event=session",
        "x\r\ny",
        'x" level=error y="',
        "x\\",
        "\x1b[31mred",
        "\x00",
        "\x7f",
        "\x85",
        "\u2028",
        "\u202egnp.exe",
        "\ud800",
        "\x9b31m",
    ],
)
def test_no_client_octet_can_forge_a_line_or_a_field(style, hostile):
    log, lines = access_log(style)
    log.emit("session", log.render(helo=hostile, session="a1"))
    (line,) = lines
    assert line.isprintable()
    assert line.splitlines() == [line]
    assert line.endswith(('session=a1"', "session=a1", '"session":"a1"}'))
    if style == "json":
        assert json.loads(line)["helo"] == hostile
    else:
        value = line.split(" helo=", 1)[1].removesuffix(" session=a1")
        assert json.loads(value) == hostile


def test_an_equals_sign_or_a_space_puts_a_logfmt_value_in_quotes():
    log, _ = access_log()
    assert log.render(reply="250 2.0.0 Ok") == ' reply="250 2.0.0 Ok"'
    assert log.render(sender="SRS0=ab=cd@example.org") == ' sender="SRS0=ab=cd@example.org"'
    assert log.render(sender="jörg@example.org") == " sender=jörg@example.org"


@pytest.mark.parametrize("style", ["logfmt", "json", "console"])
def test_a_long_value_is_cut_and_says_so(style):
    log, _ = access_log(style)
    for text in ("x" * 100_000, "x y" * 100_000, '"' * 100_000):
        fragment = log.render(helo=text)
        assert len(fragment) < 2 * MAX_VALUE + 20
        assert fragment.rstrip('"').endswith(("…", "\\u2026"))


@pytest.mark.parametrize("style", ["logfmt", "json"])
def test_a_line_that_would_be_too_long_leaves_fragments_out_and_counts_them(style):
    log, lines = access_log(style)
    first, last = log.render(session="a1"), log.render(verdict="accepted")
    many = [log.render(**{f"recipient{i}": "r" * 1000}) for i in range(100)]
    log.emit("transaction", first, *many, last)
    (line,) = lines
    assert len(line) <= MAX_LINE + 200
    omitted = 100 - line.count("r" * 1000)
    assert omitted > 0
    assert f"omitted={omitted}" in line or f'"omitted":{omitted}' in line
    assert "accepted" in line
    if style == "json":
        json.loads(line)


def test_numbers_that_are_none_are_null():
    log, _ = access_log("json")
    assert log.render(a=float("nan"), b=float("inf")) == ',"a":null,"b":null'


@pytest.mark.parametrize("name", ["time", "level", "two words", "x=y", "Upper", "", 'x"'])
def test_a_name_that_would_break_the_line_is_refused(name):
    for style in ("logfmt", "json", "console"):
        log, _ = access_log(style)
        with pytest.raises(ValueError, match="log field"):
            log.render(**{name: "x"})


def test_names_made_from_data_are_stopped_before_they_fill_the_memory():
    log, _ = access_log()
    with pytest.raises(ValueError, match="closed set"):
        for number in range(5000):
            log.render(**{f"n{number}": 1})


def test_lines_below_the_level_are_left_out():
    log, lines = access_log(level="warning")
    log.emit("session")
    log.emit("refused", level="warning")
    assert len(lines) == 1


def test_a_format_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="'xml' is no log format: logfmt, json, console"):
        AccessLog(print, "xml")


class Recorder(LogWriter):
    """A writer that keeps its lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def root_logger():
    """The root logger, put back as it was afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("root_logger")
def test_records_of_the_logging_module_have_the_same_format():
    writer = Recorder()
    configure_logging(writer, format="logfmt", level="info", process="worker 2")
    logger = logging.getLogger("preforkmx.delivery")
    logger.warning("cannot %s", "write\nthis", extra={"session": "a1"})
    logger.debug("not shown")
    (line,) = writer.lines
    assert line.startswith("time=")
    assert line.endswith(
        r' level=warning message="cannot write\nthis" worker=2 session=a1'
        " logger=preforkmx.delivery"
    )


@pytest.mark.usefixtures("root_logger")
def test_an_exception_is_logged_with_its_stack_on_the_same_line():
    writer = Recorder()
    configure_logging(writer, format="json", level="info", process="master")
    try:
        raise OSError("hostile\x1b[31m\ntext")
    except OSError:
        logging.getLogger("x").exception("failed")
    (line,) = writer.lines
    record = json.loads(line)
    assert line.isprintable()
    assert record["process"] == "master"
    assert record["level"] == "error"
    assert "test_access_log.py" in record["stack"]
    assert record["stack"].endswith("text")


@pytest.mark.usefixtures("root_logger")
def test_a_stack_on_the_console_is_indented_so_that_no_line_of_it_looks_like_another_entry():
    writer = Recorder()
    configure_logging(writer, format="console", level="info", process="master")
    try:
        raise OSError("first\n12:00:00.000 info    forged\x1b[31m")
    except OSError:
        logging.getLogger("x").exception("failed")
    first, *rest = writer.lines[0].split("\n")
    assert " error   failed process=master logger=x" in first
    assert rest
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


@pytest.mark.usefixtures("root_logger")
def test_a_message_whose_arguments_do_not_fit_is_still_logged():
    writer = Recorder()
    configure_logging(writer, format="logfmt", level="info", process="")
    logging.getLogger("x").info("%d messages", "three")
    assert 'message="%d messages (not formatted: TypeError)"' in writer.lines[0]


@pytest.mark.usefixtures("root_logger")
def test_a_python_warning_is_a_line_of_the_log():
    writer = Recorder()
    configure_logging(writer, format="logfmt", level="info", process="")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old way", UserWarning, stacklevel=1)
    assert "logger=py.warnings" in writer.lines[0]
    assert "old way" in writer.lines[0]


@pytest.mark.usefixtures("root_logger")
def test_a_level_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="'loud' is no log level"):
        configure_logging(Recorder(), format="logfmt", level="loud", process="")
