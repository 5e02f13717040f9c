"""Prints docs/reference/wire.md: ``python -m reference.wire``, as scripts/docs does."""

from __future__ import annotations

import sys
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from preforkmx.protocol import commands, domains, dsn, framing, paths, proxy, replies, sasl, xclient
from preforkmx.protocol.extensions import keywords
from preforkmx.protocol.settings import Settings
from preforkmx.session import answers, reception, session
from reference import states
from reference.catalogue import catalogue
from reference.refusals import refusals, repeated
from reference.words import KEYWORDS, MAKERS, PASSED_ON, REFUSALS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from preforkmx.protocol.replies import Reply
    from reference.refusals import Refusal

_TEMPLATE = Path(__file__).with_name("wire.template.md")


def wire() -> str:
    """Return the page as Markdown."""
    parts = {
        "table": states.table(),
        "in_lmtp": states.in_lmtp(),
        "states": states.states(),
        "diagram": states.diagram(),
        "keywords": _keywords(),
        "replies": _replies(),
        "refusals": _refusals(),
        "makers": _makers(),
        "bounds": _bounds(),
    }
    template = Template(_TEMPLATE.read_text("utf-8"))
    return template.substitute({name: "\n".join(lines) for name, lines in parts.items()})


def offered() -> dict[str, str]:
    """Return every EHLO keyword that there is, in its order, with an example of the whole line."""
    # All that settings can bring; STARTTLS is the one that TLS takes away.
    settings = Settings(
        hostname="mx.example.com",
        message_size=26_214_400,
        recipients=1000,
        transactions=100,
        starttls=True,
        auth=True,
        allow_insecure_auth=True,
        chunking=True,
        binarymime=True,
        smtputf8=True,
        dsn=True,
        requiretls=True,
    )
    plain = keywords(settings, tls=False, xclient=True)
    lines = keywords(settings, tls=True, xclient=True)
    for place, line in enumerate(plain):
        if line not in lines:
            lines.insert(place, line)
    return {line.partition(" ")[0]: line for line in lines}


def written(refusal: Refusal) -> str:
    """Return an SMTPError as the client sees it."""
    return f"{refusal.code} {'.'.join(map(str, refusal.enhanced))} {refusal.text}"


def _keywords() -> Iterator[str]:
    yield "| keyword | for example | defined by | offered |"
    yield "|---|---|---|---|"
    for keyword, line in offered().items():
        defined, when = KEYWORDS[keyword]
        yield f"| {keyword} | `{line}` | {defined} | {when} |"


def _replies() -> Iterator[str]:
    for heading, rows in catalogue().items():
        yield f"### {heading[0].upper()}{heading[1:]}\n"
        yield "| name | code | enhanced | text | | when |"
        yield "|---|---|---|---|---|---|"
        for name, reply, when in rows:
            anchor = f'<a id="{name.lower()}"></a>'
            yield f"| {anchor}{name} | {_reply(reply)} | {when} |"
        yield ""


def _reply(reply: Reply) -> str:
    enhanced = ".".join(map(str, reply.enhanced)) if reply.enhanced else ""
    text = "<br>".join(f"`{line}`" for line in reply.lines if line)
    return f"{reply.code} | {enhanced} | {text} | {'closes' if reply.close else ''}"


def _refusals() -> Iterator[str]:
    yield "| from | code | enhanced | text | | when |"
    yield "|---|---|---|---|---|---|"
    for refusal in refusals():
        module, code, enhanced, text, close = refusal
        yield (
            f"| {_source(module)} | {code} | {'.'.join(map(str, enhanced))} | `{text}` "
            f"| {'closes' if close else ''} | {REFUSALS[module, written(refusal)]} |"
        )
    for module, name in repeated():
        yield f"| {_source(module)} | | | [{name}](#{name.lower()}) | | |"


def _makers() -> Iterator[str]:
    for module, said in {**MAKERS, **PASSED_ON}.items():
        yield f"- {said} ({_source(module)})"


def _source(module: str) -> str:
    return f"[{module.removesuffix('.py')}](../../preforkmx/{module})"


def _bounds() -> Iterator[str]:
    line, skip = framing.LINE_LIMIT, framing.SKIP_LIMIT
    rows = [
        ("command line, CRLF included", _octets(line), _link("LINE_TOO_LONG")),
        (
            "line without an end",
            f"{skip:,} octets beyond its limit",
            _link("LINE_ENDLESS"),
        ),
        ("AUTH response, CRLF included", _octets(sasl.RESPONSE_LIMIT), _link("AUTH_TOO_LONG")),
        ("name in HELO, EHLO, LHLO", _octets(commands.MAX_HELLO_NAME), _link("HELLO_SYNTAX")),
        (
            "local part of an address",
            _octets(paths.MAX_LOCAL_PART),
            f"{_link('SENDER_TOO_LONG')}, {_link('RECIPIENT_TOO_LONG')}",
        ),
        (
            "domain of an address",
            f"{_octets(domains.MAX_DOMAIN)} in ASCII",
            f"{_link('SENDER_TOO_LONG')}, {_link('RECIPIENT_TOO_LONG')}",
        ),
        ("ENVID of MAIL", f"{dsn.MAX_ENVID} characters", _link("BAD_PARAMETER")),
        ("ORCPT of RCPT", f"{dsn.MAX_ORCPT} characters", _link("BAD_PARAMETER")),
        ("value in XCLIENT, decoded", _octets(xclient.MAX_VALUE), _link("XCLIENT_SYNTAX")),
        ("message", "`message_size`", _link("TOO_LARGE")),
        ("message that is refused", "twice `message_size`", _link("TOO_LARGE_TO_READ")),
        ("line of a reply, CRLF included", _octets(replies.LINE_LIMIT), "goes on in another line"),
        (
            "recipients that one reply names",
            f"{answers.MAX_NAMED}",
            "the others are counted",
        ),
        ("PROXY header, version 1", _octets(proxy.V1_LIMIT), "closed without a reply"),
        (
            "PROXY header, version 2",
            f"{proxy.V2_LIMIT:,} octets behind its first 16",
            "closed without a reply",
        ),
        ("PROXY header", f"{reception.PROXY_HEADER_SECONDS:g} s", "closed without a reply"),
        ("TLS handshake", f"{session.TLS_HANDSHAKE_SECONDS:g} s", "closed without a reply"),
        (
            "silence, when the worker is nearly full",
            f"{reception.CROWDED_SECONDS:g} s instead of `command_timeout`",
            _link("TIMED_OUT"),
        ),
    ]
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _octets(count: int) -> str:
    return f"{count:,} octets"


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


if __name__ == "__main__":
    sys.stdout.write(wire())
