"""Privileges: a forked process becomes another user, for good.

The master keeps its own: a reload may bind a port below 1024 or read a new key. Every other
process drops to ``workers.user`` after it has inherited its sockets, and before it imports the
site's code. From then on nothing that it runs, or starts, can get them back.
"""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from preforkmx.errors import BootError

if TYPE_CHECKING:
    from collections.abc import Callable

_PR_SET_NO_NEW_PRIVS = 38

UMASK = 0o007
"""What the dropped process adds to its umask: nothing that it makes is for everybody."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A user, as which processes run.

    :param user: its name.
    :param groups: the supplementary groups, the user's primary one among them.
    """

    user: str
    uid: int
    gid: int
    groups: tuple[int, ...] = field(default=())

    @classmethod
    def of(cls, user: str, group: str = "") -> Identity:
        """Look up a user.

        :param group: becomes the primary group in the place of the user's own.
        :raises LookupError: there is no such user or group; the text says which.
        """
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            raise LookupError(f"there is no user {user!r}") from None
        gid = entry.pw_gid
        if group:
            try:
                gid = grp.getgrnam(group).gr_gid
            except KeyError:
                raise LookupError(f"there is no group {group!r}") from None
        return cls(user, entry.pw_uid, gid, tuple(sorted(os.getgrouplist(user, gid))))

    @property
    def is_ours(self) -> bool:
        """Whether this process runs as that user and group already, and with no other id."""
        ids = (self.uid,) * 3, (self.gid,) * 3
        return (os.getresuid(), os.getresgid()) == ids

    @property
    def can_be_taken(self) -> bool:
        """Whether a child of this process can become it: it is its own, or this is root."""
        return self.is_ours or os.geteuid() == 0


def drop(identity: Identity | None) -> None:
    """Become `identity`, which cannot be undone; None, and one that is ours, change nothing.

    Real, effective and saved ids and the supplementary groups change; the kernel empties the
    capabilities with that. Programs that this process starts cannot gain any either
    (``PR_SET_NO_NEW_PRIVS``: no setuid, no file capabilities).

    What ``PR_SET_PDEATHSIG`` had set is cleared by this: set it afterwards.

    :raises BootError: the kernel refuses, or there is a way back.
    """
    if identity is None or identity.is_ours:
        return
    try:
        # The groups first: without the privileges they could not be left any more.
        os.setgroups(identity.groups)
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
        _no_new_privileges()
    except OSError as error:
        raise BootError(
            f"workers.user: this process cannot become {identity.user}: {error.strerror} "
            "(it takes CAP_SETUID and CAP_SETGID)"
        ) from error
    _verify(identity)
    os.umask(os.umask(0o077) | UMASK)


def _no_new_privileges() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    one, zero = ctypes.c_ulong(1), ctypes.c_ulong(0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, one, zero, zero, zero) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _verify(identity: Identity) -> None:
    """Try the way back: with securebits or a kernel of its own mind it might be open."""
    if not identity.is_ours or set(os.getgroups()) - set(identity.groups):
        raise BootError(f"workers.user: this process did not become {identity.user}")
    if identity.uid == 0:
        return
    ways: list[Callable[[], None]] = [lambda: os.setresuid(0, 0, 0)]
    if identity.gid != 0:
        ways.append(lambda: os.setresgid(0, 0, 0))
    for way in ways:
        try:
            way()
        except PermissionError:
            continue
        raise BootError(f"workers.user: {identity.user} could become root again")
