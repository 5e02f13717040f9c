"""Reads tables of values into the models of the schema, as many of them as are in order."""

from __future__ import annotations

import resource
from dataclasses import dataclass, field, fields
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from preforkmx.config.delivery_tables import DELIVERIES, AnyDelivery
from preforkmx.config.kinds import NOT_YET, kind_of, meant
from preforkmx.config.middleware_tables import MIDDLEWARE, AnyMiddleware
from preforkmx.config.names import BadElements
from preforkmx.config.problem import Problem
from preforkmx.config.schema import (
    Admin,
    Config,
    Dns,
    Extensions,
    Limits,
    ListenerTable,
    Log,
    State,
    Tls,
    Workers,
    table_model,
)
from preforkmx.config.values import BadValue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path as FilePath

    from pydantic_core import ErrorDetails

    from preforkmx.config.keys import Path
    from preforkmx.config.table import Table

ENTRY_POINTS = "preforkmx.middleware"
"""The group of entry points that name middleware."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What the rules need to know beside the configuration."""

    app: bool = False
    """An application gives host name, hooks and handler."""
    loopback_only: bool = False
    """There is no configuration file: nothing but loopback is listened on."""
    look_at_files: bool = True
    """The files that the configuration names are checked, too."""
    open_files: int = resource.RLIM_INFINITY
    """The most open files that a process may have."""


@dataclass(slots=True)
class Draft:
    """A configuration of which some tables may be missing, because something in them is wrong.

    A table that was not given has its defaults; one that is wrong is None, or left out of its
    array. So the rules about several tables can be asked for those that are in order.
    """

    circumstances: Circumstances
    given: frozenset[str]
    """The top-level keys that were given, right or wrong; an empty array of tables is not."""
    hostname: str | None = None
    domains: tuple[str, ...] | None = None
    workers: Workers | None = field(default_factory=Workers)
    listener: dict[int, ListenerTable] = field(default_factory=dict)
    tls: Tls | None = None
    limits: Limits | None = field(default_factory=Limits)
    extensions: Extensions | None = field(default_factory=Extensions)
    dns: Dns | None = field(default_factory=Dns)
    state: State | None = field(default_factory=State)
    middleware: dict[int, AnyMiddleware] = field(default_factory=dict)
    delivery: AnyDelivery | None = None
    admin: Admin | None = field(default_factory=Admin)
    log: Log | None = field(default_factory=Log)

    def config(self) -> Config:
        """Return the configuration; to be called when there was no problem."""
        parts = {each.name: getattr(self, each.name) for each in fields(self)}
        del parts["circumstances"], parts["given"]
        parts["listener"] = tuple(self.listener.values())
        parts["middleware"] = tuple(self.middleware.values())
        return Config.model_construct(**parts)


def read_tables(
    raw: dict[str, Any], folder: FilePath, circumstances: Circumstances
) -> tuple[Draft, list[Problem]]:
    """Read `raw`, and return what is in order and a problem for each value that is not.

    :param folder: where relative paths begin.
    """
    arrays = {"listener", "middleware"}
    given = frozenset(key for key in raw if key not in arrays or raw[key] != [])
    draft = Draft(circumstances, given)
    problems = [_unknown(Config, (key,), raw[key]) for key in raw if key not in Config.model_fields]
    for name, about in Config.model_fields.items():
        if name not in raw:
            continue
        kind = kind_of(about)
        if kind is not None:
            try:
                setattr(draft, name, kind.read(raw[name], folder))
            except BadValue as error:
                setattr(draft, name, None)
                problems += _bad((name,), raw[name], error)
        elif name in arrays:
            found, more = _read_array(name, raw[name], folder)
            setattr(draft, name, found)
            problems += more
        else:
            table, more = _read_table((name,), raw[name], folder)
            setattr(draft, name, table)
            problems += more
    return draft, problems


def _read_array(name: str, raw: Any, folder: FilePath) -> tuple[dict[int, Table], list[Problem]]:
    if not isinstance(raw, list):
        return {}, [Problem((name,), "must be an array of tables", f"write [[{name}]]")]
    found: dict[int, Table] = {}
    problems: list[Problem] = []
    for index, table in enumerate(raw):
        read, more = _read_table((name, index), table, folder)
        problems += more
        if read is not None:
            found[index] = read
    return found, problems


def _read_table(path: Path, raw: Any, folder: FilePath) -> tuple[Table | None, list[Problem]]:
    model = table_model(path, raw)
    if not isinstance(raw, dict) or model is None:
        return None, [Problem(path, "must be a table", value=raw)]
    if problem := _use_problem(path, raw):
        return None, [problem]
    try:
        return model.model_validate(raw, context={"folder": folder}), []
    except ValidationError as error:
        return None, list(_problems(error, model, path))


def _use_problem(path: Path, table: dict[str, Any]) -> Problem | None:
    """Return what is wrong with the ``use`` that chooses a table's other keys."""
    use = table.get("use")
    if path[0] == "middleware":
        installed = entry_points(group=ENTRY_POINTS).names
        known = {*MIDDLEWARE, *installed}
    elif path[0] == "delivery":
        known = {*DELIVERIES}
    else:
        return None
    choices = f"one of {', '.join(sorted(known))}, or MODULE:OBJECT"
    if "use" not in table and path[0] == "middleware":
        return Problem((*path, "use"), "is required", choices)
    if not isinstance(use, str) or ":" in use or use in known:
        return None
    hint = meant(use, known) or choices
    return Problem((*path, "use"), f"is no {path[0]}", hint, use)


def _problems(error: ValidationError, model: type[Table], path: Path) -> Iterator[Problem]:
    for detail in error.errors(include_url=False):
        where = (*path, *detail["loc"])
        # What is wrong may be in a table inside of this one.
        inner = table_model(where[:-1], None) if len(detail["loc"]) > 1 else None
        if detail["type"] == "missing":
            yield Problem(where, "is required", _example(inner or model, str(detail["loc"][-1])))
        elif detail["type"] == "extra_forbidden":
            yield _unknown(inner or model, where, detail["input"])
        else:
            yield from _bad(where, detail["input"], _reason(detail))


def _reason(detail: ErrorDetails) -> BadValue:
    error = detail.get("ctx", {}).get("error")
    return error if isinstance(error, BadValue) else BadValue(detail["msg"])


def _bad(path: Path, value: Any, error: BadValue) -> Iterator[Problem]:
    if isinstance(error, BadElements):
        for index, each in error.bad.items():
            yield Problem((*path, index), each.message, each.hint, value[index])
    else:
        yield Problem(path, error.message, error.hint, value)


def _unknown(model: type[Table], path: Path, value: Any) -> Problem:
    key = str(path[-1])
    if key in model.later:
        return Problem(path, NOT_YET, value=value)
    return Problem(path, "unknown key", meant(key, model.model_fields), value)


def _example(model: type[Table], key: str) -> str:
    about = model.model_fields[key]
    return f'such as "{about.examples[0]}"' if about.examples else ""
