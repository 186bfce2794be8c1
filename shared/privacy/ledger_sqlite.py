"""A ledger in one SQLite file.

Every write is one immediate transaction that is on the disk when it returns (WAL, synchronous
FULL). A file of schema 1 is brought to schema 2 in one transaction when it is opened for writing,
and in memory when it is opened for reading; its chain is not touched.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from shared.errors import LedgerError, OutOfDisk
from shared.privacy.events import Composition, NonPrivateEvent, event_from_json
from shared.privacy.ledger_schema import (
    SCHEMA_VERSION,
    sqlite_guards,
    sqlite_schema,
    sqlite_table,
)
from shared.sqlitefile import write_ahead

BUSY_SECONDS = 60.0


class SqliteDb:
    """A connection to a file, inside one transaction."""

    among = "SELECT value FROM json_each(?)"

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> sqlite3.Cursor:
        """Run one statement; ``?`` marks a parameter."""
        return self._connection.execute(sql, tuple(parameters))

    def executemany(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """Run one statement for each row of parameters."""
        self._connection.executemany(sql, rows)


class SqliteStore:
    """One open ledger file; safe to use from several threads and processes.

    Args:
        path: the file; created with mode 600 if it does not exist.
        read_only: neither create nor change it.

    Raises:
        LedgerError: if the file cannot be opened, is not a ledger, or is of a newer version.
        OutOfDisk: if there is no space to create it.
        UnsupportedEvent: if a file of schema 1 holds sums that cannot be accounted for.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._lock = threading.RLock()
        self._read_only = read_only
        with translated_errors():
            if not (read_only or path.exists()):
                _create_privately(path)
            mode = "ro" if read_only else "rw"
            self._db = _connect(f"file:{quote(str(path.absolute()))}?mode={mode}")
            try:
                if read_only:
                    self._prepare_to_read()
                else:
                    self._prepare_to_write()
            except BaseException:
                self._db.close()
                raise

    def _prepare_to_write(self) -> None:
        """Set durability and create, migrate or check the schema."""
        write_ahead(self._db, BUSY_SECONDS)
        self._db.execute("PRAGMA synchronous = FULL")
        if _version(self._db) == SCHEMA_VERSION:
            return
        with self.transaction():
            # Looked at again: another process may have been first.
            version = _version(self._db)
            tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if version == 0 and tables == 0:
                for statement in sqlite_schema():
                    self._db.execute(statement)
            elif version == 1:
                _migrate(self._db)
            else:
                _require_version(version)

    def _prepare_to_read(self) -> None:
        """Check the schema; read a file of schema 1 through a copy in memory."""
        if _version(self._db) == 1:
            copy = _connect(":memory:")
            self._db.backup(copy)
            self._db.close()
            self._db = copy
            _migrate(copy)
        _require_version(_version(self._db))
        self._db.execute("PRAGMA query_only = ON")

    @contextmanager
    def transaction(self) -> Iterator[SqliteDb]:
        """Run one exclusive transaction (see :class:`shared.privacy.ledger_store.Store`)."""
        if self._read_only:
            msg = "the ledger was opened for reading only."
            raise LedgerError(msg, hint="Open it without read_only to write.")
        with self._lock, translated_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield SqliteDb(self._db)
                self._db.execute("COMMIT")
            except BaseException:
                self._db.rollback()
                raise

    @contextmanager
    def snapshot(self) -> Iterator[SqliteDb]:
        """Run several reads on one consistent state, without blocking writers."""
        with self._lock, translated_errors():
            self._db.execute("BEGIN")
            try:
                yield SqliteDb(self._db)
            finally:
                self._db.rollback()

    def close(self) -> None:
        """Close the file; the ledger cannot be used afterwards."""
        with self._lock:
            self._db.close()


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn the errors of SQLite and of the file system into the ledger's own.

    Raises:
        OutOfDisk: if no space is left.
        LedgerError: for everything else.
    """
    try:
        yield
    except sqlite3.Error as error:
        if "disk is full" in str(error) or "disk I/O error" in str(error):
            msg = f"the ledger could not be written: {error}."
            raise OutOfDisk(msg, hint="Free some space and resume; nothing was lost.") from error
        msg = f"the ledger cannot be used: {error}."
        hint = "It may be missing, locked, damaged, or not a ledger; restore it from a copy."
        raise LedgerError(msg, hint=hint) from error
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            msg = f"the ledger could not be created: {error.strerror}."
            raise OutOfDisk(msg, hint="Free some space and resume.") from error
        msg = f"the ledger cannot be opened: {error.strerror}."
        raise LedgerError(msg, hint="Check that its folder exists and can be written.") from error


def _connect(uri: str) -> sqlite3.Connection:
    """Open a file by URI, with transactions left to us."""
    return sqlite3.connect(
        uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )


def _version(db: sqlite3.Connection) -> int:
    """Return the schema version that a file claims; 0 for a new file."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _require_version(version: int) -> None:
    """Require the schema that the code is written for."""
    if version != SCHEMA_VERSION:
        msg = f"ledger schema={version}, expected {SCHEMA_VERSION}."
        raise LedgerError(msg, hint="Another program or a newer fedslm wrote this file.")


def _migrate(db: sqlite3.Connection) -> None:
    """Bring schema 1 to schema 2, inside a transaction: sums by kind of release, signed heads."""
    db.execute("ALTER TABLE spent RENAME TO spent_v1")
    db.execute(sqlite_table("spent"))
    rows = db.execute("SELECT subject, scope, plan_digest, q, z, count FROM spent_v1").fetchall()
    db.executemany(
        "INSERT INTO spent VALUES (?, ?, ?, ?, ?)",
        [(*row[:3], _release(*row[3:5]), row[5]) for row in rows],
    )
    db.execute("DROP TABLE spent_v1")
    for statement in (sqlite_table("heads"), *sqlite_guards("heads")):
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _release(q: float, z: float) -> str:
    """Return the kind of release that schema 1 stood for; two zeros meant a non-private one."""
    event = event_from_json(
        NonPrivateEvent().to_json()
        if (q, z) == (0.0, 0.0)
        else {
            "schema": 1,
            "type": "gaussian",
            "noise_multiplier": z,
            "sampling_probability": q,
            "count": 1,
        }
    )
    return Composition.of(event).counts()[0][0]


def _create_privately(path: Path) -> None:
    """Create an empty file that only its owner can read, and make its name durable."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
