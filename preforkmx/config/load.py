"""Reads a configuration: TOML text and the environment in, a Config or every problem out."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from preforkmx.config.environment import apply_environment
from preforkmx.config.keys import key_lines
from preforkmx.config.kinds import kind_of
from preforkmx.config.open_files import most_open_files
from preforkmx.config.problem import Problem, Sources
from preforkmx.config.read import Circumstances, read_tables
from preforkmx.config.rules import RULES
from preforkmx.config.schema import Admin
from preforkmx.config.values import BadValue
from preforkmx.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from preforkmx.config.keys import Path as KeyPath
    from preforkmx.config.schema import Config

LARGEST_FILE = 1 << 20
"""Octets of the largest configuration file that is read."""


class Document(NamedTuple):
    """A configuration as text."""

    text: str
    name: str
    """What problems call it: the file's name as it was given."""
    folder: Path
    """Where its relative paths begin."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration without problems, and where its values came from."""

    config: Config
    raw: dict[str, Any]
    """The values as TOML gave them, with the environment's."""
    sources: Sources

    def problem(self, path: KeyPath, message: str, hint: str = "", **value: Any) -> str:
        """Return the line for a problem that showed itself later, with the value's place."""
        return Problem(path, message, hint, **value).render(self.sources)


def read_document(path: Path) -> Document:
    """Read the configuration file at `path`.

    :raises ConfigError: when it cannot be read or is not UTF-8 text.
    """
    try:
        with path.open("rb") as file:
            octets = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from None
    if len(octets) > LARGEST_FILE:
        raise ConfigError([f"{path}: larger than {LARGEST_FILE} octets"])
    try:
        text = octets.decode()
    except UnicodeDecodeError as error:
        line = octets.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: not UTF-8 text"]) from None
    return Document(text, str(path), path.absolute().parent)


def load(
    document: Document,
    environ: Mapping[str, str],
    *,
    app: bool = False,
    loopback_only: bool = False,
    look_at_files: bool = True,
) -> Loaded:
    """Return the configuration of `document` with the overrides of `environ`.

    :param app: an application gives host name, hooks and handler (``--app``).
    :param loopback_only: nothing but loopback may be listened on (there is no file).
    :param look_at_files: check the files that it names, too.
    :raises ConfigError: with every problem, those of the file in the order of its lines.
    """
    raw, lines = _parse(document)
    variables, problems = apply_environment(raw, environ, document.folder)
    sources = Sources(document.name, lines, variables)
    circumstances = Circumstances(
        app=app,
        loopback_only=loopback_only,
        look_at_files=look_at_files,
        open_files=most_open_files(),
    )
    draft, more = read_tables(raw, document.folder, circumstances)
    problems += more
    for rule in RULES:
        problems += rule(draft)
    if problems:
        problems.sort(key=lambda problem: sources.line(problem.path))
        raise ConfigError([problem.render(sources) for problem in problems])
    return Loaded(draft.config(), raw, sources)


def control_socket(document: Document, environ: Mapping[str, str]) -> Path:
    """Return ``[admin] control`` alone, whatever else is wrong: a running server must be reached.

    :raises ConfigError: when the text is no TOML, or this value is wrong.
    """
    raw, lines = _parse(document)
    variables, _ = apply_environment(raw, environ, document.folder)
    field = Admin.model_fields["control"]
    kind = kind_of(field)
    assert kind is not None
    admin = raw.get("admin")
    value = admin.get("control") if isinstance(admin, dict) else None
    try:
        control: Path = field.default if value is None else kind.read(value, document.folder)
    except BadValue as error:
        problem = Problem(("admin", "control"), error.message, error.hint, value)
        raise ConfigError([problem.render(Sources(document.name, lines, variables))]) from None
    return control


def _parse(document: Document) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    try:
        return tomllib.loads(document.text), key_lines(document.text)
    except RecursionError:
        raise ConfigError([f"{document.name}: arrays or tables nested too deeply"]) from None
    except tomllib.TOMLDecodeError as error:
        place = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", str(error))
        what = str(error)[: place.start()] if place else str(error)
        line = place[1] if place else None
        if line is None:
            line = str(document.text.rstrip().count("\n") + 1)
        column = f" at column {place[2]}" if place and place[2] else ""
        raise ConfigError([f"{document.name}:{line}: TOML syntax: {what}{column}"]) from None
