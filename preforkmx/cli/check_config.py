"""``preforkmx check-config``: everything that is wrong in a configuration."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from preforkmx.app.site import Site, load_configuration
from preforkmx.cli.common import (
    app_option,
    config_option,
    configuration_path,
    refuses_bad_configurations,
)

if TYPE_CHECKING:
    from pathlib import Path


@click.command("check-config")
@config_option
@app_option
@refuses_bad_configurations
def check_config(path: Path | None, app: str | None) -> None:
    """Print every error of a configuration.

    Site code that it names is imported. Exit status: 0 nothing is wrong, 2 something is.
    """
    found = configuration_path(path)
    if found is None:
        # The demo makes its certificate when it starts: there may be none yet.
        load_configuration(None, app, os.environ, files=False)
        click.echo("There is no configuration: serve would run the demo.")
    else:
        Site.read(found, app, os.environ).check()
        click.echo(f"{found}: nothing is wrong")
