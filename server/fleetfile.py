"""The SQLite file under the fleet's database: its tables, transactions and errors."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

from shared.errors import FleetError, OutOfDisk
from shared.sqlitefile import write_ahead

SCHEMA_VERSION: Final = 1
_BUSY_SECONDS = 30.0
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SCHEMA = (
    # A name keeps its role and its client for ever, whatever devices come and go under it.
    """CREATE TABLE names (
        name TEXT PRIMARY KEY, role TEXT NOT NULL, client_index INTEGER UNIQUE
    ) STRICT""",
    """CREATE TABLE tokens (
        digest BLOB PRIMARY KEY, name TEXT NOT NULL, role TEXT NOT NULL, issued_at REAL NOT NULL,
        expires_at REAL NOT NULL, used_key BLOB
    ) STRICT""",
    "CREATE INDEX token_of_name ON tokens (name)",
    # A key belongs to one enrolment for ever: a revoked one cannot come back.
    """CREATE TABLE nodes (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL REFERENCES names, public_key BLOB NOT NULL
        UNIQUE, serial TEXT, enrolled_at REAL NOT NULL, revoked_at REAL,
        revoked_reason TEXT NOT NULL DEFAULT '', last_seen REAL, flower_node_id TEXT UNIQUE
    ) STRICT""",
    "CREATE UNIQUE INDEX one_in_force ON nodes (name) WHERE revoked_at IS NULL",
    "CREATE INDEX node_of_name ON nodes (name)",
    """CREATE TABLE certificates (
        serial TEXT PRIMARY KEY, node INTEGER NOT NULL REFERENCES nodes, issued_at REAL NOT NULL
    ) STRICT""",
    """CREATE TABLE flags (
        name TEXT NOT NULL, code TEXT NOT NULL, count INTEGER NOT NULL, first_at REAL NOT NULL,
        last_at REAL NOT NULL, PRIMARY KEY (name, code)
    ) STRICT""",
    """CREATE TABLE events (
        number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, kind TEXT NOT NULL,
        facts TEXT NOT NULL
    ) STRICT""",
    """CREATE TRIGGER events_stay BEFORE UPDATE ON events
        BEGIN SELECT raise(ABORT, 'the log of actions is append-only'); END""",
    """CREATE TRIGGER events_remain BEFORE DELETE ON events
        BEGIN SELECT raise(ABORT, 'the log of actions is append-only'); END""",
    """CREATE TRIGGER revoked_stays BEFORE UPDATE OF revoked_at ON nodes
        WHEN old.revoked_at IS NOT NULL
        BEGIN SELECT raise(ABORT, 'a revocation is for good'); END""",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


class FleetFile:
    """One open file; safe to use from several threads and processes.

    Args:
        path: created with mode 600 if it does not exist.

    Raises:
        FleetError: if it cannot be opened, others may read it, or it is of another version.
        OutOfDisk: if there is no space to create it.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        with _translated():
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            os.close(descriptor)
            if mode & 0o077:
                msg = f"{path.name} has mode {mode:03o}, expected 600."
                raise FleetError(msg, hint="Others may have read it: chmod 600.")
            self._db = sqlite3.connect(
                f"file:{quote(str(path.absolute()))}?mode=rw",
                uri=True,
                timeout=_BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the only write lock: all of what is written inside is kept, or none of it.

        Raises:
            FleetError: if the file is damaged, read-only, or locked for longer than 30 seconds.
            OutOfDisk: if no space is left.
        """
        with self._lock, _translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                self._db.rollback()
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Run one query; writers go on meanwhile.

        Raises:
            FleetError: if the file is damaged or gone.
        """
        with self._lock, _translated():
            yield self._db

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _prepare(self) -> None:
        """Set durability, and create or check the schema."""
        write_ahead(self._db, _BUSY_SECONDS)
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        if self._version() == SCHEMA_VERSION:
            return
        with self.transaction() as db:
            # Looked at again: another process may have been first.
            version = self._version()
            tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if version == 0 and tables == 0:
                for statement in _SCHEMA:
                    db.execute(statement)
            elif version != SCHEMA_VERSION:
                msg = f"The fleet database has schema={version}, expected {SCHEMA_VERSION}."
                raise FleetError(msg, hint="Another program or a newer fedslm wrote this file.")

    def _version(self) -> int:
        """Return the schema version that the file claims; 0 for a new file."""
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the errors of SQLite and of the file system into ours."""
    try:
        yield
    except sqlite3.Error as error:
        if "disk is full" in str(error) or "disk I/O error" in str(error):
            msg = f"The fleet database could not be written: {error}."
            raise OutOfDisk(msg, hint="Free some space and do it again.") from error
        msg = f"The fleet database cannot be used: {error}."
        hint = "It may be locked, damaged, or of another program; restore it from a copy."
        raise FleetError(msg, hint=hint) from error
    except OSError as error:
        if error.errno in _FULL:
            msg = f"The fleet database could not be created: {error.strerror}."
            raise OutOfDisk(msg, hint="Free some space and do it again.") from error
        msg = f"The fleet database cannot be opened: {error.strerror}."
        raise FleetError(msg, hint="Check that its folder exists and can be written.") from error
