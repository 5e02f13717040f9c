"""Every call of the operating system that a delivery makes, failing once."""

from __future__ import annotations

import errno
import os
import stat
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from maildirs import BODY, envelope

CALLS = ("mkdir", "open", "write", "fsync", "close", "link", "rename")
BODIES = {"small": (BODY,), "large": [b"x" * 60_000] * 10}


def in_delivery() -> bool:
    return threading.current_thread().name.startswith("preforkmx-maildir")


class Trace:
    """What the delivery's threads ask of the operating system, in order."""

    def __init__(self, monkeypatch) -> None:
        self.calls: list[tuple[str, str]] = []
        self.fail_at = -1
        self.error = errno.EIO
        self._paths: dict[int, str] = {}
        for name in CALLS:
            monkeypatch.setattr(os, name, self._traced(name, getattr(os, name)))

    def _traced(self, name, real):
        def call(*arguments, **options):
            if not in_delivery():
                return real(*arguments, **options)
            about = arguments[-1] if name in {"link", "rename"} else arguments[0]
            if isinstance(about, int):
                about = self._paths[about]
            self.calls.append((name, about))
            if len(self.calls) - 1 == self.fail_at:
                if name == "close":
                    real(*arguments)  # as Linux does: closed, and an error
                raise OSError(self.error, os.strerror(self.error))
            result = real(*arguments, **options)
            if name == "open":
                self._paths[result] = about
            return result

        return call


@pytest.fixture
def trace(monkeypatch):
    return Trace(monkeypatch)


def steps(maildirs, trace) -> list[str]:
    """The calls as text, with the paths relative and the message's name replaced."""
    shown = []
    for name, path in trace.calls:
        relative = os.path.relpath(path, maildirs.path)
        parts = ["NAME" if ".M" in part else part for part in relative.split("/")]
        shown.append(f"{name} {'/'.join(parts)}")
    return shown


def test_the_first_message_of_a_mailbox_makes_everything_durable_in_this_order(maildirs, trace):
    assert maildirs.deliver(envelope("joe@d")) == [None]
    assert steps(maildirs, trace) == [
        "mkdir d",
        "mkdir d/joe",
        "mkdir d/joe/tmp",
        "mkdir d/joe/new",
        "mkdir d/joe/cur",
        *("open d/joe", "fsync d/joe", "close d/joe"),
        *("open d", "fsync d", "close d"),
        *("open .", "fsync .", "close ."),
        "open d/joe/tmp/NAME",
        "write d/joe/tmp/NAME",
        "fsync d/joe/tmp/NAME",
        "close d/joe/tmp/NAME",
        "rename d/joe/new/NAME",
        *("open d/joe/new", "fsync d/joe/new", "close d/joe/new"),
    ]


def test_every_link_is_made_before_the_first_rename_and_every_directory_is_synced_at_the_end(
    maildirs, trace
):
    recipients = ("ann@d", "joe@d", "kim@e")
    maildirs.deliver(envelope(*recipients))
    for path in maildirs.files("new"):
        path.unlink()
    trace.calls.clear()
    maildirs.deliver(envelope(*recipients))
    shown = [step for step in steps(maildirs, trace) if not step.startswith(("mkdir", "close"))]
    # A new worker syncs the mailboxes again that it sees for the first time.
    again = ["open d/ann", "fsync d/ann", "open d", "fsync d", "open .", "fsync ."]
    assert shown[:6] == again
    shown = shown[6:]
    links = [step for step in shown if step.startswith("link")]
    assert links == ["link d/joe/tmp/NAME", "link e/kim/tmp/NAME"]
    assert shown[:3] == [f"{call} d/ann/tmp/NAME" for call in ("open", "write", "fsync")]
    renames = shown.index("rename d/ann/new/NAME")
    assert shown.index("link e/kim/tmp/NAME") < renames
    assert shown[renames:] == [
        "rename d/ann/new/NAME",
        "rename d/joe/new/NAME",
        "rename e/kim/new/NAME",
        *("open d/ann/new", "fsync d/ann/new"),
        *("open d/joe/new", "fsync d/joe/new"),
        *("open e/kim/new", "fsync e/kim/new"),
    ]


@pytest.mark.parametrize("size", BODIES)
@pytest.mark.parametrize(
    "recipients",
    [("joe@d",), ("ann@d", "joe@d", "kim@e")],
    ids=["one recipient", "three recipients"],
)
@pytest.mark.parametrize(
    ("error", "code"), [(errno.EIO, 451), (errno.ENOSPC, 452), (errno.EDQUOT, 452)]
)
def test_whichever_call_fails_nothing_is_left_and_a_retry_doubles_nothing(
    maildirs, trace, recipients, size, error, code
):
    trace.error = error
    failures = 0
    while True:
        trace.calls.clear()
        trace.fail_at = failures
        (reply,) = maildirs.deliver(envelope(*recipients, body=BODIES[size]))
        if reply is None:
            break
        assert reply.code == code, trace.calls[failures]
        assert reply.enhanced == ((4, 3, 1) if code == 452 else (4, 3, 0))
        assert maildirs.is_empty(), trace.calls[failures]
        failures += 1
    assert failures == len(trace.calls)
    assert failures > 15
    files = maildirs.files("new")
    assert len(files) == len(recipients)
    assert all(path.read_bytes().endswith(b"".join(BODIES[size])) for path in files)
    assert not maildirs.files("tmp")


def test_in_a_batch_a_messages_failure_is_its_own(maildirs, trace, monkeypatch):
    """Eight messages come together, and one mailbox of theirs cannot be written."""
    real = os.rename

    def rename(source, target):
        if "/bad/" in target:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    users = ["a", "b", "bad", "c", "a", "bad", "d", "e"]
    replies = maildirs.deliver(*[envelope(f"{user}@d") for user in users])
    assert [reply is None for reply in replies] == [user != "bad" for user in users]
    assert len(maildirs.files("new")) == 6
    assert not maildirs.files("tmp")


def test_a_directory_that_cannot_be_synced_takes_back_all_that_was_renamed_into_it(
    maildirs, monkeypatch
):
    real = os.fsync

    def fsync(descriptor):
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if path.endswith("/bad/new"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    replies = maildirs.deliver(
        envelope("a@d"), envelope("bad@d"), envelope("a@d", "bad@d"), envelope("bad@d")
    )
    assert [reply is None for reply in replies] == [True, False, False, False]
    assert [path.parent.parent.name for path in maildirs.files("new")] == ["a"]
    assert not maildirs.files("tmp")


@contextmanager
def short_writes(monkeypatch, most: int):
    """Let every write take `most` octets at most."""
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(
            os,
            "write",
            lambda fd, octets: real(fd, octets[:most] if in_delivery() else octets),
        )
        yield


def test_a_write_that_takes_less_is_continued(maildirs, monkeypatch):
    with short_writes(monkeypatch, 100):
        assert maildirs.deliver(envelope(body=(bytes(range(32, 127)) * 50,))) == [None]
    assert maildirs.message().endswith(bytes(range(32, 127)) * 50)


def test_a_file_that_cannot_be_cleared_away_is_said_in_the_log(maildirs, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    maildirs.deliver(envelope())
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        patch.setattr(os, "unlink", refuse)
        (reply,) = maildirs.deliver(envelope())
    assert reply.code == 451
    assert len(maildirs.files("new")) == 1
    assert any("cannot be cleared away" in record.message for record in caplog.records)


def test_no_descriptor_stays_open(maildirs, trace):
    def descriptors():
        return {
            entry.name
            for entry in Path("/proc/self/fd").iterdir()
            if stat.S_ISREG(_mode(int(entry.name))) or stat.S_ISDIR(_mode(int(entry.name)))
        }

    before = descriptors()
    for fail_at in range(40):
        trace.calls.clear()
        trace.fail_at = fail_at
        maildirs.deliver(envelope("a@d", "b@e", body=BODIES["large"]))
    assert len(descriptors()) <= len(before)


def _mode(descriptor: int) -> int:
    try:
        return os.fstat(descriptor).st_mode
    except OSError:
        return 0
