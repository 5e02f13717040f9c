"""The shared state: decisions that hold over every process which shares a store.

:mod:`~preforkmx.state.decisions` is what middleware and stores agree on. The stores:
:class:`~preforkmx.state.local.LocalStore` for one process,
:class:`~preforkmx.state.embedded.EmbeddedStore` for one machine, and
:class:`~preforkmx.state.fallback.FallbackStore` around either of them and another.
"""

from __future__ import annotations

from preforkmx.state.decisions import (
    Admission,
    ConnectionLimits,
    Decision,
    GreylistSettings,
    GreylistState,
    GreylistVerdict,
    Lease,
    Rate,
    Store,
    running,
)

__all__ = [
    "Admission",
    "ConnectionLimits",
    "Decision",
    "GreylistSettings",
    "GreylistState",
    "GreylistVerdict",
    "Lease",
    "Rate",
    "Store",
    "running",
]
