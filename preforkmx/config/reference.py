"""Prints docs/reference/configuration.md from the schema: ``python -m preforkmx.config.reference``."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING

from preforkmx.config.delivery_tables import DELIVERIES, SiteDelivery
from preforkmx.config.kinds import kind_of
from preforkmx.config.middleware_tables import MIDDLEWARE, SiteMiddleware
from preforkmx.config.schema import Config, inner_tables, table_model
from preforkmx.config.show import plain
from preforkmx.config.toml import dump_value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from preforkmx.config.table import Table

_HEAD = """\
# Configuration

<!-- Printed from preforkmx/config/schema.py by `python -m preforkmx.config.reference`. -->

The configuration is one TOML file: what `-c` names, else `./preforkmx.toml`. `preforkmx config
example` prints one with every key, `preforkmx check-config` prints everything that is wrong in
one, and `preforkmx config show` prints what is in force and where each value came from.

- Unknown keys are errors, and so are keys of a later version ("not yet available"): nothing is
  ever ignored.
- Durations are written `"300ms"`, `"30s"`, `"5m"`, `"24h"`, `"36d"`; sizes `"512KiB"`, `"25MiB"`,
  `"1GiB"` or a number of octets; rates `"10/s"`, `"60/min"`, `"600/hour"`, `"5000/day"`.
- A relative path begins at the folder of the file.
- The environment overrides the file: `PREFORKMX_STATE__URL` is `[state] url`, and
  `PREFORKMX_LISTENER__0__ADDRESS` the address of the first `[[listener]]` (indices begin with 0,
  also in error messages). The value is the text without quotation marks; numbers, booleans and
  arrays are written as in TOML. A variable that names no key is an error; those that Kubernetes
  makes for a service called `preforkmx` are left alone.
- With `--app MODULE:OBJECT` the application gives host name, hooks, limits and handler; the file
  gives the rest, and `[delivery]` and `[limits]` are errors. A `hostname` in the file must then
  be the application's.
"""


def reference() -> str:
    """Return the page as Markdown."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield _HEAD
    yield "## Top level\n"
    yield from _keys(Config, ["hostname", "domains"])
    for name in Config.model_fields:
        model = table_model((name,), None)
        if name == "middleware":
            yield "## `[[middleware]]`\n"
            yield "Checks run in the order of their tables; the first refusal counts.\n"
            yield from _uses(MIDDLEWARE, SiteMiddleware)
        elif name == "delivery":
            yield "## `[delivery]`\n"
            yield from _uses(DELIVERIES, SiteDelivery)
        elif name == "listener":
            model = table_model((name, 0), None)
            assert model is not None
            yield from _section("## `[[listener]]`", model)
        elif model is not None:
            yield from _section(f"## `[{name}]`", model)


def _uses(known: dict[str, type[Table]], site: type[Table]) -> Iterator[str]:
    for use, model in known.items():
        yield from _section(f'### `use = "{use}"`', model)
    yield from _section('### `use = "MODULE:OBJECT"`', site)


def _section(title: str, model: type[Table]) -> Iterator[str]:
    yield f"{title}\n"
    yield inspect.cleandoc(model.__doc__ or "") + "\n"
    inner = inner_tables(model)
    yield from _keys(model, [key for key in model.model_fields if key != "use"])
    for key, element in inner.items():
        yield from _section(f"#### `[[middleware.{key}]]`", element)


def _keys(model: type[Table], keys: list[str]) -> Iterator[str]:
    if not keys:
        return
    yield "| key | value | default | |"
    yield "|---|---|---|---|"
    for key in keys:
        about = model.model_fields[key]
        kind = kind_of(about)
        default = plain(about, about.default) if not about.is_required() else None
        shown = "" if default is None else f"`{dump_value(default)}`"
        yield f"| `{key}` | {kind.words if kind else 'tables'} | {shown} | {about.description} |"
    yield ""


if __name__ == "__main__":
    sys.stdout.write(reference())
