"""A file system that is really full: a small tmpfs."""

from __future__ import annotations

import subprocess

import pytest
from maildirs import BODY, Maildirs, envelope


@pytest.fixture
def mount(tmp_path):
    """A function that mounts a tmpfs and returns Maildirs on it."""
    point = tmp_path / "small"
    point.mkdir()
    mounted = False

    def mount(options: str) -> Maildirs:
        nonlocal mounted
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "preforkmx-test", point],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        if done.returncode != 0:
            pytest.fail(f"this test mounts a tmpfs, which needs root: {done.stderr.strip()}")
        mounted = True
        return Maildirs(point / "mail")

    yield mount
    if mounted:
        subprocess.run(["umount", "-l", point], check=True, timeout=30)


@pytest.mark.parametrize("body", [(b"x" * 50_000,), [b"x" * 60_000] * 6], ids=["small", "large"])
def test_a_full_disk_is_452_and_leaves_nothing_and_mail_flows_again_when_there_is_room(mount, body):
    maildirs = mount("size=2m")
    replies = maildirs.deliver(*[envelope(body=body) for _ in range(60)])
    refused = [reply for reply in replies if reply is not None]
    assert refused
    assert len(refused) < 60
    assert {str(reply) for reply in refused} == {"452 4.3.1 Insufficient system storage"}
    files = maildirs.files("new")
    assert len(files) == 60 - len(refused)
    assert {path.read_bytes().count(b"x") >= sum(map(len, body)) for path in files} == {True}
    assert not maildirs.files("tmp")
    for path in files:
        path.unlink()
    assert maildirs.deliver(envelope(body=body)) == [None]


def test_no_recipient_gets_a_message_when_there_is_no_room_for_the_last_ones_name(mount):
    """On a tmpfs every name counts: the limit is met at a link, after others were made."""
    maildirs = mount("size=4m,nr_inodes=60")
    recipients = [f"u{number}@d" for number in range(8)]
    made = 0
    while maildirs.deliver(envelope(*recipients)) == [None]:
        made += 1
        assert made < 20
    assert made > 0
    assert len(maildirs.files("new")) == made * len(recipients)
    assert not maildirs.files("tmp")
    for path in maildirs.files("new")[:8]:
        path.unlink()
    assert maildirs.deliver(envelope("u0@d")) == [None]


def test_the_logs_line_about_a_full_disk_has_no_stack(mount, caplog):
    maildirs = mount("size=64k")
    (reply,) = maildirs.deliver(envelope(body=(BODY * 5000,)))
    assert reply.code == 452
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "no room for a message" in record.message
    assert not record.exc_info
