"""The file of recipients: an address, a whole domain or an alias on each line."""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from preforkmx.errors import ConfigError
from preforkmx.middleware.addresses import comparable, comparable_domain
from preforkmx.middleware.recipients_map import MOST_TARGETS, AliasError, RecipientMap
from preforkmx.protocol.domains import to_ascii
from preforkmx.protocol.paths import PathError, PathTooLong, parse_path, split_mailbox

if TYPE_CHECKING:
    from pathlib import Path

#: Lines that are complained of; so many of them mean that it is another file.
_MOST_PROBLEMS: Final = 100
#: The longest piece of a line that an error repeats, in characters.
_LONGEST_SHOWN: Final = 80

#: One piece of a line: an address, a separator or a comment. A quoted local part and an address
#: literal may hold what ends a piece elsewhere, and "#" begins a comment behind a space only.
_PIECE = re.compile(
    r"""[ \t]*(?:
        (?P<comment>(?:(?<=[ \t])|\A)\#.*)
      | (?P<mark>[:,])
      | (?P<address>(?:"(?:[^"\\]|\\.)*"|[^\s:,"@]+)?@(?:\[[^\]\s]*\]|[^\s:,@]+))
      | (?P<end>\Z)
    )""",
    re.VERBOSE | re.DOTALL,
)


class Line(NamedTuple):
    """What one line of the file says."""

    name: str
    """The :func:`~preforkmx.middleware.addresses.comparable` address, or ``@`` and a domain."""
    targets: tuple[str, ...]
    """Whom its mail goes to; nobody: it has it itself."""


def read_recipients(path: Path, *, separator: str = "+") -> RecipientMap:
    """Read the file at `path`, in UTF-8.

    Each line is one of ``name@example.com`` (a recipient), ``alias@example.com: target@…, …``
    (its mail goes to the targets) and ``@example.com`` or ``@example.com: target@…`` (all
    recipients of the domain that have no line of their own). Empty lines do not count, nor does
    what follows a ``#`` at the beginning or behind a space.

    :param separator: what an extension begins with.
    :raises ConfigError: with everything that is wrong, as ``path:line: …``.
    """
    problems: list[str] = []
    entries: dict[str, tuple[str, ...]] = {}
    lines: dict[str, int] = {}
    try:
        content = _content(path)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    if content is None:
        raise ConfigError([f"{path}: is no regular file"])
    for number, octets in enumerate(content.split(b"\n"), 1):
        try:
            line = parse_line(octets.decode())
        except UnicodeDecodeError:
            problems.append(f"{path}:{number}: is not UTF-8")
            continue
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
            continue
        if line is None:
            continue
        first = lines.setdefault(line.name, number)
        if first != number:
            problems.append(f"{path}:{number}: {line.name} stands in line {first} already")
        else:
            entries[line.name] = line.targets
    if not entries and not problems:
        problems.append(f"{path}: names no recipient")
    try:
        known = RecipientMap(entries, separator=separator)
    except AliasError as error:
        problems += [f"{path}:{lines[name]}: {name} {what}" for name, what in error.problems]
    if problems:
        more = len(problems) - _MOST_PROBLEMS
        raise ConfigError(
            [*problems[:_MOST_PROBLEMS], f"{path}: and {more} more"] if more > 0 else problems
        )
    return known


def parse_line(line: str) -> Line | None:
    """Return what a line says; None: nothing.

    :raises ValueError: it says nothing that can be understood; the text says why.
    """
    line = line.rstrip(" \t\r")
    pieces = _pieces(line)
    if not pieces:
        return None
    name, *rest = pieces
    if name in (":", ","):
        raise ValueError(f'begins with "{name}", and not with an address')
    comparable_name = _name(name)
    if not rest:
        return Line(comparable_name, ())
    if rest[0] != ":":
        raise ValueError(f'has {_shown(rest[0])} where ":" should be')
    targets: dict[str, str] = {}
    expected = True
    for piece in rest[1:]:
        if expected == (piece in (":", ",")):
            what = "an address" if expected else '","'
            raise ValueError(f"has {_shown(piece)} where {what} should be")
        if expected:
            target = _target(piece)
            targets.setdefault(comparable(target), target)
        expected = not expected
    if not targets:
        raise ValueError('has no address behind its ":"')
    if expected:
        raise ValueError('has no address behind its last ","')
    if len(targets) > MOST_TARGETS:
        raise ValueError(f"has more than {MOST_TARGETS} addresses")
    return Line(comparable_name, tuple(targets.values()))


def _pieces(line: str) -> list[str]:
    """Return addresses, colons and commas of a line.

    :raises ValueError: there is something else.
    """
    pieces: list[str] = []
    at = 0
    while True:
        match = _PIECE.match(line, at)
        if match is None:
            raise ValueError(f"has {_shown(line[at:].strip())}, which is no address")
        if match["comment"] is not None or match["end"] is not None:
            return pieces
        pieces.append(match["mark"] or match["address"])
        at = match.end()


def _name(text: str) -> str:
    """Return the name of an entry.

    :raises ValueError: it is neither an address nor ``@`` and a domain.
    """
    if text.startswith("@"):
        return f"@{comparable_domain(_checked('x' + text, text)[2:])}"
    name = comparable(_checked(text, text))
    if name.startswith("@"):
        raise ValueError(f"has an empty local part: {_shown(text)}")
    return name


def _target(text: str) -> str:
    """Return an address that mail can be sent to, its domain in A-labels.

    :raises ValueError: there is none.
    """
    local, domain = split_mailbox(_checked(text, text))
    if not local:
        raise ValueError(f"has {_shown(text)} where mail goes: it takes an address")
    if not local.isascii():
        # Mail without SMTPUTF8 (RFC 6531) is for the alias too, and could not go on.
        raise ValueError(f"sends mail to {_shown(text)}, whose local part is not ASCII")
    if domain.startswith("["):
        return f"{local}@{domain}"
    return f"{local}@{to_ascii(domain)}"


def _checked(address: str, shown: str) -> str:
    if address.startswith("@"):
        raise ValueError(f"has {_shown(shown)} where mail goes: it takes an address")
    try:
        parsed, end = parse_path(f"<{address}>", smtputf8=True)
    except PathTooLong:
        raise ValueError(f"has {_shown(shown)}, which is too long") from None
    except PathError:
        raise ValueError(f"has {_shown(shown)}, which is no address") from None
    if parsed != address or end != len(address) + 2:
        raise ValueError(f"has {_shown(shown)}, which is no address")
    return parsed


def _shown(text: str) -> str:
    return ascii(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…")


def _content(path: Path) -> bytes | None:
    """Return what is in the file; None: it is none."""
    with open(path, "rb", opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return None
        return file.read()


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting: a FIFO would hold up the worker for ever."""
    return os.open(path, flags | os.O_NONBLOCK)
