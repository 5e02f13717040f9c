"""Prints a configuration, and the schema, for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from preforkmx.config.delivery_tables import Lmtp, Smtp
from preforkmx.config.kinds import kind_of
from preforkmx.config.schema import Config
from preforkmx.config.table import Table
from preforkmx.config.toml import dump_key, dump_value, mask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

    from preforkmx.config.keys import Path
    from preforkmx.config.load import Loaded

_WIDTH = 48
"""The column at which the origins stand, where the values leave room for it."""


def show(loaded: Loaded) -> str:
    """Return the effective configuration as TOML, with the origin of each value behind it.

    Secrets are masked, so what is printed can be shown to others.
    """
    return "\n".join(_show_table(loaded, loaded.config, ())) + "\n"


def plain(about: FieldInfo, value: Any) -> Any:
    """Return a value of the schema as TOML has it: text, number, boolean, array or table."""
    kind = kind_of(about)
    return value if kind is None or value is None else kind.show(value)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the configuration, defaults as TOML has them."""
    document = Config.model_json_schema()
    document["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    document["title"] = "preforkmx"
    tables: tuple[type[Table], ...] = (*Table.__subclasses__(), Lmtp, Smtp)
    models = {model.__name__: model for model in tables}
    _plain_defaults(document, Config)
    for name, definition in document["$defs"].items():
        _plain_defaults(definition, models[name])
    return document


def _plain_defaults(definition: dict[str, Any], model: type[Table]) -> None:
    for key, about in model.model_fields.items():
        entry = definition["properties"][key]
        entry.pop("title", None)
        default = None if about.is_required() else plain(about, about.default)
        if isinstance(default, Table) or default in (None, ()):
            entry.pop("default", None)
        elif "default" in entry:
            entry["default"] = default


def _show_table(loaded: Loaded, table: Table, path: Path) -> Iterator[str]:
    inner: list[tuple[Path, Table]] = []
    for key, about in type(table).model_fields.items():
        value = getattr(table, key)
        if isinstance(value, Table):
            inner.append(((*path, key), value))
        elif isinstance(value, tuple) and kind_of(about) is None:
            inner += [((*path, key, index), each) for index, each in enumerate(value)]
        elif value is not None:
            yield _line(loaded, (*path, key), plain(about, value))
    for key, value in (table.model_extra or {}).items():
        yield _line(loaded, (*path, key), value)
    for where, each in inner:
        yield ""
        header = ".".join(part for part in where if isinstance(part, str))
        yield f"[[{header}]]" if isinstance(where[-1], int) else f"[{header}]"
        yield from _show_table(loaded, each, where)


def _line(loaded: Loaded, path: Path, value: Any) -> str:
    text = f"{dump_key(str(path[-1]))} = {dump_value(mask(path, value))}"
    return f"{text:<{_WIDTH}}  # {loaded.sources.origin(path) or 'default'}"
