"""The replies that are not in the catalogue: SMTPErrors of this package's own middleware,
deliveries and defaults, found in its source."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import preforkmx
from reference.words import PASSED_ON

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(preforkmx.__file__).parent
# Those of the next hop are read there, and not sent.
_NOT_THE_SERVER = ("testing", "protocol/replies.py", "delivery/nexthop/replies.py")


class Refusal(NamedTuple):
    """One ``SMTPError(…)`` in the source."""

    module: str
    """Its path below preforkmx/."""
    code: int
    enhanced: tuple[int, int, int]
    text: str
    """What an f-string fills in stands in braces."""
    close: bool


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield the modules that make replies, or might."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(_NOT_THE_SERVER):
            yield name, ast.parse(path.read_text("utf-8"))


def calls(tree: ast.Module, function: str) -> Iterator[ast.Call]:
    """Yield the calls of `function` by that name, bare or as an attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and function in (
            getattr(node.func, "id", ""),
            getattr(node.func, "attr", ""),
        ):
            yield node


def refusals() -> list[Refusal]:
    """Return what the source raises, without what it takes from the catalogue.

    :raises LookupError: a call says neither its code nor which reply of the catalogue it takes.
    """
    found = (
        refusal
        for module, tree in modules()
        for call in calls(tree, "SMTPError")
        if (refusal := _refusal(module, tree, call)) is not None
    )
    # The same call in two places of a module is one reply.
    return list(dict.fromkeys(found))


def repeated() -> list[tuple[str, str]]:
    """Return the modules that raise a reply of the catalogue as an SMTPError, with its name."""
    return [
        (module, name)
        for module, tree in modules()
        for call in calls(tree, "SMTPError")
        if (name := _of_the_catalogue(tree, call)) is not None
    ]


def makers() -> set[str]:
    """Return the modules that make a Reply outside of the catalogue."""
    return {module for module, tree in modules() if any(calls(tree, "Reply"))}


def _refusal(module: str, tree: ast.Module, call: ast.Call) -> Refusal | None:
    if _of_the_catalogue(tree, call) is not None or _passed_on(module, call):
        return None
    code = getattr(call.args[0], "value", None)
    if type(code) is not int:
        raise LookupError(f"{module}:{call.lineno}: the code of this SMTPError cannot be read")
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    enhanced = _enhanced(code, keywords.get("enhanced"))
    close = "close" in keywords and bool(ast.literal_eval(keywords["close"]))
    return Refusal(module, code, enhanced, _text(call.args[1]), close or code == 421)


def _passed_on(module: str, call: ast.Call) -> bool:
    """Whether somebody else chose its code: words.PASSED_ON tells of it in one line."""
    code, enhanced = call.args[0], {each.arg: each.value for each in call.keywords}.get("enhanced")
    computed = isinstance(enhanced, ast.expr) and not isinstance(enhanced, ast.Tuple)
    return module in PASSED_ON and (computed or not isinstance(code, ast.Constant))


def _enhanced(code: int, node: ast.expr | None) -> tuple[int, int, int]:
    if node is None:
        return code // 100, 0, 0
    first, second, third = ast.literal_eval(node)
    return first, second, third


def _of_the_catalogue(tree: ast.Module, call: ast.Call) -> str | None:
    """``reply = replies.NAME`` somewhere, ``SMTPError(reply.code, …)`` here: NAME."""
    code = call.args[0]
    if not isinstance(code, ast.Attribute) or not isinstance(code.value, ast.Name):
        return None
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Assign)
            and ast.unparse(node.targets[0]) == code.value.id
            and isinstance(node.value, ast.Attribute)
            and ast.unparse(node.value.value) == "replies"
        ):
            return node.value.attr
    return None


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(
            f"{{{_name(part.value)}}}" if isinstance(part, ast.FormattedValue) else _text(part)
            for part in node.values
        )
    if isinstance(node, ast.Constant):
        return str(node.value)
    return f"{{{_name(node)}}}"


def _name(node: ast.expr) -> str:
    """Name what is filled in: the last argument of any call around it."""
    while isinstance(node, ast.Call):
        node = node.args[-1]
    return node.attr if isinstance(node, ast.Attribute) else ast.unparse(node)
