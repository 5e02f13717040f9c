"""Authentication-Results that a message brings along under this server's name: taken out.

RFC 8601 section 5: whoever adds the field removes those that claim to be his own before. The
filter is a stream: it holds a field back while it cannot tell whose it is, a few octets of the
header otherwise, and nothing of the body, which passes as it is.

A message with BODY=BINARYMIME may hold CR and LF that stand alone. Some who read it take them for
line ends and some do not, and neither may find a forged field: a field begins behind either of
them, and the header ends only where it does for everybody, at an empty line between CRLFs.

Lines that begin with a space or a tab and stand in front of any field are taken out as well: they
would continue the field that this server adds in front of the message.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from preforkmx.body import MessageStream
from preforkmx.middleware.addresses import comparable_domain

if TYPE_CHECKING:
    from collections.abc import Iterable

LONGEST_HELD: Final = 8192
"""Octets of one Authentication-Results field that are held back until it is known whose it is. A
field that does not say so within them is taken out."""

MOST_FIELDS: Final = 100
"""Authentication-Results fields of one message that are looked at. The others are taken out."""

_NAME: Final = b"authentication-results"
#: What matters in a header: the field's name at the beginning of a line, with what may follow it
#: (the colon, or the white space before it of RFC 5322 section 4.5), or the header's end. It begins
#: with a set of octets, which is what is searched for quickly.
_NEXT: Final = re.compile(
    rb"[\r\n](?:(?P<name>authentication-results)(?=[ \t\r\n:])|(?<=\r\n)\r\n)", re.IGNORECASE
)
#: What is known of the octets that have passed: less than the end of a header.
_LOOK_BACK: Final = 3
#: What is held back of a header so that nothing that matters is cut in two.
_HELD: Final = 1 + len(_NAME)
#: A line end behind which the field does not go on: no space or tab follows it.
_FIELD_END: Final = re.compile(rb"(?:\r\n|\r(?!\n)|\n)(?=[^ \t])")
_BARE: Final = re.compile(rb"\r(?!\n)|(?<!\r)\n")

#: token of RFC 2045 section 5.1, with what RFC 8616 section 5 adds.
_TOKEN: Final = re.compile(rb"[^\x00-\x20\x7f()<>@,;:\\\"/\[\]?=]+")
_QUOTED: Final = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPED: Final = re.compile(rb"\\(.)", re.DOTALL)
_SPACE: Final = re.compile(rb"[ \t\r\n]*")
_COMMENT_PIECE: Final = re.compile(rb"[^()\\]+|\\.|[()]", re.DOTALL)
_DIGITS: Final = re.compile(rb"[0-9]+")


def comparable_id(text: str) -> str:
    """Return what two spellings of an authserv-id have in common."""
    return comparable_domain(text.rstrip("."))


class ForgedResults:
    """Takes the fields out of a message that passes, octets in and octets out.

    :param ids: authserv-ids (RFC 8601 section 2.5) that nobody but this server may use.
    """

    def __init__(self, ids: Iterable[str]) -> None:
        self._ids = frozenset(map(comparable_id, ids))
        # The message begins at the beginning of a line.
        self._before = b"\r\n"
        self._held = b""
        self._fields = 0
        self._begun = False
        self._taking_out = False
        self.passed_header = False
        """The header is over: whatever comes passes, and need not be fed any more."""

    def feed(self, octets: bytes) -> bytes:
        """Take what came, and return what passes."""
        if self.passed_header:
            return octets
        if octets and not self._begun:
            # What continues nothing would continue the field that is put in front of it.
            self._begun, self._taking_out = True, octets[:1] in (b" ", b"\t")
        return self._look_through(octets, whole=False)

    def end(self) -> bytes:
        """The message is over: return what was held back of it."""
        return b"" if self.passed_header else self._look_through(b"", whole=True)

    def _look_through(self, octets: bytes, *, whole: bool) -> bytes:
        passing: list[bytes] = []
        octets = self._before + self._held + octets
        # What is in front of `at` has passed, or was taken out.
        at = len(self._before)
        search_from = 0
        while True:
            if self._taking_out:
                end = _FIELD_END.search(octets, at)
                if end is None:
                    self._held = b"" if whole else _undecided(octets[at:])
                    break
                self._taking_out = False
                at = end.end()
                search_from = at - 1
                if octets[at : at + 1] in (b"", b"\r"):
                    # The header may end with what now stands in front of it.
                    octets = self._before + octets[at:]
                    at, search_from = len(self._before), 0
            found = _NEXT.search(octets, search_from)
            if found is None:
                cut = len(octets) if whole else max(at, len(octets) - _HELD)
                self._pass(passing, octets[at:cut])
                self._held = octets[cut:]
                break
            if found["name"] is None:
                self.passed_header = True
                self._held = b""
                passing.append(octets[at:])
                break
            begin = found.start("name")
            self._pass(passing, octets[at:begin])
            at = begin
            end = _FIELD_END.search(octets, at)
            if end is None and len(octets) - at < LONGEST_HELD and not whole:
                self._held = octets[at:]
                break
            field = octets[at : min(at + LONGEST_HELD, end.end() if end else len(octets))]
            if len(field) == LONGEST_HELD:
                # A line feed may follow.
                field = field.removesuffix(b"\r")
            self._fields += 1
            if self._fields > MOST_FIELDS or self._is_forged(field):
                self._taking_out = True
            else:
                # Behind its name nothing of it can be taken for another one's beginning.
                self._pass(passing, octets[at : at + len(_NAME)])
                at = search_from = at + len(_NAME)
        return b"".join(passing)

    def _pass(self, passing: list[bytes], octets: bytes) -> None:
        if octets:
            passing.append(octets)
            self._before = (self._before + octets[-_LOOK_BACK:])[-_LOOK_BACK:]

    def _is_forged(self, field: bytes) -> bool:
        """Say whether a field is one of this server's, or may look like one to anybody.

        :param field: the whole of it with its line end, or its first :data:`LONGEST_HELD` octets.
        """
        if _BARE.search(field):
            return True
        at = _SPACE.match(field, len(_NAME)).end()  # type: ignore[union-attr]
        if field[at : at + 1] != b":":
            return True
        at = _behind_comments(field, at + 1)
        if at < 0:
            return True
        if match := _QUOTED.match(field, at):
            name = _ESCAPED.sub(rb"\1", match[1])
        elif match := _TOKEN.match(field, at):
            name = match[0]
        else:
            return True
        at = _behind_comments(field, match.end())
        if at < 0:
            return True
        # RFC 8601 section 2.2: a version may follow; there is only one, and section 5 takes out
        # what has another.
        if version := _DIGITS.match(field, at):
            at = _behind_comments(field, version.end())
            if version[0] != b"1" or at < 0:
                return True
        if field[at : at + 1] != b";":
            return True
        try:
            return comparable_id(name.decode()) in self._ids
        except UnicodeDecodeError:
            return True


def _undecided(octets: bytes) -> bytes:
    """Return a line end at the end of `octets`: what follows it is not known."""
    if octets.endswith(b"\r\n"):
        return b"\r\n"
    return octets[-1:] if octets.endswith((b"\r", b"\n")) else b""


def _behind_comments(field: bytes, at: int) -> int:
    """Return the index behind white space and comments; -1 when a comment does not end."""
    while True:
        at = _SPACE.match(field, at).end()  # type: ignore[union-attr]
        if field[at : at + 1] != b"(":
            return at
        depth = 0
        while True:
            piece = _COMMENT_PIECE.match(field, at)
            if piece is None:
                return -1
            at = piece.end()
            depth += {b"(": 1, b")": -1}.get(piece[0], 0)
            if depth == 0:
                break


class _Filtered(MessageStream):
    def __init__(self, source: MessageStream, filter_: ForgedResults) -> None:
        self._source = source
        self._filter = filter_
        self._over = False

    async def next_chunk(self) -> bytes:
        while not self._over:
            octets = await self._source.read(1 << 30)
            if self._filter.passed_header:
                return octets
            self._over = not octets
            passing = self._filter.feed(octets) if octets else self._filter.end()
            if passing:
                return passing
        return b""


def without_forged_results(stream: MessageStream, ids: Iterable[str]) -> MessageStream:
    """Return `stream` without the fields that claim to be results of one of `ids`."""
    return _Filtered(stream, ForgedResults(ids))
