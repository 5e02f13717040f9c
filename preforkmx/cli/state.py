"""``preforkmx state``: look at what the store knows of an address, forget it, allow a network."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from preforkmx.app import chain
from preforkmx.app.operate import Desk, NoSharedState, Whom, desk, networks_of
from preforkmx.app.site import load_configuration, store_socket
from preforkmx.cli.common import (
    Exit,
    app_option,
    config_option,
    configuration_path,
    leave,
    refuses_bad_configurations,
    table,
)
from preforkmx.config.values import BadValue, parse_network
from preforkmx.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from preforkmx.app.operate import GreylistShown, LimitsShown
    from preforkmx.config.load import Loaded
    from preforkmx.model import IPAddress
    from preforkmx.state.operator import GreylistView

_T = TypeVar("_T")


def _address(_ctx: click.Context, _param: click.Parameter, value: str) -> IPAddress:
    try:
        return ip_address(value.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise click.BadParameter(f"{value} is not an IPv4 or IPv6 address") from None


def _networks(_ctx: click.Context, _param: click.Parameter, value: str) -> list[str]:
    try:
        return networks_of(parse_network(value))
    except BadValue as error:
        hint = f" ({error.hint})" if error.hint else ""
        raise click.BadParameter(f"{value} {error}{hint}") from None
    except ValueError as error:
        raise click.BadParameter(f"{value} {error}") from None


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _whom_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an address, and what else may be known of a message."""
    for option in (
        click.option("--user", help="The user who authenticated."),
        click.option("--recipient", metavar="ADDRESS", help="The forward path."),
        click.option("--sender", metavar="ADDRESS", help='The reverse path; "" is the null one.'),
        click.argument("address", callback=_address),
    ):
        command = option(command)
    return command


@click.group()
def state() -> None:
    """Look at what the servers know of an address, forget it, or allow a network.

    It is asked of the store that the configuration names, and holds for every server on it.
    Exit status: 0 done, 1 the state is in the memory of each worker, 2 the configuration is
    wrong, 5 the store does not answer.
    """


@state.command()
@config_option
@app_option
@_json_option
@_whom_options
@refuses_bad_configurations
def show(path: Path | None, app: str | None, *, as_json: bool, **whom: Any) -> None:
    """Print what is left of each limit, and what the greylist knows.

    Of limits of a sender, a recipient or a user only those that are named are shown, and of the
    greylist's triplets the one of --sender and --recipient. Looking costs the address nothing.
    """
    asked = Whom(**whom)
    loaded = _load(path, app)
    limits, greylists = _at_the_desk(loaded, lambda found: found.show(asked))
    if as_json:
        document = {
            "address": str(asked.address),
            "store": chain.shown(loaded.config.state),
            "rate_limit": [_limits_document(each) for each in limits],
            "greylist": [_greylist_document(each) for each in greylists],
        }
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    click.echo(f"{asked.address} at {chain.shown(loaded.config.state)}")
    for line in _lines(limits, greylists):
        click.echo(line)


@state.command()
@config_option
@app_option
@_json_option
@_whom_options
@refuses_bad_configurations
def forget(path: Path | None, app: str | None, *, as_json: bool, **whom: Any) -> None:
    """Give an address its whole limits again, and make its network a stranger.

    The limits of its network are forgotten too, open connections are not. Workers remember for a
    while what they were told: whom they refused until his wait is over, whom the greylist allowed
    for 60 s.
    """
    asked = Whom(**whom)
    known = _at_the_desk(_load(path, app), lambda found: found.forget(asked))
    if as_json:
        click.echo(json.dumps({"address": str(asked.address), "known": known}))
    else:
        click.echo(f"{asked.address}: {'forgotten' if known else 'nothing was known'}")


@state.command()
@config_option
@app_option
@_json_option
@click.option(
    "--days",
    type=click.FloatRange(0, 36_500, min_open=True),
    help="How long at least; without it as long as a network that earned it.",
)
@click.argument("networks", metavar="NETWORK", callback=_networks)
@refuses_bad_configurations
def allow(
    path: Path | None, app: str | None, networks: list[str], days: float | None, *, as_json: bool
) -> None:
    """Let a network pass the greylist, as if it had earned it.

    NETWORK is IPv4, /16 or smaller, or IPv6, /56 or smaller: the greylist knows IPv4 /24s and
    IPv6 /64s, and one that is smaller stands for the one that it lies in. `forget` takes it back.
    """

    async def allowed(found: Desk) -> None:
        try:
            await found.allow(networks, days)
        except ValueError as error:
            leave(Exit.CONFIGURATION, str(error))

    _at_the_desk(_load(path, app), allowed)
    if as_json:
        click.echo(json.dumps({"allowed": networks}))
    else:
        for network in networks:
            click.echo(f"{network}: allowed")


def _load(path: Path | None, app: str | None) -> Loaded:
    return load_configuration(configuration_path(path), app, os.environ, files=False)


def _at_the_desk(loaded: Loaded, does: Callable[[Desk], Awaitable[_T]]) -> _T:
    """Do something at the store of a configuration, or exit."""

    async def do() -> _T:
        async with desk(loaded) as found:
            return await does(found)

    try:
        return asyncio.run(do())
    except NoSharedState:
        leave(
            Exit.FAILED,
            'the state is in the memory of each worker ([state] url is "local:"): '
            "nobody else can look at it or change it",
        )
    except StoreUnavailable as error:
        _leave_without_store(loaded, error)


def _leave_without_store(loaded: Loaded, error: StoreUnavailable) -> NoReturn:
    shown = chain.shown(loaded.config.state)
    if chain.redis_target(loaded.config.state) is None:
        socket = store_socket(loaded.config.admin.control)
        if not socket.exists():
            leave(Exit.NOT_RUNNING, f"not running: there is no {socket}")
        if not os.access(socket, os.W_OK):
            leave(Exit.FAILED, f"{socket} cannot be used: it is another user's")
        shown = str(socket)
    leave(Exit.NOT_RUNNING, f"the store at {shown} does not answer: {error}")


def _limits_document(shown: LimitsShown) -> dict[str, Any]:
    return {
        "name": shown.name,
        "exempt": shown.exempt,
        "open": shown.host.open,
        "concurrent": shown.concurrent,
        "limits": {
            name: {"left": left.left, "of": left.of, "wait": left.wait}
            for name, left in shown.lines()
        },
    }


def _greylist_document(shown: GreylistShown) -> dict[str, Any]:
    view = shown.view
    document: dict[str, Any] = {
        "network": shown.network,
        "exempt": shown.exempt,
        "passes": view.passes,
        "last": _when(view.last),
        "until": _when(view.until),
        "allowed": view.allowed,
        "triplet": None,
    }
    if view.state is not None:
        document["triplet"] = {
            "state": view.state.name.lower(),
            "first": _when(view.first),
            "left": view.left,
            "until": _when(view.triplet_until),
        }
    return document


def _lines(limits: list[LimitsShown], greylists: list[GreylistShown]) -> Iterator[str]:
    for each in limits:
        rows: list[tuple[object, ...]] = [
            (name, left.left, left.of, f"{left.wait:.1f} s" if left.wait else "-")
            for name, left in each.lines()
        ]
        if each.concurrent is not None:
            left = max(0, each.concurrent - each.host.open)
            rows.append(("concurrent", left, each.concurrent, "-"))
        yield ""
        yield each.name + (": exempt" if each.exempt else "")
        yield from table(("LIMIT", "LEFT", "OF", "WAIT"), rows)
    for shown in greylists:
        yield ""
        yield f"greylist {shown.network}" + (": exempt" if shown.exempt else "")
        yield from _greylist_lines(shown.view)


def _greylist_lines(view: GreylistView) -> Iterator[str]:
    if not view.passes:
        yield "network: unknown"
    else:
        passes = f"{view.passes} pass{'es' if view.passes > 1 else ''}"
        yield (
            f"network: {'allowed' if view.allowed else passes}, the last pass at "
            f"{_when(view.last)}, remembered until {_when(view.until)}"
        )
    if view.state is None:
        return
    state = view.state.name.lower().replace("_", "-")
    if view.first:
        yield (
            f"triplet: {state}, first seen at {_when(view.first)}, "
            + (f"passes in {view.left:.0f} s, " if view.left else "")
            + f"forgotten at {_when(view.triplet_until)}"
        )
    else:
        until = f", remembered until {_when(view.triplet_until)}" if view.triplet_until else ""
        yield f"triplet: {state}{until}"


def _when(seconds: float) -> str | None:
    """Return a time as RFC 3339 has it, in UTC; None for never."""
    if not seconds:
        return None
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds")
