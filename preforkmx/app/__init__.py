"""The composition root: a configuration becomes listeners, a chain, a store and a delivery."""

from __future__ import annotations
