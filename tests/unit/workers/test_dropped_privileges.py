"""A process that became another user has no way back. Root alone can try that for real."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

import pytest

from preforkmx.errors import BootError
from preforkmx.workers import process
from preforkmx.workers.privileges import Identity, drop

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
NOBODY = pwd.getpwnam("nobody")


def in_a_child(check: object) -> int:
    """Call `check` in a forked child; return its exit status: 0 where it returned True."""
    assert callable(check)
    pid = process.fork(lambda: 0 if check() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_an_identity_is_what_the_machine_knows_of_the_user() -> None:
    us = pwd.getpwuid(os.getuid())
    identity = Identity.of(us.pw_name)
    assert (identity.uid, identity.gid) == (us.pw_uid, us.pw_gid)
    assert us.pw_gid in identity.groups


def test_a_group_takes_the_place_of_the_users_own() -> None:
    daemon = grp.getgrnam("daemon").gr_gid
    identity = Identity.of("nobody", "daemon")
    assert (identity.uid, identity.gid) == (NOBODY.pw_uid, daemon)
    assert daemon in identity.groups
    assert NOBODY.pw_gid not in identity.groups


@pytest.mark.parametrize(
    ("user", "group", "text"),
    [
        ("no-such-user-here", "", "there is no user 'no-such-user-here'"),
        ("nobody", "no-such-group-here", "there is no group 'no-such-group-here'"),
    ],
)
def test_who_is_not_there_is_named(user: str, group: str, text: str) -> None:
    with pytest.raises(LookupError) as caught:
        Identity.of(user, group)
    assert text in str(caught.value)


def test_nobody_else_to_become_changes_nothing() -> None:
    before = os.getresuid(), os.getresgid(), os.getgroups()
    drop(None)
    drop(Identity("us", os.getuid(), os.getgid()))
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before


@root
def test_the_kernel_shows_another_user_without_capabilities() -> None:
    def check() -> bool:
        earlier = os.umask(0o022)
        drop(Identity.of("nobody"))
        status = dict(
            line.split(":\t", 1)
            for line in Path("/proc/self/status").read_text().splitlines()
            if ":\t" in line
        )
        uid, gid = str(NOBODY.pw_uid), str(NOBODY.pw_gid)
        return (
            earlier >= 0
            and status["Uid"].split() == [uid] * 4
            and status["Gid"].split() == [gid] * 4
            and status["Groups"].split() == [gid]
            and int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
            and int(status["CapAmb"], 16) == 0
            and status["NoNewPrivs"] == "1"
            and os.umask(0) == 0o027
        )

    assert in_a_child(check) == 0


@root
def test_there_is_no_way_back() -> None:
    def refused(call: object, *ids: int) -> bool:
        assert callable(call)
        try:
            call(*ids)
        except PermissionError:
            return True
        return False

    def check() -> bool:
        drop(Identity.of("nobody"))
        return (
            refused(os.setuid, 0)
            and refused(os.setresuid, 0, 0, 0)
            and refused(os.setgid, 0)
            and refused(os.setgroups, [0])
        )

    assert in_a_child(check) == 0


@root
def test_a_kernel_that_leaves_a_way_back_is_found_out() -> None:
    def check() -> bool:
        import ctypes

        # PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP: capabilities survive the change of user.
        libc = ctypes.CDLL(None, use_errno=True)
        zero = ctypes.c_ulong(0)
        assert libc.prctl(28, ctypes.c_ulong(1 << 2), zero, zero, zero) == 0
        try:
            drop(Identity.of("nobody"))
        except BootError as error:
            return "could become root again" in str(error)
        return False

    assert in_a_child(check) == 0


def test_who_may_not_become_another_user_is_told_what_it_takes() -> None:
    def check() -> bool:
        if os.geteuid() == 0:
            os.setresgid(NOBODY.pw_gid, NOBODY.pw_gid, NOBODY.pw_gid)
            os.setresuid(NOBODY.pw_uid, NOBODY.pw_uid, NOBODY.pw_uid)
        daemon = Identity.of("daemon")
        try:
            drop(daemon)
        except BootError as error:
            return "CAP_SETUID" in str(error) and not daemon.can_be_taken
        return False

    assert in_a_child(check) == 0
