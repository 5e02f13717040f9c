"""The command ``preforkmx``: one module for each verb, imported when it is used."""

from __future__ import annotations

from importlib import import_module

import click

from preforkmx._version import __version__

VERBS = {
    "serve": "preforkmx.cli.serve",
    "check-config": "preforkmx.cli.check_config",
    "config": "preforkmx.cli.config",
    "status": "preforkmx.cli.status",
    "reload": "preforkmx.cli.reload",
    "upgrade": "preforkmx.cli.upgrade",
    "drain": "preforkmx.cli.drain",
    "stop": "preforkmx.cli.drain",
    "state": "preforkmx.cli.state",
    "explain": "preforkmx.cli.explain",
    "spf": "preforkmx.cli.spf",
    "hash-password": "preforkmx.cli.hash_password",
}
"""Each verb and its module, which has it under its name with ``_`` for ``-``."""


class _Verbs(click.Group):
    """So ``status`` does not wait for all that ``serve`` needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        if name not in VERBS:
            return None
        verb: click.Command = getattr(import_module(VERBS[name]), name.replace("-", "_"))
        return verb


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="preforkmx")
def main() -> None:
    """A preforking SMTP receiving server."""
