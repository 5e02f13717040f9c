"""``preforkmx upgrade``: let a new version of this program take over, in the same process."""

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
def upgrade(path: Path | None, control: Path | None) -> None:
    """Execute the installed version in place of the running one.

    The master keeps its process id, its sockets and what is queued in them. The new program is
    tried first; then new workers take over as in a reload. Returns when they serve. Exit
    status: 0 done, 2 refused (every reason is printed, and the old program goes on), 5 not
    running.
    """
    with Control(control_path(path, control)) as server:
        answer = server.ask("upgrade", RELOAD_SECONDS)
    if not answer.get("ok"):
        leave(Exit.CONFIGURATION, "the upgrade is refused:", *answer.get("problems", ()))
    click.echo(f"version {answer.get('version')}: generation {answer.get('generation')} serves")
