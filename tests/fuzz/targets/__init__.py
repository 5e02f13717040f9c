"""The fuzz targets, each a module:

- ``check(data)`` runs one input. It returns a word for what came of it, and an exception of
  whatever kind is a bug.
- ``TOKENS`` are what its inputs are made of.
- ``OUTCOMES`` are the words that the inputs of CI have to bring about.
- ``COUNT`` says how many inputs CI makes.

``corpus/NAME.txt`` has inputs to begin with; what broke a parser once stays there.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

NAMES = ("core", "bdat", "message", "hops", "proxy", "xclient", "sasl", "xtext", "paths", "dns")


class Target(Protocol):
    """A module of this package."""

    TOKENS: tuple[bytes, ...]
    OUTCOMES: AbstractSet[str]
    COUNT: int

    def check(self, data: bytes, /) -> str: ...


def target(name: str) -> Target:
    """Return the target of this name."""
    return cast("Target", importlib.import_module(f"{__name__}.{name}"))
