"""The tutorial's site is a site: its files are taken from the page and run."""

from __future__ import annotations

import importlib
import re
import shlex
import smtplib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from preforkmx import Server

PAGE = (Path(__file__).parents[2] / "docs/tutorial/a-site-of-your-own.md").read_text("utf-8")
FILES = dict(re.findall(r"`([\w.]+)`:\n\n```\w*\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def folder(tmp_path):
    """The folder as the reader has it."""
    assert set(FILES) == {
        "desk.py",
        "customers.txt",
        "preforkmx.toml",
        "test_desk.py",
        "pyproject.toml",
    }
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def in_folder(folder, module, *arguments):
    return subprocess.run(
        [sys.executable, "-B", "-m", module, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_its_configuration_is_right(folder):
    result = in_folder(folder, "preforkmx", "check-config")
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_key_that_it_does_not_take_is_told(folder):
    text = FILES["preforkmx.toml"].replace('file = "', 'colour = "red"\nfile = "')
    (folder / "preforkmx.toml").write_text(text)
    result = in_folder(folder, "preforkmx", "check-config")
    assert result.returncode == 2
    assert "colour" in result.stderr


def test_its_own_tests_pass(folder):
    result = in_folder(folder, "pytest", "-q", "-p", "no:cacheprovider", "test_desk.py")
    assert result.returncode == 0, result.stdout
    assert "3 passed" in result.stdout


def test_explain_says_what_the_page_says_and_makes_no_ticket(folder):
    [line] = re.findall(r"^preforkmx (explain .*)$", PAGE, re.MULTILINE)
    [end] = re.findall(r"^refused by .*$", PAGE, re.MULTILINE)
    refused = in_folder(folder, "preforkmx", *shlex.split(line))
    assert refused.returncode == 1
    assert refused.stdout.splitlines()[-1] == end
    taken = in_folder(folder, "preforkmx", *shlex.split(line.replace("sales@", "billing@")))
    assert taken.returncode == 0, taken.stdout + taken.stderr
    assert not (folder / "tickets.db").exists()


def test_a_database_that_cannot_be_written_lets_the_sender_keep_its_message(
    folder, smtp_server, monkeypatch
):
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    desk = importlib.import_module("desk")
    monkeypatch.delitem(sys.modules, "desk")
    delivery = desk.tickets(database=str(folder / "nowhere" / "tickets.db"), desks=["support"])
    running = smtp_server(Server(hostname="desk.example.com", handler=delivery))
    with smtplib.SMTP(*running.address) as client, pytest.raises(smtplib.SMTPDataError) as refused:
        client.sendmail("joe@example.org", ["support@example.com"], "Subject: Help\r\n\r\nMe\r\n")
    assert refused.value.smtp_code == 451


def test_the_package_makes_its_middleware_known_by_name(folder):
    project = tomllib.loads(FILES["pyproject.toml"])["project"]
    points = project["entry-points"]["preforkmx.middleware"]
    # What installing it leaves behind, beside the module.
    installed = folder / f"{project['name']}-{project['version']}.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Name: {project['name']}\nVersion: 1.0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (installed / "entry_points.txt").write_text(f"[preforkmx.middleware]\n{lines}")
    (folder / "preforkmx.toml").write_text(
        FILES["preforkmx.toml"].replace('"desk:customers"', '"customers"')
    )
    result = in_folder(folder, "preforkmx", "check-config")
    assert result.returncode == 0, result.stdout + result.stderr
