"""Finds the line of every key in a TOML document.

:mod:`tomllib` reads values and keeps no lines, and an operator needs them. This scanner knows
just enough of TOML 1.0 to follow keys: it is meant for text that :func:`tomllib.loads` has
accepted, and judges nothing.
"""

from __future__ import annotations

import tomllib

Path = tuple[str | int, ...]
"""Where a value is: keys, and indices (from 0) into arrays."""


def key_lines(text: str) -> dict[Path, int]:
    """Return the line, from 1, on which each key, table and array element begins.

    A table that several headers share has the line of the first of them. An array of tables
    has an entry for itself and one for each of its tables.
    """
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._counted = 0
        self._line = 1
        self._lines: dict[Path, int] = {}
        self._elements: dict[Path, int] = {}
        """How many tables each array of tables has so far."""

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        while self._skip_blank():
            if self._peek() == "[":
                table = self._header()
            else:
                self._pair(table)
        return self._lines

    def _header(self) -> Path:
        line = self._line_here()
        in_array = self._text.startswith("[[", self._at)
        self._at += 2 if in_array else 1
        *parents, last = self._key()
        self._at += 2 if in_array else 1
        table: Path = ()
        for part in parents:
            table = self._enter((*table, part), line)
        if not in_array:
            return self._enter((*table, last), line)
        array = (*table, last)
        index = self._elements.get(array, 0)
        self._elements[array] = index + 1
        self._note(array, line)
        self._note((*array, index), line)
        return (*array, index)

    def _enter(self, table: Path, line: int) -> Path:
        """Note `table`, and return it, or its newest element where it is an array of tables."""
        self._note(table, line)
        count = self._elements.get(table)
        return table if count is None else (*table, count - 1)

    def _pair(self, table: Path) -> None:
        line = self._line_here()
        path = table
        for part in self._key():
            path = (*path, part)
            self._note(path, line)
        self._at += 1  # "="
        self._skip_space()
        self._value(path)

    def _key(self) -> list[str]:
        """Read a bare, quoted or dotted key up to the "=" or "]" behind it."""
        parts: list[str] = []
        while True:
            self._skip_space()
            start = self._at
            quote = self._peek()
            if quote in ('"', "'"):
                self._string()
                parts.append(tomllib.loads(f"key = {self._text[start : self._at]}")["key"])
            else:
                while self._peek() not in ("", ".", "=", "]", " ", "\t", "\n"):
                    self._at += 1
                parts.append(self._text[start : self._at])
            self._skip_space()
            if self._peek() != ".":
                return parts
            self._at += 1

    def _value(self, path: Path) -> None:
        first = self._peek()
        if first in ('"', "'"):
            self._string()
        elif first == "[":
            self._array(path)
        elif first == "{":
            self._inline_table(path)
        else:
            while self._peek() not in ("", ",", "]", "}", "#", "\n"):
                self._at += 1

    def _array(self, path: Path) -> None:
        self._at += 1
        index = 0
        while self._skip_blank() and self._peek() != "]":
            if self._peek() == ",":
                self._at += 1
                continue
            self._note((*path, index), self._line_here())
            self._value((*path, index))
            index += 1
        self._at += 1

    def _inline_table(self, path: Path) -> None:
        self._at += 1
        while self._skip_blank() and self._peek() != "}":
            if self._peek() == ",":
                self._at += 1
                continue
            self._pair(path)
        self._at += 1

    def _string(self) -> None:
        quote = self._text[self._at]
        several = self._text.startswith(quote * 3, self._at)
        end = quote * 3 if several else quote
        self._at += len(end)
        while self._at < len(self._text):
            if quote == '"' and self._text[self._at] == "\\":
                self._at += 2
            elif self._text.startswith(end, self._at):
                self._at += len(end)
                # Up to two quotation marks may stand right before the closing three.
                while several and self._peek() == quote:
                    self._at += 1
                return
            else:
                self._at += 1

    def _skip_blank(self) -> bool:
        """Skip white space, line ends and comments; return False at the end of the text."""
        while self._at < len(self._text):
            char = self._text[self._at]
            if char == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            elif char in " \t\r\n":
                self._at += 1
            else:
                return True
        return False

    def _skip_space(self) -> None:
        while self._peek() in (" ", "\t"):
            self._at += 1

    def _peek(self) -> str:
        """Return the character at the position, ``""`` at the end of the text."""
        return self._text[self._at : self._at + 1]

    def _note(self, path: Path, line: int) -> None:
        self._lines.setdefault(path, line)

    def _line_here(self) -> int:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line
