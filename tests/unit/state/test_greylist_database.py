"""What the store process keeps on disk."""

from __future__ import annotations

import asyncio
import sqlite3
import stat

import pytest

from preforkmx.errors import BootError
from preforkmx.state.decisions import GreylistSettings, running
from preforkmx.state.embedded import EmbeddedStore
from preforkmx.state.embedded.database import GreylistDatabase
from preforkmx.state.greylisting import Greylisting
from preforkmx.state.limits import Limits
from preforkmx.state.mark_table import MarkTable
from preforkmx.state.saved import Saved

SECOND = 1_000_000
NOW = 1_800_000_000 * SECOND
SETTINGS = GreylistSettings(auto_allow_after=1)
NET = b"192.0.2.0/24"


class Engine(Greylisting):
    """Greylisting and marks, with all that is saved of both."""

    def __init__(self, **sizes):
        super().__init__(Limits(1000), journal=True, **sizes)
        self.marks = MarkTable(100, journal=True)
        saved = Saved((*self.tables, self.marks))
        self.tables = saved.tables
        self.take_changes, self.give_back = saved.take_changes, saved.give_back


def engine(**capacities):
    return Engine(**{"pending": 100, "known": 100, "networks": 100, **capacities})


def fill(greylisting):
    """One deferred triplet, and one known in a network that is allowed from now on."""
    greylisting.decide(NET, b"passed", SETTINGS.numbers, NOW - 400 * SECOND)
    greylisting.decide(NET, b"deferred", SETTINGS.numbers, NOW - 100 * SECOND)
    greylisting.decide(NET, b"passed", SETTINGS.numbers, NOW)


def contents(greylisting):
    return [dict(table.entries) for table in greylisting.tables[:3]]


def alive(greylisting, now=NOW):
    return [
        {key: value for key in table.entries if (value := table.get(key, now)) is not None}
        for table in greylisting.tables[:3]
    ]


def reopened(path, now=NOW, **capacities):
    greylisting = engine(**capacities)
    database = GreylistDatabase(path, greylisting)
    database.load(now)
    database.close()
    return greylisting


@pytest.fixture
def path(tmp_path):
    return tmp_path / "greylist.db"


def test_what_was_saved_is_there_after_a_restart(path):
    greylisting = engine()
    database = GreylistDatabase(path, greylisting)
    database.load(NOW)
    fill(greylisting)
    assert database.save(greylisting.take_changes(), NOW)
    database.close()
    pending, known, networks = contents(reopened(path))
    assert list(pending) == [b"deferred"]
    assert list(known) == [b"passed"]
    assert list(networks) == [NET]
    assert [pending, known, networks] == alive(greylisting)


def test_what_changed_and_what_was_dropped_is_saved_too(path):
    greylisting = engine(pending=2)
    database = GreylistDatabase(path, greylisting)
    database.load(NOW)
    for n in range(5):
        greylisting.decide(NET, b"%d" % n, SETTINGS.numbers, NOW + n)
        assert database.save(greylisting.take_changes(), NOW + n)
    database.close()
    assert contents(reopened(path, NOW + 9)) == alive(greylisting, NOW + 9)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM pending").fetchone() == (2,)
    connection.close()


def test_what_expired_while_the_store_was_away_is_dropped(path):
    greylisting = engine()
    database = GreylistDatabase(path, greylisting)
    database.load(NOW)
    fill(greylisting)
    database.save(greylisting.take_changes(), NOW)
    database.close()
    later = NOW + 2 * 86_400 * SECOND
    pending, known, _ = contents(reopened(path, later))
    assert (list(pending), list(known)) == ([], [b"passed"])
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM pending").fetchone() == (0,)
    connection.close()


def test_a_smaller_store_takes_what_it_has_room_for(path):
    greylisting = engine()
    database = GreylistDatabase(path, greylisting)
    database.load(NOW)
    for n in range(50):
        greylisting.decide(NET, b"%d" % n, SETTINGS.numbers, NOW + n)
    database.save(greylisting.take_changes(), NOW)
    database.close()
    assert len(reopened(path, NOW + 99, pending=10).pending) == 10
    assert len(reopened(path, NOW + 99, pending=50).pending) == 10


def test_only_its_owner_may_read_the_file(path):
    reopened(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_address_of_mail_is_in_the_file(serve, clock, tmp_path):
    async def main():
        async with serve(clock) as path, running(EmbeddedStore(path, deadline=30.0)) as store:
            await store.greylist("192.0.2.0/24", "joe@example.com", "ann@example.net", SETTINGS)

    asyncio.run(main())
    octets = b"".join(file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
    assert octets.startswith(b"SQLite format 3")
    assert b"example" not in octets


@pytest.mark.parametrize("damage", ["not a database", "torn"])
def test_a_damaged_file_is_set_aside_and_a_new_one_begun(path, caplog, damage):
    greylisting = engine()
    database = GreylistDatabase(path, greylisting)
    database.load(NOW)
    fill(greylisting)
    database.save(greylisting.take_changes(), NOW)
    database.close()
    octets = bytearray(path.read_bytes())
    if damage == "torn":
        for page in range(4096, len(octets), 4096):
            octets[page : page + 64] = b"\xff" * 64
    else:
        octets[:] = b"this was a database once\n" * 1000
    path.write_bytes(octets)

    assert contents(reopened(path)) == [{}, {}, {}]
    assert (path.parent / "greylist.db.corrupt").read_bytes() == octets
    assert "is damaged" in caplog.text
    caplog.clear()
    assert contents(reopened(path)) == [{}, {}, {}]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_file_that_is_damaged_while_it_is_open_is_written_anew_from_memory(path):
    greylisting = engine()
    database = GreylistDatabase(path, greylisting)
    database.load(NOW)
    fill(greylisting)
    assert database.save(greylisting.take_changes(), NOW)
    greylisting.decide(b"elsewhere", b"later", SETTINGS.numbers, NOW)

    class Damaged:
        def execute(self, *_):
            error = sqlite3.DatabaseError("database disk image is malformed")
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error

        def close(self):
            connection.close()

    connection, database._connection = database._connection, Damaged()
    changes = greylisting.take_changes()
    assert not database.save(changes, NOW)
    greylisting.give_back(changes)
    assert path.with_name("greylist.db.corrupt").exists()
    assert database.save(greylisting.take_changes(), NOW)
    database.close()
    assert contents(reopened(path)) == alive(greylisting)


def test_a_damaged_file_that_cannot_be_set_aside_is_complained_of_once(path, caplog):
    greylisting = engine()
    database = GreylistDatabase(path, greylisting)
    database.load(NOW)
    database.close()
    caplog.clear()
    fill(greylisting)
    path.write_bytes(b"no database" * 1000)
    aside = path.with_name("greylist.db.corrupt")
    (aside / "in the way").mkdir(parents=True)
    for _ in range(3):
        changes = greylisting.take_changes()
        assert not database.save(changes, NOW)
        greylisting.give_back(changes)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    (aside / "in the way").rmdir()
    aside.rmdir()
    changes = greylisting.take_changes()
    assert not database.save(changes, NOW)
    greylisting.give_back(changes)
    assert database.save(greylisting.take_changes(), NOW)
    database.close()
    assert contents(reopened(path)) == alive(greylisting)


def test_a_disk_that_is_full_at_the_start_keeps_nobody_from_starting(path, caplog, monkeypatch):
    greylisting = engine()
    database = GreylistDatabase(path, greylisting)

    def full(*_):
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(database, "_prepare", full)
        database.load(NOW)
        fill(greylisting)
        changes = greylisting.take_changes()
        assert not database.save(changes, NOW)
        greylisting.give_back(changes)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert database.save(greylisting.take_changes(), NOW)
    database.close()
    assert contents(reopened(path)) == alive(greylisting)


def test_what_could_not_be_saved_is_saved_when_there_is_room_again(path, caplog):
    greylisting = engine()
    database = GreylistDatabase(path, greylisting)
    database.load(NOW)
    fill(greylisting)
    pages = database._connection.execute("PRAGMA page_count").fetchone()[0]
    database._connection.execute(f"PRAGMA max_page_count = {pages}")
    for n in range(90):
        greylisting.known.put(b"%090d" % n, NOW + n + SECOND, NOW)
    for _ in range(3):
        changes = greylisting.take_changes()
        assert not database.save(changes, NOW)
        greylisting.give_back(changes)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    database._connection.execute("PRAGMA max_page_count = 1000")
    assert database.save(greylisting.take_changes(), NOW)
    database.close()
    assert contents(reopened(path)) == alive(greylisting)


def test_a_journal_that_nothing_can_be_saved_of_stays_bounded():
    greylisting = engine(pending=5)
    for n in range(1000):
        greylisting.decide(NET, b"%d" % n, SETTINGS.numbers, NOW + n)
        changes = greylisting.take_changes()
        assert all(len(keys) <= 12 for keys in changes.keys)
        greylisting.give_back(changes)
    assert greylisting.take_changes().everything


def test_after_a_long_outage_everything_is_saved_and_nothing_else_is_left(path):
    greylisting = engine(pending=5)
    database = GreylistDatabase(path, greylisting)
    database.load(NOW)
    for n in range(40):
        greylisting.decide(NET, b"%d" % n, SETTINGS.numbers, NOW + n)
        changes = greylisting.take_changes()
        if n < 4:
            assert database.save(changes, NOW + n)
        else:
            greylisting.give_back(changes)
    changes = greylisting.take_changes()
    assert changes.everything
    assert database.save(changes, NOW + 50)
    database.close()
    assert contents(reopened(path, NOW + 50)) == alive(greylisting, NOW + 50)


def test_two_store_processes_never_share_a_file(path, monkeypatch):
    monkeypatch.setattr("preforkmx.state.embedded.database._LOCK_SECONDS", 0.01)
    first = GreylistDatabase(path, engine())
    first.load(NOW)
    second = GreylistDatabase(path, engine())
    with pytest.raises(BootError, match="locked"):
        second.load(NOW)
    first.close()
    second.load(NOW)
    second.close()


def test_a_database_of_somebody_else_is_left_alone(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE accounts (id INTEGER)")
    connection.close()
    octets = path.read_bytes()
    with pytest.raises(BootError, match="not one of preforkmx"):
        GreylistDatabase(path, engine()).load(NOW)
    assert path.read_bytes()[100:] == octets[100:]


def test_a_database_of_another_version_is_left_alone(path):
    reopened(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(BootError, match="version 99"):
        GreylistDatabase(path, engine()).load(NOW)


MARKS = [bytes([number]) * 20 for number in range(3)]


def test_marks_are_there_after_a_restart_until_they_are_forgotten_or_expire(path):
    kept = engine()
    database = GreylistDatabase(path, kept)
    database.load(NOW)
    kept.marks.remember(MARKS[:2], 10 * SECOND, NOW)
    kept.marks.remember(MARKS[2:], 99 * SECOND, NOW)
    assert database.save(kept.take_changes(), NOW)
    kept.marks.forget(MARKS[:1], NOW)
    assert database.save(kept.take_changes(), NOW)
    database.close()
    assert reopened(path).marks.known(MARKS, NOW) == [1, 2]
    assert list(reopened(path, NOW + 10 * SECOND).marks.entries) == MARKS[2:]
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT key FROM mark").fetchall() == [(MARKS[2],)]
    connection.close()


def test_a_file_from_before_there_were_marks_keeps_its_greylist_and_takes_marks(path):
    kept = engine()
    database = GreylistDatabase(path, kept)
    database.load(NOW)
    fill(kept)
    assert database.save(kept.take_changes(), NOW)
    database.close()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE mark")
        version = connection.execute("PRAGMA user_version").fetchone()
    connection.close()

    kept = engine()
    database = GreylistDatabase(path, kept)
    database.load(NOW)
    kept.marks.remember(MARKS, SECOND, NOW)
    assert database.save(kept.take_changes(), NOW)
    database.close()
    assert len(contents(reopened(path))[1]) == 1
    assert reopened(path).marks.known(MARKS, NOW) == [0, 1, 2]
    # The version before reads it too: it asks for the tables that it knows, and for this number.
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == version == (1,)
    connection.close()


def test_a_directory_that_is_not_there_is_an_error_at_the_start(tmp_path):
    with pytest.raises(BootError, match="cannot be opened"):
        GreylistDatabase(tmp_path / "missing" / "greylist.db", engine()).load(NOW)
