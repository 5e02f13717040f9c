"""Ownership: what the master makes for processes that run as another user."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from preforkmx.master.errors import StartRefused

if TYPE_CHECKING:
    from pathlib import Path

    from preforkmx.master.plan import StorePlan
    from preforkmx.workers.privileges import Identity


def give(path: Path, identity: Identity | None) -> None:
    """Give a file that the master has just made to `identity`.

    :raises StartRefused: that is not permitted.
    """
    if identity is None or identity.is_ours:
        return
    try:
        # Never through a link: somebody may have put one there meanwhile.
        os.chown(path, identity.uid, identity.gid, follow_symlinks=False)
    except OSError as error:
        raise StartRefused(
            f"{path} cannot be given to {identity.user}: {error.strerror}"
        ) from error


def make_state_folder(folder: Path, identity: Identity | None) -> None:
    """Make the folder of the store's database where it is missing, for `identity` alone.

    One that is there already is left as it is: the checker says whether it serves.

    :raises StartRefused: it cannot be made.
    """
    if identity is None:
        return
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        return
    except OSError as error:
        raise StartRefused(
            f"the folder {folder} cannot be made: {error.strerror or error}"
        ) from error
    give(folder, identity)


def store_problems(store: StorePlan) -> list[str]:
    """Return what keeps this process, whose user it is, from using the store.

    The store process, and every worker, would only find out later and one by one.
    """
    problems = []
    if not os.access(store.socket, os.W_OK):
        problems.append(
            f"the store's socket {store.socket} cannot be reached by this user: "
            f"every folder above it must be open to it"
        )
    folder = store.database.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        problems.append(
            f"state.url: the folder {folder} cannot be written by this user, and the store's "
            "database is there"
        )
    elif store.database.exists() and not os.access(store.database, os.R_OK | os.W_OK):
        problems.append(f"state.url: {store.database} cannot be read and written by this user")
    return problems
