"""What a kind of value is: how a configuration key is read, shown, described and documented.

A kind stands in the annotation of a key, ``Annotated[float, Duration()]``, and is at once its
parser, its JSON Schema, its words for the reference, and the way back to TOML. pydantic calls
:meth:`Kind.read`; every failure is a :class:`~preforkmx.config.values.BadValue`. The kinds
themselves are in :mod:`~preforkmx.config.quantities` and :mod:`~preforkmx.config.names`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import core_schema

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.fields import FieldInfo

NOT_YET = "not yet available"
"""The message for what interface and documentation know and this version cannot do."""


def meant(word: object, known: Iterable[str]) -> str:
    """Return ``did you mean "…"?`` for the known word nearest to `word`, else ``""``."""
    if not isinstance(word, str):
        return ""
    near = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f'did you mean "{near[0]}"?' if near else ""


@dataclass(frozen=True)
class Kind:
    """One kind of value. Subclasses write :meth:`parse`, :meth:`schema` and :attr:`words`."""

    def parse(self, value: Any) -> Any:
        """Return what the program works with, from what TOML gave.

        :raises BadValue: when it is not of this kind.
        """
        raise NotImplementedError

    def read(self, value: Any, folder: Path) -> Any:  # noqa: ARG002  (for paths only)
        """Do what :meth:`parse` does; where the value is a path, a relative one is in `folder`."""
        return self.parse(value)

    def show(self, value: Any) -> Any:
        """Return what :meth:`read` reads as `value`: text, a number, a boolean or a list."""
        return value

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the value as it stands in TOML."""
        raise NotImplementedError

    @property
    def words(self) -> str:
        """What the reference calls it."""
        raise NotImplementedError

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        def read(value: Any, info: core_schema.ValidationInfo) -> Any:
            return self.read(value, (info.context or {}).get("folder", Path()))

        return core_schema.with_info_plain_validator_function(read)

    def __get_pydantic_json_schema__(
        self, core: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return self.schema()


def kind_of(field: FieldInfo) -> Kind | None:
    """Return the kind that stands in a key's annotation; None for a table or a constant."""
    return next((item for item in field.metadata if isinstance(item, Kind)), None)
