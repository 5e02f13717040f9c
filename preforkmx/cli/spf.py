"""``preforkmx spf``: one SPF check, as a server with this configuration would do it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

import click

from preforkmx.app.resolver import make_resolver
from preforkmx.app.site import load_configuration
from preforkmx.cli.common import config_option, configuration_path, refuses_bad_configurations
from preforkmx.middleware.spf_check import check_host

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address
    from pathlib import Path

    from preforkmx.config.schema import Dns
    from preforkmx.middleware.spf_check import SPFResult


@click.command("spf")
@click.argument("address", metavar="IP")
@click.argument("helo")
@click.argument("sender")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@config_option
@refuses_bad_configurations
def spf(address: str, helo: str, sender: str, as_json: bool, path: Path | None) -> None:  # noqa: FBT001 - click's
    """Check whether IP may send mail with the reverse path SENDER.

    An empty SENDER checks the name HELO. The resolver is that of the configuration. Exit
    status: 0 whatever the result is, 2 the configuration is wrong.
    """
    try:
        client = ip_address(address)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="IP") from None
    # Files that it names belong to whom the server runs as.
    config = load_configuration(configuration_path(path), None, os.environ, files=False).config
    receiver = config.hostname or socket.gethostname()
    found = asyncio.run(_check(config.dns, client, helo, sender, receiver))
    if as_json:
        shown = {
            "result": found.result,
            "reason": found.reason,
            "explanation": found.explanation,
            "lookups": found.lookups,
            "identity": found.identity,
            "domain": found.domain,
        }
        click.echo(json.dumps(shown))
        return
    click.echo(f"{found.result}: {found.reason}")
    click.echo(f"  {found.identity} {found.domain!r} from {found.address}")
    click.echo(f"  {found.lookups} of 10 look-ups")
    if found.explanation:
        click.echo(f"  explanation: {found.explanation}")


async def _check(
    dns: Dns, address: IPv4Address | IPv6Address, helo: str, sender: str, receiver: str
) -> SPFResult:
    async with make_resolver(dns) as resolver:
        return await check_host(resolver, address, helo, sender, receiver=receiver)
