"""The limit of open files (``RLIMIT_NOFILE``)."""

from __future__ import annotations

import resource

RESERVE = 256
"""Descriptors beside the sessions: listeners, store connections, deliveries, the log, ours."""


def raise_open_files(max_sessions: int, sockets: int) -> str | None:
    """Raise this process's limit, which its children inherit, to what sessions take.

    :param max_sessions: open sessions of one worker.
    :param sockets: listening sockets that the master holds.
    :return: the problem where it does not fit, else None.
    """
    needed = max_sessions + sockets + RESERVE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return None
    fits = hard == resource.RLIM_INFINITY or hard >= needed
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard if fits else needed))
    except (OSError, ValueError):
        return (
            f"workers.max_sessions = {max_sessions} needs {needed} open files, "
            f"and the limit is {hard if not fits else soft}: raise it (LimitNOFILE=, ulimit -n), "
            "or lower max_sessions"
        )
    return None
