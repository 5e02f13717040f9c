"""Middleware: hooks for each phase of a session, and the checks that come with preforkmx."""

from __future__ import annotations

from preforkmx.middleware.base import Middleware
from preforkmx.middleware.lift import (
    check_connection,
    check_data,
    check_helo,
    check_recipient,
    check_sender,
)

__all__ = [
    "Middleware",
    "check_connection",
    "check_data",
    "check_helo",
    "check_recipient",
    "check_sender",
]
