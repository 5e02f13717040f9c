"""The embedded store: one process a machine owns the shared state, the workers ask it.

:func:`serve_store` is what the store process runs, :class:`EmbeddedStore` is a worker's client.
Between them is one unix stream socket a worker, with the frames of
:mod:`preforkmx.state.embedded.frames`.
"""

from __future__ import annotations

from preforkmx.state.embedded.client import EmbeddedStore
from preforkmx.state.embedded.server import serve_store

__all__ = ["EmbeddedStore", "serve_store"]
