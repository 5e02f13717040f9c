"""Middleware: hooks for each phase of a session, and the checks that come with preforkmx."""

from __future__ import annotations

from preforkmx.middleware.auth import authenticator, require_auth
from preforkmx.middleware.authentication_results import (
    Result,
    authentication_results,
    results_of,
    with_result,
    without_results,
)
from preforkmx.middleware.base import Middleware
from preforkmx.middleware.domains import accept_domains
from preforkmx.middleware.greylist import Greylist
from preforkmx.middleware.lift import (
    check_connection,
    check_data,
    check_helo,
    check_recipient,
    check_sender,
)
from preforkmx.middleware.rate_limit import ip_rate_limit
from preforkmx.middleware.rbl import RBL, rbl_listings
from preforkmx.middleware.rbl_list import DNSList, Listing
from preforkmx.middleware.recipients import recipients
from preforkmx.middleware.spf import SPF, spf_result
from preforkmx.middleware.tls import require_tls
from preforkmx.middleware.users import users

__all__ = [
    "RBL",
    "SPF",
    "DNSList",
    "Greylist",
    "Listing",
    "Middleware",
    "Result",
    "accept_domains",
    "authentication_results",
    "authenticator",
    "check_connection",
    "check_data",
    "check_helo",
    "check_recipient",
    "check_sender",
    "ip_rate_limit",
    "rbl_listings",
    "recipients",
    "require_auth",
    "require_tls",
    "results_of",
    "spf_result",
    "users",
    "with_result",
    "without_results",
]
