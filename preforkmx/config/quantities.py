"""The kinds of numbers and words: counts, durations, sizes, rates, choices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from preforkmx.config import values
from preforkmx.config.kinds import NOT_YET, Kind, meant
from preforkmx.config.values import BadValue


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


_PERIODS = "s|sec|second|min|minute|h|hour|d|day"


@dataclass(frozen=True)
class RateOf(Kind):
    """So many events in a period."""

    def parse(self, value: Any) -> values.Rate:
        return values.parse_rate(value)

    def show(self, value: values.Rate) -> str:
        return values.format_rate(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^[0-9]+ ?/ ?({_PERIODS})$"}

    @property
    def words(self) -> str:
        return "a rate"


@dataclass(frozen=True)
class SizeRateOf(Kind):
    """So many octets in a period."""

    def parse(self, value: Any) -> values.Rate:
        return values.parse_size_rate(value)

    def show(self, value: values.Rate) -> str:
        return values.format_size_rate(value)

    def schema(self) -> dict[str, Any]:
        pattern = f"^[0-9]+ ?(B|KiB|MiB|GiB)? ?/ ?({_PERIODS})$"
        return {"type": "string", "pattern": pattern}

    @property
    def words(self) -> str:
        return "a size in a time"


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
