"""preforkmx: an SMTP receiving server with hooks, many processes, and limits that hold over them.

This module is the public interface of the library; checks and adapters stand in
:mod:`preforkmx.middleware`, helpers for tests in :mod:`preforkmx.testing`.
"""

from __future__ import annotations

from preforkmx._version import __version__
from preforkmx.body import MessageStream, prepend, whole, wrap
from preforkmx.context import Context, Usage
from preforkmx.errors import (
    ConfigError,
    ConnectionLost,
    MessageAborted,
    PreforkmxError,
    SMTPError,
    StoreUnavailable,
)
from preforkmx.middleware.base import Handler, Middleware
from preforkmx.model import Envelope, Peer, TLSInfo, Verification
from preforkmx.server import Server
from preforkmx.session.listener import Listener

__all__ = [
    "ConfigError",
    "ConnectionLost",
    "Context",
    "Envelope",
    "Handler",
    "Listener",
    "MessageAborted",
    "MessageStream",
    "Middleware",
    "Peer",
    "PreforkmxError",
    "SMTPError",
    "Server",
    "StoreUnavailable",
    "TLSInfo",
    "Usage",
    "Verification",
    "__version__",
    "prepend",
    "whole",
    "wrap",
]
