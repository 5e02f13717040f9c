"""``preforkmx serve``: run in the foreground."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from preforkmx.app.demo import announcement
from preforkmx.app.demo_files import prepare
from preforkmx.app.site import Site
from preforkmx.cli.common import (
    Exit,
    app_option,
    config_option,
    configuration_path,
    leave,
    refuses_bad_configurations,
)
from preforkmx.errors import ConfigError
from preforkmx.master.errors import StartRefused
from preforkmx.master.reexec import Trial, take_handover
from preforkmx.master.supervisor import Master

if TYPE_CHECKING:
    from pathlib import Path

    from preforkmx.master.plan import Plan


@click.command()
@config_option
@app_option
@refuses_bad_configurations
def serve(path: Path | None, app: str | None) -> None:
    """Run the server until it is stopped.

    Without a configuration it is a demo on loopback. TERM drains, INT and QUIT stop at once,
    HUP reloads, USR2 upgrades. Exit status: 0 after any stop that was asked for, 2 a wrong configuration, 3 a
    worker could not start, 1 anything else (a port is taken, something is not permitted).
    """
    try:
        handover = take_handover(os.environ)
    except StartRefused as refusal:
        leave(Exit.FAILED, str(refusal))
    found = configuration_path(path)
    environ = dict(os.environ)
    if isinstance(handover, Trial):

        def read() -> tuple[Plan, Path]:
            site = Site.read(found, app, environ)
            return site.plan(), site.control

        sys.exit(handover.run(read))
    if found is None:
        try:
            prepare()
        except OSError as error:
            leave(Exit.FAILED, f"the demo's files cannot be made: {error}")
    try:
        site = Site.read(found, app, environ)
        plan = site.plan()
    except ConfigError as error:
        # It was right a moment ago; the workers of the program before this one drain.
        leave(Exit.CONFIGURATION if handover is None else Exit.FAILED, *error.problems)
    try:
        site.control.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        leave(Exit.FAILED, f"the control socket's folder cannot be made: {error}")

    def load() -> Plan:
        fresh = Site.read(found, app, environ)
        if fresh.control != site.control:
            problem = fresh.loaded.problem(("admin", "control"), "a change takes a restart")
            raise ConfigError([problem])
        return fresh.plan()

    def announce(status: dict[str, Any]) -> None:
        if found is None:
            click.echo(announcement(site.loaded, status))

    master = Master(plan, control=site.control, load=load, announce=announce, handover=handover)
    sys.exit(master.run())
