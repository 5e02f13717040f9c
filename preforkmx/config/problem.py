"""A problem in the configuration, and where the value came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from preforkmx.config.toml import dotted, excerpt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from preforkmx.config.keys import Path

_NOTHING = object()


class Problem(NamedTuple):
    """One thing that is wrong."""

    path: Path
    """The value that is wrong; ``()`` is the whole configuration."""
    message: str
    """What it must be."""
    hint: str = ""
    """What the operator may have meant."""
    value: Any = _NOTHING
    """What it is, in TOML's types; left out where nothing was given."""

    def render(self, sources: Sources) -> str:
        """Return ``file:line: section.key: message (got VALUE; hint)``."""
        notes = [] if self.value is _NOTHING else [f"got {excerpt(self.path, self.value)}"]
        if self.hint:
            notes.append(self.hint)
        where = f"{sources.place(self.path)}: "
        what = f"{dotted(self.path)}: " if self.path else ""
        return f"{where}{what}{self.message}" + (f" ({'; '.join(notes)})" if notes else "")


class Sources(NamedTuple):
    """Where each value came from."""

    name: str
    """The file's name as it was given, or what stands for it."""
    lines: Mapping[Path, int]
    """The line of each key in the file."""
    variables: Mapping[Path, str]
    """The environment variable that gave each of these values."""

    def place(self, path: Path) -> str:
        """Return the environment variable, ``file:line``, or the file that gave the value.

        A value that is not there is placed where the table is that should have it.
        """
        if not path:
            return self.name
        for end in range(len(path), 0, -1):
            if variable := self.variables.get(path[:end]):
                return variable
            if line := self.lines.get(path[:end]):
                return f"{self.name}:{line}"
        inside = (name for each, name in self.variables.items() if each[: len(path)] == path)
        return next(inside, self.name)

    def origin(self, path: Path) -> str | None:
        """Return what gave exactly this value, or None where it is the default."""
        for end in range(len(path), 0, -1):
            if variable := self.variables.get(path[:end]):
                return f"environment variable {variable}"
        line = self.lines.get(path)
        return None if line is None else f"{self.name}:{line}"

    def line(self, path: Path) -> int:
        """Return the line to sort a problem by; 0 where there is none."""
        for end in range(len(path), 0, -1):
            if line := self.lines.get(path[:end]):
                return line
        return 0
