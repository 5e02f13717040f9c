"""Lets an application's Server run in preforkmx's workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preforkmx.session.service import HOOK_FAILURE

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from preforkmx.errors import SMTPError
    from preforkmx.middleware.base import Middleware
    from preforkmx.observe.log import AccessLog
    from preforkmx.server import Server


def host(
    server: Server,
    *,
    first: Sequence[Middleware],
    tls: ssl.SSLContext | None,
    hook_failure: SMTPError,
    max_sessions: int,
    access_log: AccessLog,
) -> None:
    """Give an application's server, before its start, what the configuration decides.

    :param first: runs before the application's own middleware.
    :param tls: replaces the application's context; None leaves it.
    :param hook_failure: replaces the library's default, not an application's choice.
    """
    service = server._service  # noqa: SLF001
    server._middleware[:0] = first  # noqa: SLF001
    if tls is not None:
        service.tls = tls
    if service.hook_failure is HOOK_FAILURE:
        service.hook_failure = hook_failure
    service.max_sessions = max_sessions
    service.access_log = access_log


def has_tls(server: Server) -> bool:
    """Say whether the application gave its server a context."""
    return server._service.tls is not None  # noqa: SLF001
