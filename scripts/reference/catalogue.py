"""The replies of preforkmx/protocol/replies.py, with what their docstrings say of them."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from typing import NamedTuple

from preforkmx.protocol import replies
from preforkmx.protocol.replies import Reply

_SECTION = re.compile(r"# --- (.+?) -+\Z")
_CODE = re.compile(r"\A[0-9]{3}:? ")


class Row(NamedTuple):
    """One reply of the catalogue."""

    name: str
    reply: Reply
    """What a function makes has its parameters in braces."""
    when: str
    """When it is sent, in Markdown; ``""`` where the catalogue does not say."""


def catalogue() -> dict[str, list[Row]]:
    """Return the replies under the headings of their sections, in the order of the module."""
    source = inspect.getsource(replies)
    headings = {
        number: match[1]
        for number, line in enumerate(source.splitlines(), 1)
        if (match := _SECTION.match(line))
    }
    body = ast.parse(source).body
    # A string behind an assignment is its docstring.
    notes = {node.lineno: said for node, said in itertools.pairwise(body)}
    groups: dict[str, list[Row]] = {heading: [] for heading in headings.values()}
    functions: list[Row] = []
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            reply = getattr(replies, name)
            if isinstance(reply, Reply):
                heading = headings[max(number for number in headings if number < node.lineno)]
                groups[heading].append(Row(name, reply, _note(notes.get(node.lineno))))
        elif isinstance(node, ast.FunctionDef) and ast.unparse(node.returns or node) == "Reply":
            said = ast.get_docstring(node) or ""
            functions.append(
                Row(node.name, _example(getattr(replies, node.name)), _without_code(said))
            )
    groups["replies with something to fill in"] = functions
    return groups


def by_name() -> dict[str, Row]:
    """Return the replies by their names in the catalogue."""
    return {row.name: row for rows in catalogue().values() for row in rows}


def _note(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return _markdown(str(node.value.value))
    return ""


def _markdown(docstring: str) -> str:
    """Return the first paragraph of a docstring, on one line."""
    return " ".join(docstring.split("\n\n", maxsplit=1)[0].split()).replace("``", "`")


def _without_code(docstring: str) -> str:
    said = _CODE.sub("", _markdown(docstring))
    return said[:1].upper() + said[1:]


def _example(function: object) -> Reply:
    """Call one of the catalogue's functions with its parameters' names."""
    assert callable(function)
    arguments = [
        f"{{{parameter.name}}}"
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
    ]
    reply = function(*arguments)
    assert isinstance(reply, Reply)
    return reply
