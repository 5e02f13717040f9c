"""``preforkmx explain``: what would become of a message, and who decides it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import traceback
from email.utils import formatdate
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import click

from preforkmx.app.explain import HookDidNotBoot, Trial
from preforkmx.app.explain import explain as run
from preforkmx.app.site import Site, load_configuration
from preforkmx.app.tls import make_context
from preforkmx.cli.common import (
    Exit,
    app_option,
    config_option,
    configuration_path,
    leave,
    refuses_bad_configurations,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from preforkmx.app.explain import Explanation
    from preforkmx.app.explain_steps import Phase, Step
    from preforkmx.model import IPAddress

BOOT_FAILED = 3
"""The exit status of ``serve`` too, where a worker cannot start."""
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _address(_ctx: click.Context, _param: click.Parameter, value: str) -> IPAddress:
    try:
        return ip_address(value.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise click.BadParameter(f"{value} is not an IPv4 or IPv6 address") from None


def _one_line(_ctx: click.Context, _param: click.Parameter, value: Any) -> Any:
    for each in value if isinstance(value, tuple) else (value or "",):
        if "\r" in each or "\n" in each:
            raise click.BadParameter("it is one line")
    return value


@click.command("explain")
@click.option("--ip", "address", required=True, metavar="ADDRESS", callback=_address)
@click.option("--helo", required=True, metavar="NAME", callback=_one_line, help="Its HELO name.")
@click.option(
    "--from",
    "sender",
    required=True,
    metavar="ADDRESS",
    callback=_one_line,
    help='The reverse path; "" is the null one.',
)
@click.option(
    "--rcpt",
    "recipients",
    required=True,
    multiple=True,
    metavar="ADDRESS",
    callback=_one_line,
    help="A forward path; may be given several times.",
)
@click.option("--tls", is_flag=True, help="The client uses STARTTLS.")
@click.option("--user", callback=_one_line, help="The client authenticates with AUTH as USER.")
@click.option("--known", is_flag=True, help="The greylist knows the client.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.argument("file", type=click.File("rb"), required=False)
@config_option
@app_option
@refuses_bad_configurations
def explain(  # noqa: PLR0917 - click gives them by name
    address: IPAddress,
    helo: str,
    sender: str,
    recipients: tuple[str, ...],
    tls: bool,  # noqa: FBT001 - click's
    user: str | None,
    known: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
    file: Any,
    path: Path | None,
    app: str | None,
) -> None:
    """Run a message through the chain without delivering it, and print who says what.

    FILE is the message, - standard input; without it a small one. The hooks are the configured
    ones, with the configured resolver and next hop; the store is looked at and not charged. Exit
    status: 0 it would be accepted for everybody, 1 it would be refused or deferred, 2 the
    configuration is wrong, 3 a hook could not start.
    """
    message = _default(sender, recipients) if file is None else _with_crlf(file.read())
    trial = Trial(
        address=address,
        helo=helo,
        sender=sender,
        recipients=recipients,
        message=message,
        tls=tls,
        user=user,
        known=known,
    )
    site = _site(configuration_path(path), app)
    try:
        found = asyncio.run(run(site, trial))
    except HookDidNotBoot as error:
        click.echo("".join(traceback.format_exception(error.__cause__)), err=True, nl=False)
        click.echo(f"{error}: a worker would not boot", err=True)
        sys.exit(BOOT_FAILED)
    if as_json:
        click.echo(json.dumps(_document(found), indent=2))
    else:
        for line in _lines(found):
            click.echo(_CONTROLS.sub("?", line))
    if found.verdict != "accepted":
        leave(Exit.FAILED)


def _site(path: Path | None, app: str | None) -> Site:
    if path is not None:
        return Site.read(path, app, os.environ)
    # The demo makes its certificate when it starts: there may be none yet.
    loaded = load_configuration(None, app, os.environ, files=False)
    tls = loaded.config.tls
    there = tls is not None and tls.certificate.exists() and tls.key.exists()
    return Site(loaded, app, make_context(tls) if tls is not None and there else None)


def _default(sender: str, recipients: tuple[str, ...]) -> bytes:
    lines = (
        f"From: <{sender or 'postmaster@localhost'}>",
        f"To: {', '.join(f'<{each}>' for each in recipients)}",
        "Subject: What would become of this?",
        f"Date: {formatdate()}",
        "Message-ID: <explain@localhost>",
        "",
        "A message that preforkmx explain made up.",
        "",
    )
    return "\r\n".join(lines).encode()


def _with_crlf(octets: bytes) -> bytes:
    """Return a message as it goes over the wire; one with any CRLF stays as it is."""
    return octets if b"\r\n" in octets else octets.replace(b"\n", b"\r\n")


# --- for people ---------------------------------------------------------------------------------


def _lines(found: Explanation) -> Iterator[str]:
    width = max(
        (len(name) for phase in found.phases for name in _names(phase)),
        default=0,
    )
    for phase in found.phases:
        yield f"{phase.name} {phase.subject}".rstrip()
        for step in phase.steps:
            yield from _step_lines(step, width)
        for name in phase.not_asked:
            yield f"  {name:<{width}}  not asked"
        yield f"  => {_reply(phase)}"
        yield ""
    for note in found.notes:
        yield f"note: {note}"
    yield from (f"log: {line}" for line in found.log)
    by = found.final.by
    taken = sum(phase.name == "RCPT" and phase.code < 300 for phase in found.phases)
    asked = sum(phase.name == "RCPT" for phase in found.phases)
    what = f"accepted for {taken} of {asked}" if found.verdict == "partly" else found.verdict
    yield f"{what}{f' by {by}' if by else ''}: {_reply(found.final)}"


def _names(phase: Phase) -> Iterator[str]:
    yield from (step.name for step in phase.steps)
    yield from phase.not_asked


def _reply(phase: Phase) -> str:
    if not phase.code:
        return "the connection is closed without a reply"
    more = (
        f" (and {len(phase.lines) - 1} lines)" if phase.name == "HELO" and phase.lines[1:] else ""
    )
    return f"{phase.code} {phase.lines[0]}{more}" if more else phase.reply


def _step_lines(step: Step, width: int) -> Iterator[str]:
    said = {"refuses": step.reply, "crashes": "crashes", "passes": "passes"}[step.verdict]
    said = "; ".join((said, *step.effects))
    yield f"  {step.name:<{width}}  {said}  ({step.seconds * 1000:.1f} ms)"
    indent = " " * (width + 6)
    yield from (f"{indent}{text}" for text in step.why)
    yield from (f"{indent}{line}" for line in step.stack.splitlines())


# --- for programs -------------------------------------------------------------------------------


def _document(found: Explanation) -> dict[str, Any]:
    delivered = found.delivered
    return {
        "verdict": found.verdict,
        "by": found.final.by,
        "reply": found.final.reply,
        "phases": [_phase(phase) for phase in found.phases],
        "delivery": None
        if delivered is None
        else {
            "name": delivered.name,
            "sender": delivered.sender,
            "recipients": list(delivered.recipients),
            "size": delivered.size,
        },
        "notes": found.notes,
        "log": found.log,
    }


def _phase(phase: Phase) -> dict[str, Any]:
    return {
        "phase": phase.name.lower(),
        "subject": phase.subject,
        "hooks": [
            {
                "name": step.name,
                "hook": step.phase,
                "verdict": step.verdict,
                "reply": step.reply,
                "effects": step.effects,
                "why": step.why,
                "stack": step.stack,
                "ms": round(step.seconds * 1000, 3),
            }
            for step in phase.steps
        ],
        "not_asked": phase.not_asked,
        "code": phase.code,
        "reply": phase.reply,
    }
