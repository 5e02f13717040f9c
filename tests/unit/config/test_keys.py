"""The scanner of keys, checked against tomllib and against documents whose lines are known."""

from __future__ import annotations

import json
import tomllib
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preforkmx.config.keys import key_lines


def paths_of(value: Any, path=()):
    """Every path that tomllib sees: tables, keys, array elements."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from paths_of(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield (*path, index)
            yield from paths_of(inner, (*path, index))


def lines_of(*lines: str):
    text = "\n".join(lines)
    found = key_lines(text)
    assert set(found) == set(paths_of(tomllib.loads(text)))
    return found


def test_a_key_has_its_line():
    assert lines_of('hostname = "mx"', "", "# a comment", "port = 25") == {
        ("hostname",): 1,
        ("port",): 4,
    }


def test_a_table_has_the_line_of_its_header_and_its_keys_theirs():
    assert lines_of("[workers]", "count = 2", "[log] # x", 'level = "info"') == {
        ("workers",): 1,
        ("workers", "count"): 2,
        ("log",): 3,
        ("log", "level"): 4,
    }


def test_each_table_of_an_array_has_its_index_and_its_line():
    assert lines_of("[[a]]", "x = 1", "[[a]]", "x = 2", "", "[[a]]") == {
        ("a",): 1,
        ("a", 0): 1,
        ("a", 0, "x"): 2,
        ("a", 1): 3,
        ("a", 1, "x"): 4,
        ("a", 2): 6,
    }


def test_a_table_below_an_array_belongs_to_its_newest_element():
    found = lines_of("[[a]]", "[[a.b]]", "x = 1", "[[a.b]]", "[[a]]", "[a.c]", "y = 1", "[[a.b]]")
    assert found["a", 0, "b", 1] == 4
    assert found["a", 1, "c", "y"] == 7
    assert found["a", 1, "b", 0] == 8


def test_a_dotted_key_makes_tables():
    assert lines_of("a.b.c = 1", "a . b.d = 2", "[t.u]", "v.w = 3") == {
        ("a",): 1,
        ("a", "b"): 1,
        ("a", "b", "c"): 1,
        ("a", "b", "d"): 2,
        ("t",): 3,
        ("t", "u"): 3,
        ("t", "u", "v"): 4,
        ("t", "u", "v", "w"): 4,
    }


def test_a_quoted_key_may_hold_dots_brackets_quotes_and_escapes():
    assert lines_of('"a.b" = 1', "'c = ] [' = 2", r'"\u00e9\"#" = 3', '["x.y"."z"]', '"" = 4') == {
        ("a.b",): 1,
        ("c = ] [",): 2,
        ('é"#',): 3,
        ("x.y",): 4,
        ("x.y", "z"): 4,
        ("x.y", "z", ""): 5,
    }


def test_a_string_of_several_lines_hides_what_looks_like_keys():
    assert lines_of(
        'a = """', "b = 1", "[c]", '\\""" # ', 'x""""', "d = '''", "e=1'''''", "f=1"
    ) == {
        ("a",): 1,
        ("d",): 6,
        ("f",): 8,
    }


def test_each_element_of_an_array_over_several_lines_has_its_line():
    found = lines_of("a = [ # [", '  "x]",', "  # y", "  [1,", "   2], {z = 1},", "]", "b = 1")
    assert found["a", 0] == 2
    assert found["a", 1, 1] == 5
    assert found["a", 2, "z"] == 5
    assert found["b",] == 7


def test_keys_of_inline_tables_have_lines():
    assert lines_of("a = { b.c = 1, 'd' = [ { e = 2 } ] }")["a", "d", 0, "e"] == 1


def test_dates_numbers_and_booleans_end_where_their_line_ends():
    assert lines_of("a = 1979-05-27 07:32:00", "b = -1e5", "c = true#x", "d = 07:32:00.5") == {
        ("a",): 1,
        ("b",): 2,
        ("c",): 3,
        ("d",): 4,
    }


def test_lines_that_end_with_crlf_count_once():
    assert key_lines("a = 1\r\n\r\n[b]\r\nc = '''\r\nx'''\r\nd = 1\r\n") == {
        ("a",): 1,
        ("b",): 3,
        ("b", "c"): 4,
        ("b", "d"): 6,
    }


class Written(NamedTuple):
    """A document as it grows, and the line of each of its keys."""

    lines: list[str]
    expected: dict[tuple, int]

    def write(self, text: str) -> int:
        """Add `text`, which may have several lines; return the line it begins on."""
        line = len(self.lines) + 1
        self.lines.extend(text.split("\n"))
        return line


_names = st.text("abc-_09", min_size=1, max_size=4) | st.text(
    st.characters(exclude_categories=["Cs", "Cc"]), max_size=4
)
_texts = st.text(st.sampled_from(list("ab=[]{}#'\".,\\\n é")), max_size=12)


def _key(draw, name: str) -> str:
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    styles = ["basic"]
    if bare:
        styles.append("bare")
    if "'" not in name:
        styles.append("literal")
    style = draw(st.sampled_from(styles))
    if style == "bare":
        return name
    if style == "literal":
        return f"'{name}'"
    return json.dumps(name, ensure_ascii=draw(st.booleans()) and max(name, default="") < "\uffff")


def _value(draw, depth: int, *, inline: bool):
    """Return a value as TOML text, and the lines of the paths inside it, from 0."""
    kinds = ["number", "text", "basic lines", "literal lines"]
    kind = draw(st.sampled_from(kinds if depth > 2 else [*kinds, "array", "table"]))
    if kind == "number":
        return draw(st.sampled_from(["0", "-1.5", "true", "nan", "1979-05-27", "0x1f"])), {}
    text = draw(_texts)
    if kind == "text" or inline:
        return json.dumps(text), {}
    if kind == "basic lines":
        return '"""' + text.replace("\\", "\\\\").replace('"', '\\"') + draw(_ends('"')), {}
    if kind == "literal lines":
        return "'''" + text.replace("'", "") + draw(_ends("'")), {}
    inside = {}
    written = "[" if kind == "array" else "{"
    names = draw(st.lists(_names, max_size=3, unique=True))
    for index, name in enumerate(names):
        gap = draw(st.sampled_from(["", " ", "\n", " # ]\n"])) if kind == "array" else " "
        written += ("," if index else "") + gap
        line = written.count("\n")
        path = index if kind == "array" else name
        if kind == "table":
            written += _key(draw, name) + " = "
        value, deeper = _value(draw, depth + 1, inline=kind == "table")
        inside[path,] = line
        inside |= {(path, *rest): line + below for rest, below in deeper.items()}
        written += value
    return written + ("]" if kind == "array" else "}"), inside


def _ends(quote):
    return st.sampled_from([quote * 3, quote * 4, quote * 5])


@st.composite
def documents(draw):
    """A TOML document with tables, arrays of tables and values of every kind."""
    document = Written([], {})

    def pairs(path):
        for name in draw(st.lists(_names, max_size=3, unique=True)):
            for _ in range(draw(st.integers(0, 1))):
                document.write(draw(st.sampled_from(["", "# [x]", "  \t"])))
            value, inside = _value(draw, 0, inline=False)
            line = document.write(f"{_key(draw, name)} = {value}")
            document.expected[(*path, name)] = line
            for rest, below in inside.items():
                document.expected[(*path, name, *rest)] = line + below

    pairs(())
    taken = {path[0] for path in document.expected}
    for name in draw(st.lists(_names, max_size=4, unique=True)):
        if name in taken:
            continue
        if draw(st.booleans()):
            line = document.write(f"[{_key(draw, name)}] # ]")
            document.expected[name,] = line
            pairs((name,))
            continue
        for index in range(draw(st.integers(1, 3))):
            line = document.write(f"[[ {_key(draw, name)} ]]")
            document.expected.setdefault((name,), line)
            document.expected[name, index] = line
            pairs((name, index))
            if draw(st.booleans()) and (name, index, "sub") not in document.expected:
                line = document.write(f"[{_key(draw, name)}.sub]")
                document.expected[name, index, "sub"] = line
                pairs((name, index, "sub"))
    return "\n".join(document.lines), document.expected


@settings(deadline=None)
@given(documents())
def test_every_key_of_any_document_is_found_on_its_line(document):
    text, expected = document
    assert set(paths_of(tomllib.loads(text))) == set(expected), "the generator is wrong"
    assert key_lines(text) == expected


@settings(deadline=None)
@given(st.text(st.sampled_from(list("a=[]{}#'\".,\\\n 1")), max_size=60))
def test_whatever_tomllib_accepts_has_a_line_for_every_key(text):
    try:
        parsed = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert set(key_lines(text)) == set(paths_of(parsed))


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment"])
def test_a_document_without_keys_has_no_lines(text):
    assert key_lines(text) == {}
