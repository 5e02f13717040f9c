"""The limit of open files (``RLIMIT_NOFILE``)."""

from __future__ import annotations

import resource

from preforkmx.master.slot import PROCESSES

RESERVE = 256
"""Descriptors beside the sessions: store connections, deliveries, the log, other processes."""
_OF_A_PROCESS = 2
"""What the master has of each: its channel and its pidfd."""


def raise_open_files(max_sessions: int, slots: int, ports: int) -> str | None:
    """Raise this process's limit, which its children inherit, to what sessions take.

    :param max_sessions: open sessions of one worker.
    :param slots: worker slots.
    :param ports: listeners, of which the master holds a socket for each slot.
    :return: the problem where it does not fit, else None.
    """
    needed = max_sessions + slots * (ports + _OF_A_PROCESS * PROCESSES) + RESERVE
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
