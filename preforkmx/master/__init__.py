"""The master: holds the sockets, forks and supervises, and does nothing else."""

from __future__ import annotations
