"""What several verbs share: options, exit statuses, how problems are told."""

from __future__ import annotations

import enum
import os
import sys
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, ParamSpec

import click

from preforkmx.app.demo import demo_document
from preforkmx.cli.control import ControlError, NotRunning
from preforkmx.config.load import control_socket, read_document
from preforkmx.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_P = ParamSpec("_P")

CONFIGURATION = Path("preforkmx.toml")
"""The configuration in the working directory, for commands without ``-c``."""


class Exit(enum.IntEnum):
    """Exit statuses; people's scripts depend on them."""

    OK = 0
    FAILED = 1
    CONFIGURATION = 2
    DRAINING = 4
    NOT_RUNNING = 5


config_option = click.option(
    "-c",
    "--config",
    "path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The configuration; without it ./preforkmx.toml, else the demo.",
)
app_option = click.option(
    "--app",
    metavar="MODULE:OBJECT",
    help="A preforkmx.Server that gives host name, hooks and handler.",
)


def control_options(command: Callable[_P, None]) -> Callable[_P, None]:
    """Give a command the options that name a running server."""
    socket_option = click.option(
        "--control",
        metavar="SOCKET",
        type=click.Path(path_type=Path),
        help="The control socket; without it the configuration's.",
    )
    return config_option(socket_option(command))


def configuration_path(path: Path | None) -> Path | None:
    """Return the configuration file to read; None is the demo."""
    if path is not None:
        return path
    return CONFIGURATION if CONFIGURATION.exists() else None


def control_path(path: Path | None, control: Path | None) -> Path:
    """Return the control socket of the server that a command means.

    Nothing else in the configuration has to be right: a server whose file was broken after its
    start can still be asked and stopped.

    :raises ConfigError: when the configuration does not say.
    """
    if control is not None:
        return control
    found = configuration_path(path)
    document = demo_document(app=False) if found is None else read_document(found)
    try:
        return control_socket(document, os.environ)
    except ConfigError as error:
        hint = "the control socket can be named with --control"
        raise ConfigError([*error.problems, hint]) from None


def tell(problems: Iterable[str]) -> None:
    """Write problems to standard error, one a line."""
    for problem in problems:
        click.echo(problem, err=True)


def leave(status: Exit, *problems: str) -> NoReturn:
    """Tell `problems` and exit."""
    tell(problems)
    sys.exit(status)


def refuses_bad_configurations(command: Callable[_P, None]) -> Callable[_P, None]:
    """Let a command end with every problem and status 2 when it raises ConfigError."""

    @wraps(command)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ConfigError as error:
            leave(Exit.CONFIGURATION, *error.problems)

    return wrapper


def reaches_a_server(command: Callable[_P, None]) -> Callable[_P, None]:
    """Let a command end with status 5 when there is no server, 1 when it cannot be asked."""

    @wraps(command)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ConfigError as error:
            leave(Exit.CONFIGURATION, *error.problems)
        except NotRunning as error:
            leave(Exit.NOT_RUNNING, str(error))
        except ControlError as error:
            leave(Exit.FAILED, str(error))

    return wrapper


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Return the lines of a table: numbers to the right, words to the left."""
    written = [head, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in written) for column in range(len(head))]
    right = [any(isinstance(row[column], int) for row in rows) for column in range(len(head))]
    for row in written:
        cells = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        yield "  ".join(cells).rstrip()
