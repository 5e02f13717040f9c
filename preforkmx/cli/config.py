"""``preforkmx config``: print the configuration, its schema, an example."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

from preforkmx.app.site import load_configuration
from preforkmx.cli.common import (
    app_option,
    config_option,
    configuration_path,
    refuses_bad_configurations,
)
from preforkmx.config.example import example as render_example
from preforkmx.config.show import json_schema
from preforkmx.config.show import show as render

if TYPE_CHECKING:
    from pathlib import Path


@click.group()
def config() -> None:
    """Print the configuration, its schema, or an example."""


@config.command()
@config_option
@app_option
@refuses_bad_configurations
def show(path: Path | None, app: str | None) -> None:
    """Print the configuration that is in force, and where each value came from."""
    found = configuration_path(path)
    loaded = load_configuration(found, app, os.environ, files=found is not None)
    click.echo(render(loaded), nl=False)


@config.command()
def schema() -> None:
    """Print the JSON Schema of the configuration."""
    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


@config.command()
def example() -> None:
    """Print a commented configuration with every key."""
    click.echo(render_example(), nl=False)
