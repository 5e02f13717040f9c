"""From ``[dns]`` to the resolver of one worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from preforkmx.dns import Resolver
from preforkmx.middleware.base import Middleware

if TYPE_CHECKING:
    from preforkmx.config.schema import Dns


def make_resolver(table: Dns) -> Resolver:
    """Return a worker's resolver, not started: ``Middleware(lifespan=resolver.lifespan)`` is.

    :param table: ``[dns]`` of the configuration.
    """
    return Resolver(table.servers, timeout=table.timeout)


@dataclass(slots=True)
class SharedResolver:
    """The one resolver of a worker, which is there once a middleware has asked for it."""

    table: Dns
    """``[dns]`` of the configuration."""
    made: Resolver | None = None


def resolver_of(shared: SharedResolver) -> Resolver:
    """Return the resolver that all middleware of the worker share; the first makes it.

    :func:`resolver_lifespan` starts it, so it looks names up from the worker's boot on.
    """
    if shared.made is None:
        shared.made = make_resolver(shared.table)
    return shared.made


def resolver_lifespan(shared: SharedResolver) -> Middleware | None:
    """Return the Middleware that starts the resolver with its worker, and closes it.

    To be asked once all middleware is made, and put in front of it: a lifespan that looks a
    name up finds the resolver started.

    :returns: None where nobody asked for a resolver.
    """
    if shared.made is None:
        return None
    return Middleware(lifespan=shared.made.lifespan, name="dns")
