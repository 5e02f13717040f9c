"""The file of users."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkmx.errors import ConfigError
from preforkmx.middleware.passwords import parse_hash
from preforkmx.middleware.users_file import check_name, read_users

SALT, DIGEST = "c2FsdHNhbHQ", "AAAAAAAAAAAAAAAAAAAAAA"
CHEAP = f"$argon2id$v=19$m=8,t=1,p=1${SALT}${DIGEST}"
OTHER = f"$argon2i$v=19$m=16,t=2,p=1${SALT}${DIGEST}"


@pytest.fixture
def write(tmp_path):
    def write(content, mode=0o600):
        path = tmp_path / "users"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
        return path

    return write


def problems_of(path):
    with pytest.raises(ConfigError) as caught:
        read_users(path)
    return [problem.removeprefix(str(path)) for problem in caught.value.problems]


def test_each_line_is_a_user_and_comments_and_empty_lines_are_none(write):
    users = read_users(
        write(f"# sales\n\njoe:{CHEAP}\n  \n\t# joe:x\nann@example.com:{OTHER}\r\nJoe:{CHEAP}")
    )
    assert users.hashes == {"joe": CHEAP, "ann@example.com": OTHER, "Joe": CHEAP}


def test_names_are_kept_in_nfc(write):
    assert list(read_users(write(f"Jose\u0301:{CHEAP}")).hashes) == ["Jos\u00e9"]


def test_the_decoy_costs_what_most_hashes_cost(write):
    users = read_users(write(f"a:{OTHER}\nb:{CHEAP}\nc:{OTHER}\n"))
    assert parse_hash(users.decoy) == parse_hash(OTHER)
    assert users.decoy not in users.hashes.values()
    users = read_users(write(f"a:{OTHER}\nb:{CHEAP}\nc:{CHEAP}\n"))
    assert parse_hash(users.decoy) == parse_hash(CHEAP)


def test_everything_that_is_wrong_is_told_at_once_and_no_secret_with_it(write):
    path = write(
        f"joe:{CHEAP}\n"
        "ann:s3cret\n"
        "s3cret\n"
        f"joe:{CHEAP}\n"
        f"b\x07b:{CHEAP}\n"
        f":{CHEAP}\n"
        f"eve :{CHEAP}\n"
        f"a:b:{CHEAP}\n"
        "d\x00:s3cret\n"
        f"Jose\u0301:{CHEAP}\n"
        f"Jos\u00e9:{CHEAP}\n".encode()
        + b"\xff:x\n"
    )
    assert problems_of(path) == [
        ":2: what follows the name is no Argon2 hash",
        ":3: must be name:hash",
        ":4: the user of line 1 stands here again",
        ":5: the name has a character that cannot be seen",
        ":6: the name is empty",
        ":7: the name begins or ends with a space",
        ":8: what follows the name is no Argon2 hash",
        ":9: the name has a character that cannot be seen",
        ":9: what follows the name is no Argon2 hash",
        ":11: the user of line 10 stands here again",
        ":12: is not UTF-8",
    ]


def test_a_file_that_is_something_else_is_not_told_line_by_line(write):
    problems = problems_of(write("something\n" * 1000))
    assert len(problems) == 101
    assert problems[-1] == ": and 900 more"


@pytest.mark.parametrize("content", ["", "# nobody yet\n"])
def test_a_file_without_users_is_refused(write, content):
    """It would lock everybody out, and may be one whose writing failed."""
    assert problems_of(write(content)) == [": names no user"]


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602, 0o620, 0o666])
def test_a_file_that_is_not_private_is_refused_beside_what_else_is_wrong(write, mode):
    [first, second] = problems_of(write("joe:s3cret\n", mode))
    assert first == (
        f": others can read it, or its group can write it: chmod 640 or 600 (it is {mode:03o})"
    )
    assert second.startswith(":1:")


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600, 0o640])
def test_the_group_may_read_the_file(write, mode):
    assert read_users(write(f"joe:{CHEAP}\n", mode)).hashes


def test_the_mode_is_that_of_the_file_a_link_leads_to(write, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(write(f"joe:{CHEAP}\n"))
    assert read_users(link).hashes


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    assert problems_of(tmp_path / "no") == [": cannot be read: No such file or directory"]
    assert problems_of(tmp_path) == [": cannot be read: Is a directory"]


def test_a_fifo_holds_nobody_up(tmp_path):
    os.mkfifo(tmp_path / "fifo", 0o600)
    assert problems_of(tmp_path / "fifo") == [": is no regular file"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        " joe",
        "joe\u3000",
        "a:b",
        "#joe",
        "j\u200boe",
        "j\u2028oe",
        "\ufeffjoe",
        "j\x85",
        "x" * 1025,
    ],
)
def test_a_name_that_nobody_could_use_is_refused(name):
    with pytest.raises(ValueError):
        check_name(name)


@given(st.binary())
def test_any_octets_are_users_or_problems_with_their_line(octets):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "users"
        path.touch(0o600)
        path.write_bytes(octets)
        try:
            read_users(path)
        except ConfigError as error:
            assert all(problem.startswith(f"{path}:") for problem in error.problems)  # noqa: PT017


@given(st.text(min_size=1))
def test_a_name_that_is_accepted_can_stand_in_the_file(name):
    try:
        prepared = check_name(name)
    except ValueError:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "users"
        path.touch(0o600)
        path.write_text(f"{name}:{CHEAP}\n", encoding="utf-8", newline="")
        assert list(read_users(path).hashes) == [prepared]
