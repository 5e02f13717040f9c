"""The three formats of a log line: logfmt, JSON and console.

A line is built from fragments, each a few fields that are already formatted, so that what
stays the same over a session (its id, the peer, the listener) is formatted once.

Nothing that a client sent can begin a line, end one or look like another field: every
character that is not printable (:meth:`str.isprintable`: controls, line and paragraph
separators, bidirectional overrides, lone surrogates) is escaped as JSON does, and so are
quotes and backslashes.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from json.encoder import encode_basestring_ascii
from math import isfinite
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping

Value = str | int | float | bool | None
"""What a field may hold. Numbers keep six decimals; None leaves the field out."""

FormatName = Literal["logfmt", "json", "console"]

MAX_VALUE = 8192
"""The characters of one value that are kept; a longer one is cut and ends with ``…``."""

_KEY = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
_RESERVED = frozenset({"time", "level"})
_MAX_KEYS = 1024


class _Prefixes(dict[str, str]):
    """Key → what stands before its value; each key is checked once.

    Keys are names in this program, a closed set. A caller that made them from data would be
    wrong, and is stopped here before memory is.
    """

    def __init__(self, template: str) -> None:
        super().__init__()
        self._template = template

    def __missing__(self, key: str) -> str:
        if not _KEY.fullmatch(key) or key in _RESERVED:
            raise ValueError(f"{key!r} cannot be the name of a log field")
        if len(self) >= _MAX_KEYS:
            raise ValueError("too many different names of log fields: they are a closed set")
        prefix = self[key] = self._template.format(key)
        return prefix


def _number(value: float) -> str:
    """Return a number that logfmt, JSON and Python read alike; ``null`` if there is none."""
    if isinstance(value, float):
        return repr(round(value, 6)) if isfinite(value) else "null"
    return str(int(value))


def cut(value: str) -> str:
    """Return `value` with at most :data:`MAX_VALUE` characters."""
    return value if len(value) <= MAX_VALUE else value[: MAX_VALUE - 1] + "…"


# What needs no quotes in logfmt: printable ASCII without space, quote, equals, backslash.
_BARE = re.compile(rf"[!#-<>-\[\]-~]{{1,{MAX_VALUE}}}").fullmatch


def _quoted(value: str) -> str:
    """Return a value that may need quotes or escapes in logfmt."""
    value = cut(value)
    if not value.isprintable() or '"' in value or "\\" in value:
        return encode_basestring_ascii(value)
    return f'"{value}"' if " " in value or "=" in value or not value else value


class LineFormat(ABC):
    """One way to write a line."""

    @abstractmethod
    def fragment(self, fields: Mapping[str, Value]) -> str:
        """Return the fields as a piece of a line, ``""`` when every one is None.

        :raises ValueError: for a name that is not ``[a-z][a-z0-9_]*``, or ``time``, ``level``.
        """

    @abstractmethod
    def opening(self, key: str, text: str, fields: Mapping[str, Value]) -> str:
        """Return the piece that says what the line is about, and the fields after it."""

    @abstractmethod
    def line(self, now: float, level: str, rest: str) -> str:
        """Return a line of level `level` at `now` (seconds since the epoch), without its end.

        :param rest: an :meth:`opening` and any number of fragments, joined with ``""``.
        """

    def stack(self, text: str) -> str:
        """Return a stack trace as a piece that must be the line's last."""
        lines = text.rstrip().splitlines()
        # What went wrong stands at the end of a trace, so that is the part that is kept.
        kept = "\n".join(lines)[-MAX_VALUE:]
        return self._stack(kept)

    @abstractmethod
    def _stack(self, text: str) -> str: ...


class _Stamp:
    """RFC 3339 in UTC with milliseconds; the date and time of one second are made once."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def __call__(self, now: float) -> str:
        second = int(now)
        if second != self._second:
            # The text first: a thread that sees the new second then sees its text, too.
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._text, self._second = text, second
            return f"{text}.{int(now * 1000) % 1000:03d}Z"
        return f"{self._text}.{int(now * 1000) % 1000:03d}Z"


class Logfmt(LineFormat):
    """``time=… level=info event=session session=… reason="gone away"``.

    A value stands in quotes, with JSON's escapes, when it is empty or has a space, an equals
    sign, a quote, a backslash or a character that is not printable.
    """

    def __init__(self) -> None:
        self._prefixes = _Prefixes(" {}=")
        self._stamp = _Stamp()

    def fragment(self, fields: Mapping[str, Value]) -> str:
        prefixes = self._prefixes
        pieces = []
        for key, value in fields.items():
            if value is None:
                continue
            if isinstance(value, str):
                text = value if _BARE(value) else _quoted(value)
            elif type(value) is int:
                text = str(value)
            elif value is True:
                text = "true"
            elif value is False:
                text = "false"
            else:
                text = _number(value)
            pieces.append(prefixes[key] + text)
        return "".join(pieces)

    def opening(self, key: str, text: str, fields: Mapping[str, Value]) -> str:
        return self.fragment({key: text, **fields})

    def line(self, now: float, level: str, rest: str) -> str:
        return f"time={self._stamp(now)} level={level}{rest}"

    def _stack(self, text: str) -> str:
        return f" stack={encode_basestring_ascii(text)}"


class JSONLines(LineFormat):
    """``{"time":"…","level":"info","event":"session","session":"…"}``: one object a line."""

    def __init__(self) -> None:
        self._prefixes = _Prefixes(',"{}":')
        self._stamp = _Stamp()

    def fragment(self, fields: Mapping[str, Value]) -> str:
        prefixes = self._prefixes
        pieces = []
        for key, value in fields.items():
            if value is None:
                continue
            if isinstance(value, str):
                if len(value) > MAX_VALUE:
                    value = cut(value)  # noqa: PLW2901
                if not value.isprintable() or '"' in value or "\\" in value:
                    text = encode_basestring_ascii(value)
                else:
                    text = f'"{value}"'
            elif value is True:
                text = "true"
            elif value is False:
                text = "false"
            else:
                text = _number(value)
            pieces.append(prefixes[key] + text)
        return "".join(pieces)

    def opening(self, key: str, text: str, fields: Mapping[str, Value]) -> str:
        return self.fragment({key: text, **fields})

    def line(self, now: float, level: str, rest: str) -> str:
        return f'{{"time":"{self._stamp(now)}","level":"{level}"{rest}}}'

    def _stack(self, text: str) -> str:
        return f',"stack":{encode_basestring_ascii(text)}'


_COLOURS = {"debug": "\x1b[2m", "info": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m"}
_PLAIN = "\x1b[0m"


class Console(LineFormat):
    """For a person: local time, the event or message bare, then the fields as in logfmt.

    :param colour: colour the level; only for a terminal.
    """

    def __init__(self, *, colour: bool = False) -> None:
        self._logfmt = Logfmt()
        self._colour = colour

    def fragment(self, fields: Mapping[str, Value]) -> str:
        return self._logfmt.fragment(fields)

    def opening(self, key: str, text: str, fields: Mapping[str, Value]) -> str:  # noqa: ARG002
        text = cut(text)
        shown = text if text.isprintable() else encode_basestring_ascii(text)[1:-1]
        return f" {shown}{self._logfmt.fragment(fields)}"

    def line(self, now: float, level: str, rest: str) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(now))
        shown = f"{level:<7}"
        if self._colour:
            shown = f"{_COLOURS.get(level, '')}{shown}{_PLAIN}"
        return f"{clock}.{int(now * 1000) % 1000:03d} {shown}{rest}"

    def _stack(self, text: str) -> str:
        # Several lines, indented, so that none of them can be taken for a line of the log.
        return "".join(
            f"\n    {line if line.isprintable() else encode_basestring_ascii(line)[1:-1]}"
            for line in text.splitlines()
        )


def line_format(name: str, *, colour: bool = False) -> LineFormat:
    """Return the format called `name`.

    :param colour: whether a console line may have colours.
    :raises ValueError: for a name that is none of :data:`FormatName`.
    """
    if name == "logfmt":
        return Logfmt()
    if name == "json":
        return JSONLines()
    if name == "console":
        return Console(colour=colour)
    raise ValueError(f"{name!r} is no log format: {', '.join(get_args(FormatName))}")


def origin(process: str) -> dict[str, Value]:
    """Return the field that says which process wrote a line.

    ``"2"``, ``"worker 2"`` and ``"worker-2"`` are ``worker=2``; any other name, ``"master"``
    say, is ``process=master``; ``""`` is no field.
    """
    if not process:
        return {}
    number = process.removeprefix("worker").lstrip(" -")
    if number.isascii() and number.isdigit():
        return {"worker": int(number)}
    return {"process": process}
