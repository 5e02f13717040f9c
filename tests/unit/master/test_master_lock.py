"""The lock beside the control socket."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from preforkmx.master.errors import StartRefused
from preforkmx.master.lock import MasterLock

if TYPE_CHECKING:
    from pathlib import Path


def test_a_second_master_is_refused_and_told_who_holds_the_lock(tmp_path: Path) -> None:
    lock = MasterLock(tmp_path / "control.sock")
    with pytest.raises(StartRefused, match=rf"another preforkmx .*process {os.getpid()}"):
        MasterLock(tmp_path / "control.sock")
    lock.close()


def test_a_lock_that_was_let_go_of_can_be_taken(tmp_path: Path) -> None:
    MasterLock(tmp_path / "control.sock").close()
    MasterLock(tmp_path / "control.sock").close()


def test_masters_with_other_control_sockets_do_not_disturb_each_other(tmp_path: Path) -> None:
    one, two = MasterLock(tmp_path / "one.sock"), MasterLock(tmp_path / "two.sock")
    one.close()
    two.close()


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    MasterLock(tmp_path / "run" / "preforkmx" / "control.sock").close()
    assert (tmp_path / "run" / "preforkmx" / "control.sock.lock").exists()


def test_a_folder_that_cannot_be_made_is_a_clear_refusal(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(StartRefused, match="cannot be made"):
        MasterLock(tmp_path / "file" / "control.sock")
