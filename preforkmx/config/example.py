"""Prints a commented example configuration from the schema.

What a site must fill in stands there with a value; everything else stands behind ``#`` with
its default, so that the file is a working configuration and a list of all keys.
"""

from __future__ import annotations

import inspect
import textwrap
from typing import TYPE_CHECKING, Any

from preforkmx.config.delivery_tables import DELIVERIES, Maildir, SiteDelivery
from preforkmx.config.middleware_tables import MIDDLEWARE, SiteMiddleware
from preforkmx.config.schema import Config, ListenerTable, inner_tables, table_model
from preforkmx.config.show import plain
from preforkmx.config.toml import dump_value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from preforkmx.config.table import Table

_HEAD = """\
Configuration of preforkmx.

Durations are written "300ms", "30s", "5m", "24h", "36d"; sizes "512KiB", "25MiB"; rates
"10/s", "60/min", "600/hour", "5000/day". A relative path begins at this file's folder. The
environment overrides this file: PREFORKMX_STATE__URL is [state] url.

Check it with: preforkmx check-config -c FILE"""


def example() -> str:
    """Return the example as TOML text."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield from _comment(_HEAD)
    for key in ("hostname", "domains"):
        yield ""
        yield from _key(Config, key, needed=True)
    yield from _table("[workers]", "workers")
    yield ""
    yield from _comment(_words(ListenerTable))
    yield "[[listener]]"
    yield from _keys(ListenerTable, needed={"address"})
    yield from _table("[tls]", "tls", off=True)
    for name in ("limits", "extensions", "dns", "state"):
        yield from _table(f"[{name}]", name)
    for name, model in MIDDLEWARE.items():
        yield from _use("[[middleware]]", name, model, off=name not in {"rate_limit", "greylist"})
    yield from _use("[[middleware]]", None, SiteMiddleware, off=True)
    for name, model in DELIVERIES.items():
        yield from _use("[delivery]", name, model, off=model is not Maildir)
    yield from _use("[delivery]", None, SiteDelivery, off=True)
    for name in ("admin", "log"):
        yield from _table(f"[{name}]", name)


def _table(header: str, name: str, *, off: bool = False) -> Iterator[str]:
    model = table_model((name,), None)
    assert model is not None
    yield ""
    yield from _comment(_words(model))
    yield f"# {header}" if off else header
    yield from _keys(model, needed=set())


def _use(header: str, use: str | None, model: type[Table], *, off: bool) -> Iterator[str]:
    """A table that is chosen by its ``use``; a built-in one's limits stand there as examples."""
    yield ""
    yield from _comment(_words(model))
    mark = "# " if off else ""
    yield f"{mark}{header}"
    yield f"{mark}use = {dump_value(use or (model.model_fields['use'].examples or [''])[0])}"
    needed = set() if off else {"path", "connections", "burst", "concurrent"}
    yield from _keys(model, needed=needed, without="use")


def _keys(model: type[Table], *, needed: set[str], without: str = "") -> Iterator[str]:
    inner = inner_tables(model)
    for key in model.model_fields:
        if key != without and key not in inner:
            yield from _key(model, key, needed=key in needed)
    for key, element in inner.items():
        yield from _comment(_words(element))
        yield f"# [[middleware.{key}]]"
        yield from _keys(element, needed=set())


def _key(model: type[Table], key: str, *, needed: bool) -> Iterator[str]:
    about = model.model_fields[key]
    value: Any = about.examples[0] if about.examples else plain(about, about.default)
    yield from _comment(about.description or "")
    yield f"{'' if needed else '# '}{key} = {dump_value(value)}"


def _comment(text: str) -> Iterator[str]:
    for paragraph in text.replace("`", "").split("\n"):
        for line in textwrap.wrap(paragraph, 94) or [""]:
            yield f"## {line}".rstrip()


def _words(model: type[Table]) -> str:
    return inspect.cleandoc(model.__doc__ or "")
