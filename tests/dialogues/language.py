"""Reads the dialogues of this directory; README.md describes their lines."""

from __future__ import annotations

import base64
import itertools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from preforkmx.errors import SMTPError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ID = b"{id}"
"""In an expected reply: any transaction id."""

PHASES = ("connect", "helo", "mail", "rcpt", "begin", "data", "deliver", "vrfy")

_OPTIONS = {
    "starttls": "starttls",
    "tls": "tls",
    "insecure-auth": "allow_insecure_auth",
    "message-size": "message_size",
    "recipients": "recipients",
    "errors": "errors",
    "auth-failures": "auth_failures",
    "lmtp": "lmtp",
    "xclient": "xclient",
    "smtputf8": "smtputf8",
    "dsn": "dsn",
    "requiretls": "requiretls",
    "hops": "hops",
    "commands": "commands",
    "transactions": "transactions",
    "strict-flights": "strict_flights",
    "chunking": "chunking",
    "bare-newline": "bare_newline",
}
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|(.))|\{([^{}]*)\}", re.DOTALL)
_SIMPLE = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", "\\": b"\\", "{": b"{"}
_HOOK = re.compile(r"hook (\w+)(?: (\S.*?))?: (pass|<.*>|(?:close )?\d{3} .*)")
_REPLY = re.compile(r"(close )?(\d{3}) (?:(\d)\.(\d+)\.(\d+) )?(.*)")


class DialogueError(Exception):
    """The file is not a dialogue."""


@dataclass(slots=True)
class Hook:
    """From here on a phase's hook answers so."""

    phase: str
    argument: str | None
    answer: SMTPError | str | None


@dataclass(slots=True)
class Flight:
    """What the client sends at once, and all that it gets for it."""

    octets: bytes
    replies: list[bytes] = field(default_factory=list)
    closed: bool = False


@dataclass(slots=True)
class Hello:
    """EHLO, HELO or LHLO, whatever the server has to offer."""

    verb: str


@dataclass(slots=True)
class Handshake:
    """The TLS handshake."""


@dataclass(slots=True)
class Hangup:
    """The client closes its side."""


@dataclass(slots=True)
class Message:
    """A message that was delivered."""

    sender: str
    recipients: list[str]
    body: bytes = b""


Step = Hook | Flight | Hello | Handshake | Hangup | Message


@dataclass(slots=True)
class Dialogue:
    """One dialogue, one row of its table filled in."""

    name: str
    steps: list[Step]
    options: dict[str, int | bool | str]
    users: dict[str, str]
    one_segment: bool
    secrets: list[bytes]
    """Everything that was written as ``{base64 …}``, and the users' passwords."""

    def __str__(self) -> str:
        return self.name


def dialogues_in(directory: Path) -> list[Dialogue]:
    """Read every dialogue of `directory`, once for each row of its table."""
    return [
        dialogue
        for path in sorted(directory.glob("*.txt"))
        for dialogue in parse(path.stem, path.read_text(encoding="utf-8"))
    ]


def parse(name: str, text: str) -> list[Dialogue]:
    """Read one file: a dialogue for each row of its table (of two tables: each with each)."""
    tables: list[list[dict[str, str]]] = []
    columns: list[str] = []
    lines: list[tuple[int, str]] = []
    in_table = False
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("for "):
            columns = [column.strip() for column in line[4:].rstrip(":").split("=>")]
            tables.append([])
            in_table = True
        elif in_table and line.startswith("  "):
            row = [value.strip() for value in line.split(" => ")]
            if len(row) != len(columns):
                raise DialogueError(f"{name}:{number}: {len(columns)} columns, {len(row)} values")
            tables[-1].append(dict(zip(columns, row, strict=True)))
        else:
            in_table = False
            lines.append((number, line))
    dialogues = []
    for rows in itertools.product(*tables):
        suffix = "".join(f"[{next(iter(row.values()))}]" for row in rows)
        values = {column: value for row in reversed(rows) for column, value in row.items()}
        dialogues.append(_dialogue(f"{name}{suffix}", lines, values))
    return dialogues


def _dialogue(name: str, lines: list[tuple[int, str]], values: dict[str, str]) -> Dialogue:
    dialogue = Dialogue(name, [], {}, {}, one_segment=False, secrets=[])
    reader = _Reader(dialogue)
    for number, line in lines:
        for variable, value in values.items():
            line = line.replace(variable, value)  # noqa: PLW2901 - the row's values
        try:
            reader.read(line)
        except (DialogueError, LookupError, ValueError) as error:
            raise DialogueError(f"{name}:{number}: {error}: {line}") from error
    return dialogue


class _Reader:
    def __init__(self, dialogue: Dialogue) -> None:
        self._dialogue = dialogue
        self._flight: Flight | None = None
        self._message: Message | None = None
        # The next client line begins another flight.
        self._answered = True

    def read(self, line: str) -> None:
        dialogue = self._dialogue
        if line.startswith(("| ", "> ")) or line == "|":
            if self._message is None:
                raise DialogueError("a line of no message")
            end = b"" if line[0] == ">" else b"\r\n"
            self._message.body += self._octets(line[2:]) + end
            return
        self._message = None
        key, _, rest = line.partition(" ")
        if key == "c:":
            self._send(self._octets(rest) + b"\r\n")
        elif key == "raw:":
            self._send(self._octets(rest))
        elif key == "s:":
            self._expected().replies.append(self._octets(rest) + b"\r\n")
        elif line == "silence":
            self._expected()
        elif line == "closed":
            self._expected().closed = True
        elif key == "set":
            option, _, value = rest.partition(" ")
            dialogue.options[_OPTIONS[option]] = _value(value)
        elif key == "user":
            user, password = map(self._text, rest.split())
            dialogue.users[user] = password
            dialogue.secrets.append(password.encode())
        elif line == "one segment":
            dialogue.one_segment = True
        else:
            self._other(key, line, rest)

    def _other(self, key: str, line: str, rest: str) -> None:
        step: Step
        if key == "hook":
            step = self._hook(line)
        elif line in ("ehlo", "helo", "lhlo"):
            step = Hello(line.upper())
        elif line == "tls":
            step = Handshake()
        elif line == "hangup":
            step = Hangup()
        elif key == "message":
            paths = re.findall(r"<.*?>(?= |$)", rest)
            sender, *recipients = (self._text(path[1:-1]) for path in paths)
            step = self._message = Message(sender, recipients)
        else:
            raise DialogueError("not a line of a dialogue")
        self._dialogue.steps.append(step)
        self._answered = True
        # A dialogue's end of TLS, of a message or of the client is no answer to a flight.
        self._flight = None

    def _send(self, octets: bytes) -> None:
        if self._answered or self._flight is None:
            self._flight = Flight(b"")
            self._dialogue.steps.append(self._flight)
            self._answered = False
        self._flight.octets += octets

    def _expected(self) -> Flight:
        if self._flight is None:
            # The greeting answers nothing.
            self._flight = Flight(b"")
            self._dialogue.steps.append(self._flight)
        self._answered = True
        return self._flight

    def _hook(self, line: str) -> Hook:
        match = _HOOK.fullmatch(line)
        if match is None or match[1] not in PHASES:
            raise DialogueError("not a hook")
        phase, argument, answer = match.groups()
        if argument is not None:
            argument = self._text(argument[1:-1] if argument.startswith("<") else argument)
        if answer == "pass":
            return Hook(phase, argument, None)
        if answer.startswith("<"):
            return Hook(phase, argument, self._text(answer[1:-1]))
        close, code, *enhanced, message = _REPLY.fullmatch(answer).groups()  # type: ignore[union-attr]
        error = SMTPError(
            int(code),
            self._text(message),
            enhanced=tuple(map(int, enhanced)) if enhanced[0] else None,  # type: ignore[arg-type]
            close=bool(close),
        )
        return Hook(phase, argument, error)

    def _text(self, text: str) -> str:
        def replace(match: re.Match[str]) -> str:
            return self._expand(match).decode("utf-8", "surrogateescape")

        return _ESCAPE.sub(replace, text)

    def _octets(self, text: str) -> bytes:
        return self._text(text).encode("utf-8", "surrogateescape")

    def _expand(self, match: re.Match[str]) -> bytes:
        code, simple, braced = match.groups()
        if code is not None:
            return bytes.fromhex(code)
        if simple is not None:
            return _SIMPLE[simple]
        if braced == "id":
            return ID
        if braced == "base64" or braced.startswith("base64 "):
            encoded = base64.b64encode(self._octets(braced[7:]))
            if encoded:
                self._dialogue.secrets.append(encoded)
            return encoded
        unit, star, count = braced.rpartition("*")
        if not star:
            raise DialogueError(f"{{{braced}}} means nothing")
        return self._octets(unit) * int(count)


def _value(text: str) -> int | bool | str:
    """An option's value: a number, ``off``, a word, or none: it is on."""
    if text == "off":
        return False
    return int(text) if text.isdecimal() else text or True


def flights(dialogue: Dialogue) -> Iterator[Flight]:
    """The dialogue's flights in their order."""
    return (step for step in dialogue.steps if isinstance(step, Flight))
