"""The kinds of values that configuration keys have.

A kind stands in the annotation of a key, ``Annotated[float, Duration()]``, and is at once its
parser, its JSON Schema, its words for the reference, and the way back to TOML. pydantic calls
:meth:`Kind.read`; every failure is a :class:`~preforkmx.config.values.BadValue`.
"""

from __future__ import annotations

import difflib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import core_schema

from preforkmx.config import values
from preforkmx.config.values import BadValue
from preforkmx.session.listener import split_address

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


@dataclass(frozen=True)
class Flag(Kind):
    """True or false."""

    def parse(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise BadValue(f"must be {self.words}")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}

    @property
    def words(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Integer(Kind):
    """A whole number from `low` to `high`."""

    low: int
    high: int

    def parse(self, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadValue(f"must be {self.words}")
        if not self.low <= value <= self.high:
            raise BadValue(f"must be {self.words}")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}

    @property
    def words(self) -> str:
        return f"a whole number from {self.low} to {self.high}"


@dataclass(frozen=True)
class CoreCount(Integer):
    """A number of worker processes, or ``"auto"``."""

    def parse(self, value: Any) -> Any:
        return value if value == "auto" else super().parse(value)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"const": "auto"}, super().schema()]}

    @property
    def words(self) -> str:
        return f'"auto" or {super().words}'


@dataclass(frozen=True)
class Seconds(Kind):
    """A plain number of seconds from `low` to `high`, for keys that end in ``_seconds``."""

    low: float
    high: float

    def parse(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            number = str(value).removesuffix("s")
            hint = f"the unit is in the key's name: {number}" if number.isdecimal() else ""
            raise BadValue(f"must be {self.words}", hint)
        if not self.low <= value <= self.high:
            raise BadValue(f"must be {self.words}")
        return float(value)

    def show(self, value: float) -> float | int:
        return int(value) if value == int(value) else value

    def schema(self) -> dict[str, Any]:
        return {"type": "number", "minimum": self.low, "maximum": self.high}

    @property
    def words(self) -> str:
        return f"a number of seconds from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Duration(Kind):
    """Seconds, written with a unit; `low` and `high` are seconds too."""

    low: float = 0.001
    high: float = values.LONGEST_DURATION

    def parse(self, value: Any) -> float:
        seconds = values.parse_duration(value)
        if not self.low <= seconds <= self.high:
            raise BadValue(f"must be {self.words}")
        return seconds

    def show(self, value: float) -> str:
        return values.format_duration(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?(ms|s|m|h|d)$"}

    @property
    def words(self) -> str:
        low, high = values.format_duration(self.low), values.format_duration(self.high)
        return f"a duration from {low} to {high}"


@dataclass(frozen=True)
class Size(Kind):
    """Octets, written with a unit or as a plain number."""

    low: int
    high: int

    def parse(self, value: Any) -> int:
        octets = values.parse_size(value)
        if not self.low <= octets <= self.high:
            raise BadValue(f"must be {self.words}")
        return octets

    def show(self, value: int) -> str:
        return values.format_size(value)

    def schema(self) -> dict[str, Any]:
        text = {"type": "string", "pattern": "^[0-9]+ ?(B|KiB|MiB|GiB)?$"}
        return {"anyOf": [{"type": "integer", "minimum": self.low}, text]}

    @property
    def words(self) -> str:
        return f"a size from {values.format_size(self.low)} to {values.format_size(self.high)}"


@dataclass(frozen=True)
class RateOf(Kind):
    """So many events in a period."""

    def parse(self, value: Any) -> values.Rate:
        return values.parse_rate(value)

    def show(self, value: values.Rate) -> str:
        return values.format_rate(value)

    def schema(self) -> dict[str, Any]:
        units = "s|sec|second|min|minute|h|hour|d|day"
        return {"type": "string", "pattern": f"^[0-9]+ ?/ ?({units})$"}

    @property
    def words(self) -> str:
        return "a rate"


@dataclass(frozen=True)
class Choice(Kind):
    """One of a few words; `later` are those that a later version will know."""

    now: tuple[str, ...]
    later: tuple[str, ...] = ()

    def parse(self, value: Any) -> str:
        if isinstance(value, str):
            if value in self.now:
                return value
            if value in self.later:
                raise BadValue(NOT_YET)
        raise BadValue(f"must be {self.words}", meant(value, self.now))

    def schema(self) -> dict[str, Any]:
        return {"enum": list(self.now)}

    @property
    def words(self) -> str:
        quoted = [f'"{word}"' for word in self.now]
        if len(quoted) == 1:
            return quoted[0]
        return ", ".join(quoted[:-1]) + " or " + quoted[-1]


@dataclass(frozen=True)
class HostName(Kind):
    """A host's or a domain's name."""

    def parse(self, value: Any) -> str:
        return values.parse_host_name(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "format": "hostname"}

    @property
    def words(self) -> str:
        return "a host name"


@dataclass(frozen=True)
class _ListOf(Kind):
    """An array; each bad element is named by its index."""

    def read_element(self, element: Any) -> Any:
        raise NotImplementedError

    def parse(self, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise BadValue(f"must be {self.words}", _in_brackets(value))
        found: list[Any] = []
        bad: dict[int, BadValue] = {}
        for index, element in enumerate(value):
            try:
                found.append(self.read_element(element))
            except BadValue as error:
                bad[index] = error
        if bad:
            raise BadElements(bad)
        return tuple(found)

    def show(self, value: tuple[Any, ...]) -> list[str]:
        return [str(element) for element in value]

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": {"type": "string"}}


class BadElements(BadValue):
    """Bad values inside an array, by their index."""

    def __init__(self, bad: dict[int, BadValue]) -> None:
        super().__init__("; ".join(f"[{index}] {error}" for index, error in bad.items()))
        self.bad = bad


@dataclass(frozen=True)
class Domains(_ListOf):
    """Recipient domains, or ``"*"`` alone."""

    def read_element(self, element: Any) -> str:
        return values.parse_domain(element)

    def parse(self, value: Any) -> tuple[str, ...]:
        if value == []:
            raise BadValue("must name at least one domain", '["*"] takes mail for any domain')
        domains: tuple[str, ...] = super().parse(value)
        if "*" in domains and len(domains) > 1:
            raise BadValue('must be ["*"] alone, or domains without "*"')
        return domains

    @property
    def words(self) -> str:
        return "an array of domain names"


@dataclass(frozen=True)
class Networks(_ListOf):
    """Networks in CIDR notation, or single addresses."""

    def read_element(self, element: Any) -> values.Network:
        return values.parse_network(element)

    @property
    def words(self) -> str:
        return "an array of networks"


@dataclass(frozen=True)
class Addresses(_ListOf):
    """Recipients, ``"joe@example.com"``, or whole domains, ``"@example.com"``."""

    def read_element(self, element: Any) -> str:
        if not isinstance(element, str) or not element.rpartition("@")[1]:
            raise BadValue('must be an address, or "@" and a domain')
        return element

    @property
    def words(self) -> str:
        return "an array of addresses"


@dataclass(frozen=True)
class _PathOf(Kind):
    def read(self, value: Any, folder: Path) -> Path:
        if not isinstance(value, str) or not value or "\0" in value:
            raise BadValue(f"must be {self.words}")
        if "\n" in value:
            raise BadValue(f"must be {self.words}", "its name, not what is in it")
        return Path(os.path.normpath(folder / value))

    def show(self, value: Path) -> str:
        return str(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1}


@dataclass(frozen=True)
class File(_PathOf):
    """A file; relative to the configuration file's folder."""

    @property
    def words(self) -> str:
        return "a file"


@dataclass(frozen=True)
class Folder(_PathOf):
    """A folder; relative to the configuration file's folder."""

    @property
    def words(self) -> str:
        return "a folder"


@dataclass(frozen=True)
class SocketFile(_PathOf):
    """A unix socket; its name, with what is added to it, must fit into a socket address."""

    def read(self, value: Any, folder: Path) -> Path:
        path = super().read(value, folder)
        # sun_path holds 108 octets with its end; ".store" is the longest name put beside it.
        if len(os.fsencode(path)) + len(".store") > 107:
            raise BadValue("must be at most 101 octets long: it names a unix socket")
        return path

    @property
    def words(self) -> str:
        return "a unix socket's path"


@dataclass(frozen=True)
class ListenAddress(Kind):
    """``HOST:PORT``; a unix socket comes later."""

    def parse(self, value: Any) -> str:
        if not isinstance(value, str):
            hint = f'did you mean "0.0.0.0:{value}"?' if type(value) is int else ""
            raise BadValue(f"must be {self.words}", hint)
        if value.startswith("unix:"):
            raise BadValue(NOT_YET)
        try:
            split_address(value)
        except ValueError as error:
            raise BadValue(f"must be {self.words}", str(error)) from None
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": r"^([0-9.]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$"}

    @property
    def words(self) -> str:
        return 'an address such as "0.0.0.0:25" or "[::]:25"'


@dataclass(frozen=True)
class StateURL(Kind):
    """Where the shared state is; Redis comes later."""

    LATER = ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster")

    def read(self, value: Any, folder: Path) -> str:
        if isinstance(value, str):
            scheme, colon, rest = value.partition(":")
            if colon and scheme in self.LATER:
                raise BadValue(NOT_YET)
            if value == "local:" or (colon and scheme == "embedded" and "\0" not in rest):
                return f"embedded:{os.path.normpath(folder / rest)}" if rest else value
        raise BadValue(f"must be {self.words}", meant(value, ("embedded:", "local:")))

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": "^(embedded:.*|local:)$"}

    @property
    def words(self) -> str:
        return '"embedded:", "embedded:PATH" or "local:"'


@dataclass(frozen=True)
class Code(Kind):
    """``MODULE:OBJECT``, or the name of an entry point."""

    entry_points: bool = False

    def parse(self, value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise BadValue(f"must be {self.words}")
        module, colon, name = value.partition(":")
        parts = [*module.split("."), *(name.split(".") if colon else ())]
        if not all(part.isidentifier() for part in parts) and (colon or not self.entry_points):
            raise BadValue(f"must be {self.words}")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1}

    @property
    def words(self) -> str:
        return "MODULE:OBJECT" + (" or the name of an entry point" if self.entry_points else "")


def kind_of(field: FieldInfo) -> Kind | None:
    """Return the kind that stands in a key's annotation; None for a table or a constant."""
    return next((item for item in field.metadata if isinstance(item, Kind)), None)


def _in_brackets(value: Any) -> str:
    return f'did you mean ["{value}"]?' if isinstance(value, str) else ""
