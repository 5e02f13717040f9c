"""scripts/bench: what preforkmx costs, beside its peers and in the same run."""

from __future__ import annotations
