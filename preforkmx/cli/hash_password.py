"""``preforkmx hash-password``: a line for the file of users."""

from __future__ import annotations

import getpass
import sys
import unicodedata

import click

from preforkmx.cli.common import Exit, leave
from preforkmx.middleware import passwords
from preforkmx.middleware.users_file import check_name


@click.command("hash-password")
@click.option("--user", metavar="NAME", help="Print NAME:HASH, a whole line of the file.")
def hash_password(user: str | None) -> None:
    """Ask for a password and print its Argon2 hash, for the file of the users middleware.

    It asks twice on a terminal, and else reads one line of standard input. Exit status: 0
    printed, 1 the password cannot be used.
    """
    prefix = ""
    if user is not None:
        try:
            prefix = f"{check_name(user)}:"
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--user") from None
    try:
        prepared = _prepare(_ask() if sys.stdin.isatty() else _read())
    except UnicodeError:
        leave(Exit.FAILED, "the password is not UTF-8")
    except ValueError as error:
        leave(Exit.FAILED, str(error))
    click.echo(prefix + passwords.hash_password(prepared))


def _prepare(octets: bytes) -> bytes:
    if not octets:
        raise ValueError("the password is empty")
    if len(octets) > passwords.MAX_OCTETS:
        raise ValueError(f"the password has more than {passwords.MAX_OCTETS} octets")
    text = octets.decode()
    # RFC 8265 section 4.2.1: nobody types them, so they came here by mistake.
    if any(unicodedata.category(each) == "Cc" for each in text):
        raise ValueError("the password has a control character")
    return passwords.prepare_password(text)


def _ask() -> bytes:
    password = getpass.getpass("Password: ")
    if getpass.getpass("The same again: ") != password:
        raise ValueError("the passwords differ")
    return password.encode()


def _read() -> bytes:
    # One octet more than may be, and the end of the line.
    line = sys.stdin.buffer.readline(passwords.MAX_OCTETS + len("x\r\n"))
    return line.removesuffix(b"\n").removesuffix(b"\r")
