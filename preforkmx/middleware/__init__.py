"""Middleware: hooks for each phase of a session, and the checks that come with preforkmx."""

from __future__ import annotations

from preforkmx.middleware.auth import authenticator, require_auth
from preforkmx.middleware.base import Middleware
from preforkmx.middleware.greylist import Greylist
from preforkmx.middleware.lift import (
    check_connection,
    check_data,
    check_helo,
    check_recipient,
    check_sender,
)
from preforkmx.middleware.rate_limit import ip_rate_limit
from preforkmx.middleware.tls import require_tls
from preforkmx.middleware.users import users

__all__ = [
    "Greylist",
    "Middleware",
    "authenticator",
    "check_connection",
    "check_data",
    "check_helo",
    "check_recipient",
    "check_sender",
    "ip_rate_limit",
    "require_auth",
    "require_tls",
    "users",
]
