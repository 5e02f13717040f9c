"""``preforkmx reload``: let new workers with the configuration as it is now take over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from preforkmx.cli.common import Exit, control_options, control_path, leave, reaches_a_server
from preforkmx.cli.control import RELOAD_SECONDS, Control

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@control_options
@reaches_a_server
def reload(path: Path | None, control: Path | None) -> None:
    """Reload the configuration and the site's code.

    Returns when every slot has a new worker that serves; the old ones end with their sessions.
    Exit status: 0 done, 2 refused (every reason is printed, and the old workers go on), 5 not
    running.
    """
    with Control(control_path(path, control)) as server:
        answer = server.ask("reload", RELOAD_SECONDS)
    if not answer.get("ok"):
        leave(Exit.CONFIGURATION, "the reload is refused:", *answer.get("problems", ()))
    click.echo(f"generation {answer.get('generation')} serves")
