"""Documents: frozen dataclasses as JSON and back, every value checked against its field's type.

What may stand in a field: ``int``, ``float``, ``str``, ``bool``, ``None``, a ``Literal``, an IP
network, another dataclass, a tuple of any length of these, and a union of them.
"""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from ipaddress import IPv4Network, IPv6Network
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

_T = TypeVar("_T")


class BadDocument(ValueError):
    """A document is not what was asked for; the text says where."""


def render(document: object) -> bytes:
    """Return a dataclass as JSON."""
    # ASCII: a path with octets that are no UTF-8 has surrogates, which JSON can escape.
    return json.dumps(_plain(document)).encode("ascii")


def parse(kind: type[_T], octets: bytes) -> _T:
    """Return the dataclass that :func:`render` has written.

    A key that is missing gets the field's default. One that `kind` does not have is refused:
    what it says would be lost.

    :raises BadDocument: it is none of this kind.
    """
    try:
        value = json.loads(octets)
    except (ValueError, RecursionError) as error:
        raise BadDocument(f"it is not JSON: {error}") from None
    built: _T = _build(kind, value, "")
    return built


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, IPv4Network | IPv6Network):
        return str(value)
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _build(kind: Any, value: Any, place: str) -> Any:
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, place)
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(place, "a list", value)
        (item, _) = get_args(kind)
        return tuple(_build(item, each, f"{place}[{at}]") for at, each in enumerate(value))
    if origin in (Union, UnionType):
        return _one_of(get_args(kind), value, place)
    if origin is Literal:
        if type(value) is not str or value not in get_args(kind):
            raise _wrong(place, f"one of {get_args(kind)}", value)
        return value
    if kind in (IPv4Network, IPv6Network):
        try:
            return kind(value)
        except ValueError:
            raise _wrong(place, "a network", value) from None
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise _wrong(place, kind.__name__, value)
    return value


def _one_of(kinds: tuple[Any, ...], value: Any, place: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    problems = []
    for kind in kinds:
        try:
            return _build(kind, value, place)
        except BadDocument as error:
            problems.append(error)
    # The first is what it would be if it were there; None is the last one.
    raise problems[0]


def _dataclass(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(place, "an object", value)
    hints = _hints(kind)
    values = {}
    for name, item in value.items():
        if name not in hints:
            raise BadDocument(f"{_path(place, name)} is not known to this version")
        values[name] = _build(hints[name], item, _path(place, name))
    for field in dataclasses.fields(kind):
        if field.name not in values and field.default is dataclasses.MISSING:
            raise BadDocument(f"{_path(place, field.name)} is missing")
    try:
        return kind(**values)
    except ValueError as error:
        raise BadDocument(f"{place or 'the document'}: {error}") from None


def _path(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _wrong(place: str, what: str, value: object) -> BadDocument:
    return BadDocument(f"{place or 'the document'} is not {what}: {value!r:.80}")
