"""The processes that the master forks: workers, the store process and the checker."""

from __future__ import annotations
