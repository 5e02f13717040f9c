"""From ``[dns]`` to the resolver of one worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.dns import Resolver

if TYPE_CHECKING:
    from preforkmx.config.schema import Dns


def make_resolver(table: Dns) -> Resolver:
    """Return a worker's resolver, not started: ``Middleware(lifespan=resolver.lifespan)`` is.

    :param table: ``[dns]`` of the configuration.
    """
    return Resolver(table.servers, timeout=table.timeout)
