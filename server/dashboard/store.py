"""``users.sqlite``: people, their sessions and failed logins, for several processes at once."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from shared.errors import FleetError

USERS = "users.sqlite"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS users (
    name TEXT PRIMARY KEY,
    role TEXT NOT NULL CHECK (role IN ('operator', 'viewer')),
    n INTEGER NOT NULL,
    r INTEGER NOT NULL,
    p INTEGER NOT NULL,
    salt BLOB NOT NULL,
    hash BLOB NOT NULL,
    created REAL NOT NULL,
    last_login REAL
) STRICT;
CREATE TABLE IF NOT EXISTS sessions (
    ref TEXT PRIMARY KEY,
    name TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
    created REAL NOT NULL,
    seen REAL NOT NULL,
    notice TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS sessions_of ON sessions (name);
CREATE TABLE IF NOT EXISTS failures (
    key TEXT PRIMARY KEY,
    count INTEGER NOT NULL,
    last REAL NOT NULL
) STRICT;
"""
_BUSY_SECONDS = 10.0


class UserFile:
    """The file behind people, sessions and failed logins.

    Args:
        path: created with mode 600 if it does not exist.

    Raises:
        FleetError: if it cannot be opened, is not such a file, or may be read by others.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600))
            mode = path.stat().st_mode & 0o777
        except OSError as error:
            msg = f"{path.name} cannot be opened ({error.strerror})."
            raise FleetError(msg, hint="Check the server's folder and its permissions.") from error
        if mode & 0o077:
            msg = f"{path.name} has mode {mode:03o}, expected 600."
            raise FleetError(msg, hint="Others may have read it: change all passwords, chmod 600.")
        with self.change() as db:
            for statement in _SCHEMA.split(";\n"):
                db.execute(statement)

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """Run one exclusive transaction.

        Raises:
            FleetError: if the file is damaged, full or held too long by another process.
        """
        with self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                db.rollback()
                raise

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Read one consistent state; errors as :meth:`change`."""
        with self._open() as db:
            yield db

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Open a connection of its own, so that any thread may use this."""
        try:
            with closing(
                sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None)
            ) as db:
                db.execute("PRAGMA foreign_keys = ON")
                yield db
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", None) or type(error).__name__
            msg = f"{self._path.name} cannot be used ({name})."
            raise FleetError(msg, hint="Check the disk; restore the file from a copy.") from error
