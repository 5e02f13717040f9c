"""The demo: what ``preforkmx serve`` runs where there is no configuration.

Everything is on loopback, and everything that it writes is below ./preforkmx-data.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preforkmx.config.delivery_tables import Maildir
from preforkmx.config.load import Document
from preforkmx.config.middleware_tables import Greylist

if TYPE_CHECKING:
    from collections.abc import Mapping

    from preforkmx.config.load import Loaded

FOLDER = Path("preforkmx-data")
"""Where everything of the demo is, below the working directory."""
NAME = "the demo"
"""What messages call the demo's configuration."""

_SERVER = """\
[workers]
count = 2
max_sessions = 1000
drain_seconds = 10

[[listener]]
address = "127.0.0.1:2525"

[[listener]]
address = "127.0.0.1:2465"
tls = "implicit"

[tls]
certificate = "preforkmx-data/certificate.pem"
key = "preforkmx-data/key.pem"

[admin]
control = "preforkmx-data/control.sock"

[log]
format = "console"
"""

_SITE = """
[[middleware]]
use = "rate_limit"
connections = "1200/min"
burst = 6000
concurrent = 200

[[middleware]]
use = "preforkmx.app.demo_points:test_points"

[[middleware]]
use = "greylist"
delay = "5s"
exempt_private = false

[delivery]
use = "maildir"
path = "preforkmx-data/mail"
"""


def demo_document(*, app: bool) -> Document:
    """Return the demo's configuration.

    :param app: an application gives the rest: only the server's own tables.
    """
    text = _SERVER if app else f'hostname = "localhost"\ndomains = ["*"]\n\n{_SERVER}{_SITE}'
    return Document(text, NAME, Path.cwd())


def announcement(loaded: Loaded, status: Mapping[str, Any]) -> str:
    """Return what the demo says when it is ready.

    :param status: the status document: the ports are those that the sockets have.
    """
    listeners = status["listeners"]
    how = {"starttls": ", STARTTLS offered", "implicit": ", TLS from the start"}
    lines = [f"preforkmx {status['version']}: there is no preforkmx.toml, so this is the demo.", ""]
    lines += [
        f"  listens on  {listener['address']:<21}  {listener['protocol'].upper()}"
        f"{how.get(listener['tls'], '')}"
        for listener in listeners
    ]
    delivery = loaded.config.delivery
    if isinstance(delivery, Maildir):
        lines.append(f"  mail        {_nearby(delivery.path)}/<domain>/<local part>/new/")
    lines.append(f"  status      {program()} status")
    if status["admin"]["address"]:
        lines.append(f"  metrics     http://{status['admin']['address']}/metrics")
    # An application has its own recipients.
    if delivery is not None:
        lines.append(
            "  try         451@example.com, 550@…, slow@…, data-451@…, crash@… as recipients"
        )
    lines += ["  stop        Control-C", ""]
    plain = [listener for listener in listeners if _takes_plain_smtp(listener)]
    # An application may take mail for nobody that this could name.
    if plain and delivery is not None:
        lines += _paste(plain[0]["address"], loaded)
    return "\n".join(lines) + "\n"


def program() -> str:
    """Return what to type to run this command again."""
    name = Path(sys.argv[0])
    if name.name == "__main__.py":
        return f"{_nearby(Path(sys.executable))} -m preforkmx"
    on_path = shutil.which(name.name)
    if on_path is not None and name.exists() and Path(on_path).samefile(name):
        return name.name
    return _nearby(name)


def _takes_plain_smtp(listener: Mapping[str, Any]) -> bool:
    """Say whether smtplib, and so the line to paste, can talk to it."""
    return (
        listener["protocol"] == "smtp"
        and listener["tls"] != "implicit"
        and not listener["proxy_protocol"]
        and not listener["address"].startswith("unix:")
    )


def _paste(address: str, loaded: Loaded) -> list[str]:
    """Return one line that sends a message, and what will be seen.

    A recipient that is deferred is offered again in the same transaction after the delay, as a
    mail server would on a new connection.
    """
    host, _, port = address.rpartition(":")
    delays = [table.delay for table in loaded.config.middleware if isinstance(table, Greylist)]
    wait = max(delays, default=0.0) + 1
    script = (
        "import smtplib, time; "
        f's = smtplib.SMTP("{host.strip("[]")}", {port}); s.ehlo(); '
        "say = lambda reply: print(reply[0], reply[1].decode()) or reply[0]; "
        'rcpt = lambda: say(s.rcpt("friend@example.com")) == 250; '
        f's.mail("you@example.org"); rcpt() or time.sleep({wait:g}) or rcpt(); '
        r'say(s.data("Subject: Hello\n\nIt works.\n")); s.quit()'
    )
    said = "Paste this line into another terminal to send a message"
    if delays:
        said += f": the first try is\ngreylisted, the second one, {wait:g} s later, is delivered"
    return [f"{said}.", "", f"python3 -c {shlex.quote(script)}", ""]


def _nearby(path: Path) -> str:
    """Return `path` as it can be pasted: relative where it is below the working directory."""
    absolute, here = path.absolute(), Path.cwd()
    if absolute.is_relative_to(here):
        return shlex.quote(f"./{absolute.relative_to(here)}")
    return shlex.quote(str(path))
