"""Redis and Valkey: the shared state of a fleet.

The only part of preforkmx that knows their protocol. :func:`nodes_for` makes what is asked out
of what a URL names: one server, a primary that sentinels know, or a cluster.
"""

from __future__ import annotations

from preforkmx.state.redis.cluster import ClusterNodes
from preforkmx.state.redis.link import Access
from preforkmx.state.redis.nodes import Nodes
from preforkmx.state.redis.script import Script
from preforkmx.state.redis.sentinel import SentinelNodes
from preforkmx.state.redis.single import SingleNodes
from preforkmx.state.redis.url import SCHEMES, Kind, Target, parse

__all__ = ["SCHEMES", "Nodes", "Script", "Target", "nodes_for", "parse"]


def nodes_for(target: Target, *, deadline: float = 0.3) -> Nodes:
    """Return what is asked at `target`; nothing is connected yet.

    :param deadline: how long an operation may take, in seconds.
    :raises OSError: a file of the target's TLS options cannot be read, or is none.
    """
    access = Access(
        target.user,
        target.password,
        target.database,
        target.tls.context() if target.tls is not None else None,
        target.tls.name if target.tls is not None else "",
    )
    if target.kind is Kind.CLUSTER:
        return ClusterNodes(target.addresses, access, deadline)
    if target.kind is Kind.SENTINEL:
        sentinel_access = Access(
            target.sentinel_user,
            target.sentinel_password,
            tls=access.tls,
            tls_name=access.tls_name,
        )
        return SentinelNodes(
            target.addresses, target.service, access, sentinel_access, deadline=deadline
        )
    return SingleNodes(target.addresses[0], access, deadline)
