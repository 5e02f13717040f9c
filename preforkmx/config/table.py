"""Table: what every table of the configuration is."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Discriminator


class Table(BaseModel):
    """A TOML table. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    later: ClassVar[frozenset[str]] = frozenset()
    """Keys of a later version."""


def by_use(known: dict[str, type[Table]], default: str) -> Discriminator:
    """Return what chooses a table's model by its ``use``; one that is not known is a site's own.

    :param default: the ``use`` of a table without one.
    """

    def tag(table: Any) -> str:
        use = table.get("use", default) if isinstance(table, dict) else table.use
        return use if use in known else "site"

    return Discriminator(tag)
