"""Greylisting and marks on disk: what the store process saves once a second, and reads when it starts.

The maps in memory are the truth, the file follows them: a save writes the rows whose keys are
in the journal and deletes those that the maps have dropped, so the file never has more rows
than the maps have room for. It holds hashes of triplets, marks and the networks of clients, no
addresses of mail.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from preforkmx.errors import BootError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from preforkmx.state.expiring import ExpiringMap
    from preforkmx.state.saved import Changes, Saved

_log = logging.getLogger("preforkmx.state.store")

_APPLICATION_ID: Final = 0x50464D58  # "PFMX"
_VERSION: Final = 1
#: How long an other process may keep the file locked before this one gives up, in seconds:
#: a predecessor that is still saving needs less.
_LOCK_SECONDS: Final = 5.0
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_NO_ROOM: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR})


class _Table(NamedTuple):
    name: str
    columns: tuple[str, ...]

    @property
    def create(self) -> str:
        columns = ", ".join(f"{column} INTEGER NOT NULL" for column in self.columns)
        return f"CREATE TABLE IF NOT EXISTS {self.name} (key BLOB PRIMARY KEY, {columns}) WITHOUT ROWID"

    @property
    def select(self) -> str:
        return f"SELECT key, {', '.join(self.columns)} FROM {self.name}"  # noqa: S608

    @property
    def write(self) -> str:
        places = ", ".join("?" for _ in ("key", *self.columns))
        return f"INSERT OR REPLACE INTO {self.name} VALUES ({places})"  # noqa: S608

    @property
    def delete(self) -> str:
        return f"DELETE FROM {self.name} WHERE key = ?"  # noqa: S608

    @property
    def delete_expired(self) -> str:
        return f"DELETE FROM {self.name} WHERE expiry <= ?"  # noqa: S608

    @property
    def delete_all(self) -> str:
        return f"DELETE FROM {self.name}"  # noqa: S608


# In the order of Saved.tables and of Changes; expiry is the first of each value.
_TABLES: Final = (
    _Table("pending", ("expiry", "first")),
    _Table("known", ("expiry",)),
    _Table("network", ("expiry", "passes", "last")),
    _Table("mark", ("expiry",)),
)


class GreylistDatabase:
    """The SQLite file behind what is :class:`~preforkmx.state.saved.Saved`.

    Every method but the constructor belongs to one thread, the same for all.

    The file is in WAL mode and not synced at every save: it survives the death of this process
    with all that was saved, and a power failure with all but the last moments.
    """

    def __init__(self, path: Path, saved: Saved) -> None:
        self._path = path
        self._saved = saved
        self._connection: sqlite3.Connection | None = None
        self._failing = False

    def load(self, now: int) -> None:
        """Open the file and fill the maps from it, without what has expired.

        A damaged file is set aside as ``<name>.corrupt``, and a new one begun. Where the disk is
        full all is kept in memory alone, until :meth:`save` finds room.

        :param now: µs since 1970.
        :raises BootError: the file cannot be opened, belongs to another process, or is no
            store of this version.
        """
        try:
            try:
                self._open()
                self._fill(now)
            except sqlite3.DatabaseError as exc:
                if not _is_damage(exc):
                    raise
                self._set_aside(exc)
                for table in self._saved.tables:
                    table.clear()
                self._open()
        except (sqlite3.Error, OSError) as exc:
            self.close()
            if _is_no_room(exc):
                self._failing = True
                _log.error("greylisting cannot be saved to %s: %s", self._path, exc)
                return
            raise BootError(f"the greylist database {self._path} cannot be opened: {exc}") from exc

    def save(self, changes: Changes, now: int) -> bool:
        """Write what `changes` names as it is now; return whether that succeeded.

        What fails is logged once, until it succeeds again. A damaged file is set aside and a
        new one begun: then everything in memory must be in the next `changes`
        (:attr:`~preforkmx.state.saved.Changes.everything`).
        """
        try:
            if self._connection is None:
                self._open()
            if changes:
                self._write(changes, now)
        except (sqlite3.Error, OSError, BootError) as exc:
            failure: Exception | None = exc
            if _is_damage(exc):
                changes.everything = True
                failure = self._try_to_set_aside(exc)
            if failure is not None and not self._failing:
                _log.error("greylisting cannot be saved to %s: %s", self._path, failure)
            self._failing = True
            return False
        if self._failing and changes:
            self._failing = False
            _log.info("greylisting is saved to %s again", self._path)
        return True

    def close(self) -> None:
        """Close the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _open(self) -> None:
        # Made here, so that nobody else ever may read it; SQLite gives its WAL the same mode.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self._path, timeout=_LOCK_SECONDS, isolation_level=None)
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA journal_size_limit = 4194304")
            connection.execute("BEGIN IMMEDIATE")
            self._prepare(connection)
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if not tables:
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        elif application != _APPLICATION_ID:
            raise BootError(f"{self._path} is a database, but not one of preforkmx")
        elif version != _VERSION:
            raise BootError(
                f"the greylist database {self._path} has version {version}, this preforkmx "
                f"reads version {_VERSION}: move it away to begin a new one"
            )
        # A file may be older than one of its tables; who does not know a table leaves it alone.
        # So another table is no other version, and a file serves both ways of an upgrade.
        for table in _TABLES:
            connection.execute(table.create)

    def _fill(self, now: int) -> None:
        connection = self._connection
        assert connection is not None
        rows = 0
        for statements, table in zip(_TABLES, self._saved.tables, strict=True):
            for key, *value in connection.execute(statements.select):
                if value[0] > now:
                    table.put(key, _value(value), now)
            rows += len(table)
        # What did not fit any more, and what expired; a full disk must not keep us from reading.
        dropped = self._saved.take_changes()
        try:
            connection.execute("BEGIN IMMEDIATE")
            for statements, table, keys in zip(
                _TABLES, self._saved.tables, dropped.keys, strict=True
            ):
                connection.execute(statements.delete_expired, (now,))
                gone = ((key,) for key in keys if key not in table.entries)
                connection.executemany(statements.delete, gone)
            connection.execute("COMMIT")
        except sqlite3.OperationalError as exc:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            _log.warning("expired greylist entries stay in %s: %s", self._path, exc)
        _log.info("greylisting begins with %d entries from %s", rows, self._path)

    def _write(self, changes: Changes, now: int) -> None:
        connection = self._connection
        assert connection is not None
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statements, table, keys in zip(
                _TABLES, self._saved.tables, changes.keys, strict=True
            ):
                if changes.everything:
                    connection.execute(statements.delete_all)
                connection.executemany(statements.write, _rows(table, keys, now))
                if not changes.everything:
                    gone = ((key,) for key in keys if table.get(key, now) is None)
                    connection.executemany(statements.delete, gone)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _try_to_set_aside(self, why: Exception) -> Exception | None:
        """Set a damaged file aside, and return what was in the way."""
        try:
            self._set_aside(why)
        except (sqlite3.Error, OSError) as exc:
            return exc
        return None

    def _set_aside(self, why: Exception) -> None:
        self.close()
        aside = self._path.with_name(f"{self._path.name}.corrupt")
        self._path.replace(aside)
        _log.error("the greylist database %s is damaged (%s), see %s", self._path, why, aside)
        for ending in ("-wal", "-journal"):
            companion = self._path.with_name(self._path.name + ending)
            if companion.exists():
                companion.replace(aside.with_name(aside.name + ending))


def _rows(
    table: ExpiringMap[bytes, Any], keys: set[bytes], now: int
) -> Iterator[tuple[bytes | int, ...]]:
    """Yield the row of every key that is there and alive."""
    for key in keys:
        value = table.get(key, now)
        if value is not None:
            yield (key, value) if isinstance(value, int) else (key, *value)


def _value(columns: list[int]) -> int | tuple[int, ...]:
    return columns[0] if len(columns) == 1 else tuple(columns)


def _is_damage(exc: Exception) -> bool:
    return _code(exc) in _DAMAGED


def _is_no_room(exc: Exception) -> bool:
    if isinstance(exc, OSError):
        return exc.errno in {errno.ENOSPC, errno.EDQUOT}
    return _code(exc) in _NO_ROOM


def _code(exc: Exception) -> int | None:
    # The extended codes have the primary one in their lowest octet.
    code: int | None = getattr(exc, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
