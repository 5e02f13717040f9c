"""hash-password, on a terminal and in a script."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest
from click.testing import CliRunner

from preforkmx.cli import main
from preforkmx.middleware.passwords import verify
from preforkmx.middleware.users_file import read_users


def run(*arguments, given=b""):
    return CliRunner().invoke(main, ["hash-password", *arguments], input=given)


@pytest.mark.parametrize("given", [b"secret\n", b"secret", b"secret\r\n", b"secret\nmore\n"])
def test_a_script_gives_the_password_as_one_line(given):
    result = run(given=given)
    assert result.exit_code == 0
    assert result.stdout.endswith("\n")
    assert verify(result.stdout[:-1], b"secret")


def test_with_a_name_it_prints_a_whole_line_of_the_file(tmp_path):
    result = run("--user", "Jose\u0301", given=b"secret\n")
    file = tmp_path / "users"
    file.touch(0o600)
    file.write_text(result.stdout)
    [(name, text)] = read_users(file).hashes.items()
    assert name == "Jos\u00e9"
    assert verify(text, b"secret")


def test_spaces_around_a_password_belong_to_it_and_it_is_hashed_in_its_comparable_form():
    result = run(given=" e\u0301\u00a0\n".encode())
    assert verify(result.stdout[:-1], " \u00e9 ".encode())


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (b"", "the password is empty"),
        (b"\n", "the password is empty"),
        (b"x" * 1025 + b"\n", "the password has more than 1024 octets"),
        (b"x" * 1026 + b"\xc3\xa9\n", "the password has more than 1024 octets"),
        (b"\xff\n", "the password is not UTF-8"),
        (b"a\tb\n", "the password has a control character"),
    ],
)
def test_a_password_that_cannot_be_used_is_status_1(given, problem):
    result = run(given=given)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", problem + "\n")


def test_the_longest_password_is_hashed():
    assert run(given=b"x" * 1024 + b"\r\n").exit_code == 0


@pytest.mark.parametrize("name", ["", "a:b", "#joe", "j\x07oe"])
def test_a_name_that_cannot_stand_in_the_file_is_status_2(name):
    result = run("--user", name, given=b"secret\n")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--user" in result.stderr


def test_a_password_on_the_command_line_is_refused_and_not_shown():
    result = run("s3cret")
    assert result.exit_code == 2
    assert result.stdout == ""


@pytest.fixture
def type_into():
    """Run the command on a terminal, and type a line at each of its prompts."""

    def type_into(*lines):
        master, slave = pty.openpty()
        with os.fdopen(master, "r+b", buffering=0) as terminal:
            # Without a controlling terminal getpass asks on standard input and error.
            process = subprocess.Popen(
                [sys.executable, "-m", "preforkmx", "hash-password"],
                stdin=slave,
                stdout=subprocess.PIPE,
                stderr=slave,
                start_new_session=True,
            )
            os.close(slave)
            screen = b""
            for line in lines:
                while not screen.endswith(b": "):
                    screen += terminal.read(1)
                terminal.write(line + b"\n")
                screen += b"\n"
            output, _ = process.communicate(timeout=30)
            try:
                while more := terminal.read(100):
                    screen += more
            except OSError:
                pass  # how Linux tells that nobody holds the terminal any more
        return process.returncode, output.decode(), screen.decode()

    return type_into


def test_on_a_terminal_it_asks_twice_and_shows_nothing(type_into):
    status, output, screen = type_into(b"secret", b"secret")
    assert status == 0
    assert verify(output.rstrip("\n"), b"secret")
    assert "Password: " in screen
    assert "secret" not in screen


def test_passwords_that_differ_are_status_1(type_into):
    status, output, screen = type_into(b"secret", b"sceret")
    assert (status, output) == (1, "")
    assert "the passwords differ" in screen
