"""Why a master does not start."""

from __future__ import annotations

from preforkmx.errors import PreforkmxError


class StartRefused(PreforkmxError):
    """A port is taken, something is not permitted, or another master holds the lock."""
