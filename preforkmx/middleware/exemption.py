"""Who is spared by the checks that are for strangers: greylist, SPF and block lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.state.networks import PRIVATE, NetworkSet

if TYPE_CHECKING:
    from collections.abc import Iterable

    from preforkmx.model import Peer
    from preforkmx.state.networks import IPNetwork


class Exemption:
    """Spares who has authenticated or is on a unix socket, and a balancer's own checks.

    :param allow: networks that are spared as well.
    :param private: spare private networks, loopback among them
        (:data:`~preforkmx.state.networks.PRIVATE`).
    """

    __slots__ = ("_allow", "_private")

    def __init__(self, allow: Iterable[IPNetwork], *, private: bool) -> None:
        self._allow = NetworkSet(allow)
        self._private = private

    def covers(self, peer: Peer) -> bool:
        """Say whether `peer` is spared."""
        address = peer.address
        return (
            address is None
            or peer.is_health_check
            or peer.username is not None
            or address in self._allow
            or (self._private and address in PRIVATE)
        )
