"""Helpers for the tests of whoever uses preforkmx as a library.

With pytest, the fixtures of :mod:`preforkmx.testing.plugin` are there once preforkmx is
installed; no plugin for asyncio is needed. docs/how-to/test-your-hooks.md shows all of it.
"""

from __future__ import annotations

from preforkmx.testing.client import Client, Reply
from preforkmx.testing.recorder import Call, Phase, ReceivedMessage, Recorder
from preforkmx.testing.servers import Address, StartServer, ThreadedServer, running

__all__ = [
    "Address",
    "Call",
    "Client",
    "Phase",
    "ReceivedMessage",
    "Recorder",
    "Reply",
    "StartServer",
    "ThreadedServer",
    "running",
]
