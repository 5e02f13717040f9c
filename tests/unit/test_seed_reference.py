"""docs/reference/seed.md names nothing that does not exist."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/reference/seed.md"
HEADER = ["feature or rule", "chrj/smtpd", "preforkmx", "shown by"]
MODULES = ("preforkmx", "preforkmx.middleware", "preforkmx.testing")
"""Where a name without a module is looked for."""

_NAME = re.compile(r"(?P<path>[A-Za-z_][\w.]*)(?:\((?P<parameter>\w+)=…\))?")
_LINK = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")
NOT_YET = "not yet"


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def tables(text):
    """The rows of each table, its header first."""
    lines = text.splitlines()
    for is_table, group in groupby(lines, key=lambda line: line.startswith("|")):
        if is_table:
            header, _, *rows = map(cells, group)
            yield header, rows


def rows():
    return [
        row for header, body in tables(PAGE.read_text("utf-8")) if header == HEADER for row in body
    ]


def names(cell):
    return re.findall(r"`([^`]+)`", cell)


def attribute(owner, name):
    """An attribute, or a field that instances have: its annotation then."""
    try:
        return getattr(owner, name)
    except AttributeError:
        for kind in getattr(owner, "__mro__", ()):
            if name in inspect.get_annotations(kind):
                return inspect.get_annotations(kind)[name]
        raise


def imported(path):
    """Import as much of a dotted path as there are modules; take the rest as attributes."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = attribute(found, part)
        return found
    raise AttributeError(path)


def resolve(name):
    """Return what a name of the page means.

    :raises AttributeError: nothing.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise AttributeError(f"{name!r} is no name")
    path, parameter = match["path"], match["parameter"]
    places = [""] if path.startswith("preforkmx") else [f"{module}." for module in MODULES]
    for place in places:
        try:
            found = imported(place + path)
        except AttributeError:
            continue
        if parameter is not None and parameter not in inspect.signature(found).parameters:
            raise AttributeError(f"{path} has no parameter {parameter}")
        return found
    raise AttributeError(f"there is no {path}")


@cache
def functions(file):
    tree = ast.parse(file.read_text("utf-8"))
    return frozenset(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def linked(text, target):
    """Say whether a link of the page leads to a file, and to the test that it names."""
    file = (PAGE.parent / target).resolve()
    if not file.is_file():
        return False
    return file.suffix != ".py" or text == file.stem or f"test_{text}" in functions(file)


def test_the_page_has_its_tables():
    assert len(rows()) > 150


def test_every_row_has_its_four_cells():
    for row in rows():
        assert len(row) == len(HEADER), row
        assert all(row), row


def test_every_name_exists():
    missing = []
    for row in rows():
        for name in names(row[2]):
            try:
                resolve(name)
            except AttributeError as error:
                if not row[2].startswith(NOT_YET):
                    missing.append(f"{row[0]}: {error}")
    assert not missing, "\n".join(missing)


def test_what_is_not_yet_there_is_not_there():
    """A row that was finished meanwhile has to lose its "not yet"."""
    for row in rows():
        if row[2].startswith(NOT_YET):
            with pytest.raises(AttributeError):
                resolve(names(row[2])[0])


def test_every_row_has_a_test_or_says_that_it_has_none():
    for row in rows():
        assert _LINK.search(row[3]) or row[3] == NOT_YET, row


def test_every_link_leads_to_a_file_and_to_the_test_that_it_names():
    found = _LINK.findall(PAGE.read_text("utf-8"))
    local = [link for link in found if not link[1].startswith(("https:", "#"))]
    missing = [link for link in local if not linked(*link)]
    assert local
    assert not missing, missing


def test_every_anchor_is_a_heading():
    text = PAGE.read_text("utf-8")
    headings = {
        heading.lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


@pytest.mark.parametrize(
    "name",
    [
        "Server.no_such_method",
        "Server(no_such_parameter=…)",
        "NoSuchClass",
        "preforkmx.no_such_module",
        "Envelope.no_such_field",
        "Recorder.no_such_field",
        "two words",
    ],
)
def test_a_name_that_does_not_exist_is_found_out(name):
    with pytest.raises(AttributeError):
        resolve(name)


@pytest.mark.parametrize(
    "name",
    [
        "Server.use",
        "Server(message_size=…)",
        "Envelope.sender",
        "Peer.host",
        "Recorder.messages",
        "require_auth(at=…)",
        "preforkmx.protocol.paths.parse_path",
    ],
)
def test_a_method_a_parameter_a_field_and_a_module_are_names(name):
    resolve(name)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("no_such_test", "../../tests/unit/test_server.py"),
        ("greeting", "../../tests/dialogues/no-such-dialogue.txt"),
    ],
)
def test_a_link_to_a_test_that_does_not_exist_is_found_out(text, target):
    assert not linked(text, target)
