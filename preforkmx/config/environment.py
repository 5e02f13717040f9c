"""Overrides from the environment: ``PREFORKMX_STATE__URL`` is ``[state] url``.

Two underscores go one table deeper, and a number is an index into an array:
``PREFORKMX_LISTENER__0__ADDRESS`` is the address of the first listener. The value is text as
it would stand between quotation marks; where the key takes no such text, it is read as TOML
(``4``, ``true``, ``["example.com"]``).
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any

from preforkmx.config.kinds import kind_of, meant
from preforkmx.config.problem import Problem
from preforkmx.config.schema import Config, table_model
from preforkmx.config.toml import dotted
from preforkmx.config.values import BadValue

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path as FilePath

    from preforkmx.config.keys import Path

PREFIX = "PREFORKMX_"

# Kubernetes puts variables for each service of a namespace into each container; those of a
# service named "preforkmx" or "preforkmx-…" have this prefix too, and mean nothing to us.
_KUBERNETES = re.compile(
    r"PREFORKMX_(?:[A-Z0-9_]+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?"
    r"|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)"
)


def apply_environment(
    raw: dict[str, Any], environ: Mapping[str, str], folder: FilePath
) -> tuple[dict[Path, str], list[Problem]]:
    """Put the environment's values into `raw`.

    :param folder: where relative paths begin.
    :returns: the variable of each value, and a problem for each that has no place.
    """
    variables: dict[Path, str] = {}
    problems: list[Problem] = []
    named = [(_path(name), name) for name in sorted(environ) if _is_ours(name)]
    for path, name in sorted(named, key=lambda each: _order(each[0])):
        try:
            if path in variables:
                raise BadValue(f"is given by {variables[path]} and by {name}")
            variables[path] = name
            if path[0] not in Config.model_fields and path[0] not in Config.later:
                raise BadValue("names no key", meant(path[0], Config.model_fields))
            _put(raw, path, _value(raw, path, environ[name], folder))
        except BadValue as error:
            problems.append(Problem(path, error.message, error.hint))
    return variables, problems


def _is_ours(name: str) -> bool:
    return name.startswith(PREFIX) and not _KUBERNETES.fullmatch(name)


def _path(name: str) -> Path:
    parts = name.removeprefix(PREFIX).lower().split("__")
    return tuple(int(part) if re.fullmatch("0|[1-9][0-9]{0,3}", part) else part for part in parts)


def _order(path: Path) -> list[tuple[int, str]]:
    """Sort elements by their index, and ``use`` before the keys whose meaning it decides."""
    return [(p, "") if isinstance(p, int) else (-1, "" if p == "use" else p) for p in path]


def _value(raw: dict[str, Any], path: Path, text: str, folder: FilePath) -> Any:
    """Return `text` as text where the key takes it as such, else as TOML, else as text."""
    kind = _kind_at(raw, path)
    if kind is not None:
        try:
            kind.read(text, folder)
        except BadValue:
            pass
        else:
            return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _kind_at(raw: dict[str, Any], path: Path) -> Any:
    *parents, key = path
    table: Any = raw
    for part in parents:
        try:
            table = table[part]
        except (LookupError, TypeError):
            table = {}
    model = table_model(tuple(parents), table)
    field = model.model_fields.get(str(key)) if model is not None else None
    return kind_of(field) if field is not None else None


def _put(raw: dict[str, Any], path: Path, value: Any) -> None:
    place: Any = raw
    for depth, part in enumerate(path):
        rest = path[depth + 1 :]
        new = value if not rest else [] if isinstance(rest[0], int) else {}
        if isinstance(place, dict) and isinstance(part, str):
            inner = place.setdefault(part, new)
        elif isinstance(place, list) and isinstance(part, int) and part <= len(place):
            place += [new] * (part == len(place))
            inner = place[part]
        elif isinstance(place, list):
            raise BadValue(f"has no place: {dotted(path[:depth])} has {len(place)} elements")
        else:
            raise BadValue(f"has no place: {dotted(path[:depth])} is not a table")
        if not rest:
            place[part] = value
        place = inner
