"""Authentication-Results (RFC 8601): what was found out about a message, in one header field.

A middleware that checks something writes its result into the Context, at any phase::

    return with_result(ctx, Result("spf", "pass", (("smtp.mailfrom", "example.org"),)))

and :func:`authentication_results`, behind it in the chain, writes the field.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from preforkmx.body import prepend
from preforkmx.middleware.base import Middleware
from preforkmx.middleware.forged_results import comparable_id, without_forged_results

if TYPE_CHECKING:
    from collections.abc import Iterable

    from preforkmx.context import Context
    from preforkmx.model import Envelope, Peer

#: Keyword of RFC 5321 section 4.1.2, of which methods and results are made (RFC 8601 section 2.2).
_KEYWORD: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?", re.ASCII)
#: ptype "." property: ``smtp.mailfrom``, ``policy.iprev``.
_PROPERTY: Final = re.compile(r"[A-Za-z0-9-]+\.[A-Za-z0-9_-]+", re.ASCII)
#: What is written without quotes: token of RFC 2045 section 5.1, and ``local@domain``.
_PLAIN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+._`{|}~^-]+(?:@[A-Za-z0-9._-]+)?", re.ASCII)
_QUOTABLE: Final = re.compile(r'(["\\])')
#: What ends a line or moves the text around it, to whoever shows the header.
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
LONGEST_VALUE: Final = 512
"""Octets of a value that are written; more are cut: a line has 998 at most (RFC 5322)."""
#: Where a line is folded, if it can be.
_LINE: Final = 78

_RESULTS: Final = object()


@dataclass(frozen=True, slots=True)
class Result:
    """One result of one method.

    :raises ValueError: method, result or a property's name is none.
    """

    method: str
    """``"spf"``, ``"auth"``, ``"iprev"``: from IANA's registry of methods."""
    result: str
    """``"pass"``, ``"fail"``, ``"none"``, ``"temperror"``: what the method's RFC calls it."""
    properties: tuple[tuple[str, str], ...] = ()
    """What the result is about, each by its type and name: ``("smtp.mailfrom", "example.org")``."""
    reason: str = ""
    """Why, for people; ``""``: not said."""

    def __post_init__(self) -> None:
        for word in (self.method, self.result):
            if not _KEYWORD.fullmatch(word):
                raise ValueError(f"{word!r} is no keyword")
        for name, _ in self.properties:
            if not _PROPERTY.fullmatch(name):
                raise ValueError(f"{name!r} is no property: such as smtp.mailfrom")

    @property
    def subject(self) -> tuple[str, ...]:
        """What it is a result of: of two with the same subject the later one counts."""
        return (self.method, *(name for name, _ in self.properties))

    def words(self, *, utf8: bool = False) -> list[str]:
        """Return it as it stands in the field, without control characters.

        :param utf8: the header may hold UTF-8 (RFC 8616 section 5); else ``?`` stands for what
            is not ASCII.
        """
        words = [f"{self.method}={self.result}"]
        if self.reason:
            words.append(f"reason={_value(self.reason, utf8=utf8)}")
        words += [f"{name}={_value(value, utf8=utf8)}" for name, value in self.properties]
        return words


def with_result(ctx: Context, result: Result) -> Context:
    """Return a Context that also has `result`, in place of one with the same subject.

    A result of the connection stands until it ends. One that depends on the reverse path is set
    at each MAIL, ``none`` included: else the one before would stand for this message too; or is
    taken back with :func:`without_results`.
    """
    others = tuple(each for each in results_of(ctx) if each.subject != result.subject)
    return ctx.with_value(_RESULTS, (*others, result))


def without_results(ctx: Context, method: str) -> Context:
    """Return a Context without any result of `method`."""
    results = results_of(ctx)
    left = tuple(each for each in results if each.method != method)
    return ctx if len(left) == len(results) else ctx.with_value(_RESULTS, left)


def results_of(ctx: Context) -> tuple[Result, ...]:
    """Return the results so far, in the order in which they were set."""
    results: tuple[Result, ...] = ctx.value(_RESULTS, ())
    return results


def authentication_results(authserv_id: str, *, remove: Iterable[str] = ()) -> Middleware:
    """Write one Authentication-Results field in front of each message.

    It has the results of :func:`results_of`, and ``auth=pass`` with the user's name where the
    client authenticated (RFC 8601 section 2.7.4); ``none`` where there is no result. Fields that
    come with the message under the same name are taken out of its header
    (:mod:`~preforkmx.middleware.forged_results`), and so are those of `remove`.

    It stands behind every middleware whose results it writes.

    :param authserv_id: the name under which results are written: a host's, or a domain's for all
        of its hosts (RFC 8601 section 2.5).
    :param remove: more names that nobody else may use here.
    :raises ValueError: the name cannot be one.
    """
    if not _PLAIN.fullmatch(authserv_id) or "@" in authserv_id:
        raise ValueError(f"{authserv_id!r} is no authserv-id: such as mx.example.com")
    own = frozenset(map(comparable_id, (authserv_id, *remove)))

    async def handler(ctx: Context, peer: Peer, envelope: Envelope) -> None:
        results = results_of(ctx)
        if peer.username is not None:
            results = (Result("auth", "pass", (("smtp.auth", peer.username),)), *results)
        field = header_field(authserv_id, results, utf8=envelope.smtputf8)
        envelope.data = prepend(without_forged_results(envelope.data, own), field)

    return Middleware(handler=handler, name="authentication_results")


def header_field(authserv_id: str, results: Iterable[Result], *, utf8: bool = False) -> bytes:
    """Return the field with its CRLF, folded before each result and where its lines are long."""
    lines = [f"Authentication-Results: {authserv_id}"]
    for result in results:
        lines[-1] += ";"
        lines.append("\t")
        for word in result.words(utf8=utf8):
            if len(lines[-1]) > 1 and len(lines[-1]) + len(word) >= _LINE:
                lines.append("\t\t")
            lines[-1] += word if lines[-1].endswith("\t") else f" {word}"
    if len(lines) == 1:
        lines[0] += "; none"
    return ("\r\n".join(lines) + "\r\n").encode()


def _value(text: str, *, utf8: bool) -> str:
    """Return `text` as a value: as it is where it may, else in quotes."""
    text = _UNPRINTABLE.sub("?", text)
    octets = text.encode("utf-8" if utf8 else "ascii", "replace")
    if len(octets) > LONGEST_VALUE:
        octets = octets[: LONGEST_VALUE - 3] + b"..."
    text = octets.decode("utf-8", "ignore")
    if _PLAIN.fullmatch(text):
        return text
    return '"' + _QUOTABLE.sub(r"\\\1", text) + '"'
