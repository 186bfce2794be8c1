"""What every SQLite file of ours needs when several processes open it at once."""

from __future__ import annotations

import random
import sqlite3
import time


def write_ahead(db: sqlite3.Connection, seconds: float) -> None:
    """Set the journal of a file to WAL, waiting for other processes as a transaction would.

    SQLite does not wait by itself here: of several connections that change the journal of one file
    at once, each holds what the others need, and all but one are told at once that it is locked.

    Args:
        db: a connection outside any transaction.
        seconds: how long to wait.

    Raises:
        sqlite3.OperationalError: if the file is still locked after that, or cannot be written.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            # The low byte is the kind of error; the rest says where it arose.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(random.uniform(0.005, 0.05))  # noqa: S311 - a pause, not a secret
        else:
            return
