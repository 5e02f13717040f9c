"""``preforkmx drain`` and ``preforkmx stop``: end the server and wait for its exit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from preforkmx.cli.common import Exit, control_options, control_path, leave, reaches_a_server
from preforkmx.cli.control import EXIT_SECONDS, Control

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@control_options
@reaches_a_server
def drain(path: Path | None, control: Path | None) -> None:
    """Take no new mail, finish what is under way, and stop.

    Returns when the server has exited. Exit status: 0 stopped, 1 it did not exit, 5 not running.
    """
    _end(control_path(path, control), "drain")


@click.command()
@control_options
@click.option("--now", is_flag=True, help="Abort what is under way; senders try again.")
@reaches_a_server
def stop(path: Path | None, control: Path | None, *, now: bool) -> None:
    """Stop the server, like drain but without the time that a load balancer is given.

    Returns when the server has exited. Exit status: 0 stopped, 1 it did not exit, 5 not running.
    """
    _end(control_path(path, control), "stop-now" if now else "stop")


def _end(control: Path, command: str) -> None:
    with Control(control) as server:
        answer = server.ask(command)
        if not answer.get("ok"):
            leave(Exit.FAILED, *answer.get("problems", ()))
        exited = server.wait_for_exit()
    if not exited:
        leave(
            Exit.FAILED,
            f"process {answer.get('pid')} has ended its connections, "
            f"and did not exit within {EXIT_SECONDS:g} s",
        )
    click.echo(f"stopped: process {answer.get('pid')} has exited")
