"""The file of users: ``name:hash``, one a line."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from preforkmx.errors import ConfigError
from preforkmx.middleware.passwords import MAX_OCTETS, decoy, parse_hash, prepare_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from preforkmx.middleware.passwords import Parameters

#: What others may do with the file, and what its group may not.
_TOO_OPEN: Final = 0o027
#: Lines that are complained of; so many of them mean that it is another file.
_MOST_PROBLEMS: Final = 100


class UserHashes(NamedTuple):
    """Who there is."""

    hashes: Mapping[str, str]
    """The hash of each user's password, by the name as :func:`prepare_name` returns it."""
    decoy: str
    """The hash to verify against for a name that is not there: it takes the same time."""


def read_users(path: Path) -> UserHashes:
    """Read the file at `path`.

    Each line is ``name:hash``, with a hash as :func:`~preforkmx.middleware.passwords.parse_hash`
    takes it. Empty lines, and lines that begin with ``#``, do not count.

    Others must not be able to read it: who has the hashes can guess passwords at leisure. Its
    group may, since that is how a worker without privileges reads a file of root's.

    :raises ConfigError: with everything that is wrong, as ``path:line: …``, and without anything
        that may be a password or a hash.
    """
    problems: list[str] = []
    hashes: dict[str, str] = {}
    costs: Counter[Parameters] = Counter()
    lines: dict[str, int] = {}
    try:
        content = _content(path, problems)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    for number, octets in enumerate(content.split(b"\n"), 1):
        line = octets.strip(b" \t\r")
        if not line or line.startswith(b"#"):
            continue
        name, parameters, text, wrong = _entry(line)
        if name is not None and (first := lines.setdefault(name, number)) != number:
            wrong.append(f"the user of line {first} stands here again")
        problems += [f"{path}:{number}: {each}" for each in wrong]
        if name is not None and parameters is not None and not wrong:
            hashes[name] = text
            costs[parameters] += 1
    if not hashes and not problems:
        problems.append(f"{path}: names no user")
    if problems:
        more = len(problems) - _MOST_PROBLEMS
        raise ConfigError(
            [*problems[:_MOST_PROBLEMS], f"{path}: and {more} more"] if more > 0 else problems
        )
    return UserHashes(hashes, decoy(costs.most_common(1)[0][0]))


def check_name(name: str) -> str:
    """Return the form of `name` that is compared.

    :raises ValueError: it cannot stand in the file, or nobody could type it.
    """
    if not name:
        raise ValueError("the name is empty")
    if len(name.encode(errors="replace")) > MAX_OCTETS:
        raise ValueError(f"the name has more than {MAX_OCTETS} octets")
    # Controls, formats, surrogates, private and unassigned characters, line and paragraph ends.
    if any(unicodedata.category(each)[0] == "C" or each in "\u2028\u2029" for each in name):
        raise ValueError("the name has a character that cannot be seen")
    if name != name.strip():
        raise ValueError("the name begins or ends with a space")
    if ":" in name or name.startswith("#"):
        raise ValueError('the name has a ":", or begins with "#"')
    return prepare_name(name)


def _content(path: Path, problems: list[str]) -> bytes:
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            problems.append(f"{path}: is no regular file")
            return b""
        if status.st_mode & _TOO_OPEN:
            problems.append(
                f"{path}: others can read it, or its group can write it: chmod 640 or 600 "
                f"(it is {stat.S_IMODE(status.st_mode):03o})"
            )
        return file.read()


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting: a FIFO would hold up the worker for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def _entry(line: bytes) -> tuple[str | None, Parameters | None, str, list[str]]:
    """Return the name, what its hash costs, the hash, and what is wrong, without what it says."""
    try:
        name, colon, text = line.decode().partition(":")
    except UnicodeDecodeError:
        return None, None, "", ["is not UTF-8"]
    if not colon:
        return None, None, "", ["must be name:hash"]
    comparable = parameters = None
    wrong = []
    try:
        comparable = check_name(name)
    except ValueError as error:
        wrong.append(str(error))
    try:
        parameters = parse_hash(text)
    except ValueError as error:
        wrong.append(str(error))
    return comparable, parameters, text, wrong
